"""`launch plan`: the machines that are compared, and how that is told."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import launch

from launchers.estimate import hours, tokens
from launchers.plan import GPUS, TYPICAL, Place, here, places, survey
from launchers.plan_command import NEEDS, command, spoken_hours
from launchers.target import Away, Offer, Refused
from pipeline import recipe
from pipeline.recipe import Recipe

ROOT = Path(__file__).parents[1]


def of(size: str) -> Recipe:
    return recipe.load(size, data="tinyshakespeare")


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    """A machine without nvidia-smi, and an empty directory to be in."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IGNITE_STORE", raising=False)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# rows


def test_sessions_end_before_their_limit(no_gpu):
    rows, _ = survey(of("medium"), places(()))
    kaggle = next(row for row in rows if row.target == "kaggle")
    assert kaggle.card == "2 x Tesla T4" and kaggle.sessions > 1
    limit = 12 - 1 / 3
    assert (kaggle.sessions - 1) * limit < kaggle.hours <= kaggle.sessions * limit
    short, _ = survey(of("medium"), places(("H100 SXM",), session=1.0))
    vast = next(row for row in short if row.target == "vast")
    assert vast.sessions == 4  # 2.8 hours of work, and ten minutes each to set up
    tiny, _ = survey(of("tiny"), places(GPUS))
    assert {row.sessions for row in tiny} == {1}


def test_a_total_has_disk_and_traffic_in_it():
    card = [Place("vast", "RTX 4090")]
    (often,), _ = survey(of("medium"), card)
    (seldom,), _ = survey(of("medium"), card, every=3600)
    least, most = TYPICAL["RTX 4090"]
    assert often.price == "typical" and often.hours == seldom.hours
    assert seldom.dollars[0] > seldom.hours * least
    assert seldom.dollars[1] - seldom.dollars[0] == pytest.approx(seldom.hours * (most - least))
    sent = often.gigabytes - seldom.gigabytes
    assert often.dollars[0] - seldom.dollars[0] == pytest.approx(0.01 * sent)


def offer(**told) -> Offer:
    usual = {"id": "1", "machine": "m", "gpu": "RTX 4090", "gpus": 1, "per_hour": 0.5}
    return Offer(**usual | told)


def test_an_offer_of_today_takes_the_place_of_a_typical_price():
    def offers(gpu: str) -> list[Offer]:
        if gpu == "RTX 3090":
            raise Refused("there is none under $0.10 an hour; the cheapest is $0.21")
        if gpu == "H100 SXM":
            raise Away("vast is away")
        return [offer(gpu=gpu, total=7.5), offer(gpu=gpu, total=9.0)]

    cards = ("RTX 4090", "RTX 3090", "H100 SXM")
    rows, notes = survey(of("medium"), [Place("vast", gpu) for gpu in cards], offers=offers)
    assert [row.price for row in rows] == ["offer", "typical", "typical"]
    assert rows[0].dollars == (7.5, 7.5)
    assert notes[0].startswith("vast, RTX 3090: there is none") and "away" in notes[1]


def test_an_offer_of_two_cards_is_estimated_as_two():
    card = [Place("vast", "RTX 4090")]
    (one,), _ = survey(of("medium"), card, offers=lambda gpu: [offer()])
    (two,), _ = survey(of("medium"), card, offers=lambda gpu: [offer(gpus=2, per_hour=1.0)])
    assert two.card == "2 x RTX 4090" and two.hours < one.hours
    assert one.dollars[0] == pytest.approx(one.hours * 0.5 + one.gigabytes * 0.01)


# this machine


def nvidia_smi(folder: Path, says: str, code: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{says}'\nexit {code}\n")
    program.chmod(0o755)


def test_this_machine_is_what_nvidia_smi_says(no_gpu):
    nvidia_smi(no_gpu, "NVIDIA GeForce RTX 3060, 8192\\nNVIDIA GeForce RTX 3060, 8192\\n")
    assert here() == Place("local", "NVIDIA GeForce RTX 3060", gpus=2, memory=8.0)
    (row,), _ = survey(of("large"), [replace(here(), gpus=1)])
    assert row.fits == "recomputing"  # of the card with 12 GiB it would be yes


@pytest.mark.parametrize(
    ("says", "code"), [("No devices were found", 0), ("", 0), ("oops, 1024", 9), ("a, [N/A]", 0)]
)
def test_without_a_gpu_it_is_the_cpu(no_gpu, says, code):
    nvidia_smi(no_gpu, says, code)
    assert here().gpu is None and here().cores >= 1


# the command


def test_the_table(no_gpu):
    told = launch("plan", "--size", "medium", "--data", "tinyshakespeare", "--gpu", "H100_SXM")
    assert told.code == 0 and told.err == ""
    lines = told.out.splitlines()
    assert lines[0].startswith("medium: 109,529,856 parameters, 20,000 steps, 5,242,880,000 tokens")
    assert lines[2].split()[:5] == ["target", "card", "fits", "time", "sessions"]
    assert [line.split()[0] for line in lines[3:7]] == ["local", "kaggle", "colab", "vast"]
    assert "  2.9 h " in lines[6] and "41 % of 989 TFLOP/s in bf16, measured" in lines[6]
    assert "  ~48 h " in lines[4] and "assumed" in lines[4]
    assert "kaggle gives some 30 hours a week: 2 weeks" in told.out
    assert "--checkpoint-every 30m sends less" in told.out
    assert all(need in told.out for need in NEEDS.values())
    assert not (no_gpu / "artifacts").exists()


def test_json_says_the_same(no_gpu):
    words = ["--size", "large", "--data", "tinyshakespeare", "--gpu", "H200", "--gpu", "L40S"]
    told = json.loads(launch("plan", *words, "--json").out)
    assert told["size"] == "large" and told["tokens"] == tokens(of("large"))
    rows = told["targets"]
    assert [row["target"] for row in rows] == ["local", "kaggle", "colab", "vast", "vast"]
    h200, unknown = rows[3:]
    assert h200["hours"] == pytest.approx(hours(of("large"), "H200") + 1 / 6, rel=0.02)
    assert h200["dollars"] is None and not h200["measured"]  # nobody has told what it costs
    assert (unknown["fits"], unknown["hours"], unknown["dollars"]) == ("unknown", None, None)
    assert rows[1]["dollars"] == [0, 0] and rows[1]["needs"] == NEEDS["kaggle"]


def test_what_is_unknown_is_said(no_gpu):
    told = launch("plan", "--size", "small", "--data", "https://example.com/a.txt", "--gpu", "X1")
    (row,) = (line for line in told.out.splitlines() if line.startswith("vast    X1"))
    assert row.split()[2:] == [
        "unknown",
        *["no", "peak", "is", "known", "here", "of", "such", "a", "card"],
    ]
    assert "how long the text is, is unknown" in told.out


def test_a_long_time_between_checkpoints_needs_no_advice(no_gpu):
    words = ["plan", "--size", "medium", "--data", "tinyshakespeare", "--checkpoint-every"]
    assert "sends less" not in launch(*words, "30m").out
    wrong = launch(*words, "soon")
    assert wrong.code == 2 and "'soon' is not a duration" in wrong.err


@pytest.mark.parametrize("words", [["--size", "huge"], ["--hours-per-session", "0"]])
def test_a_mistake_is_one_of_usage(no_gpu, words):
    assert launch("plan", *words).code == 2


def test_live_is_there_if_somebody_can_be_asked(no_gpu):
    words = ["--size", "medium", "--data", "tinyshakespeare", "--gpu", "RTX 4090"]
    assert CliRunner().invoke(command(), [*words, "--live"]).exit_code == 2
    asked = []

    def offers(gpu: str) -> list[Offer]:
        asked.append(gpu)
        return [offer(total=12.0)]

    ours = command(offers, lambda: 4.5)
    assert CliRunner().invoke(ours, words).exit_code == 0 and asked == []
    told = CliRunner().invoke(ours, [*words, "--live"]).output
    assert asked == ["RTX 4090"] and "$12" in told
    assert "kaggle: 4.5 h of GPU time are left this week" in told

    def refuses() -> float:
        raise Refused("there is no token: kaggle auth login")

    told = CliRunner().invoke(command(None, refuses), [*words, "--live"]).output
    assert "kaggle: there is no token" in told and "prices are typical" in told


def test_planning_loads_no_large_library(no_gpu):
    source = """
import sys
from launchers import cli

sys.argv = ["launch", "plan", "--size", "large", "--data", "tinyshakespeare", "--json"]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code
heavy = {"torch", "numpy", "fsspec", "rich", "vastai", "kaggle", "docker"}
print(sorted({name.split(".")[0] for name in sys.modules} & heavy), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True
    )
    assert told.stderr == "[]\n" and json.loads(told.stdout)["size"] == "large"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0.001, "1 min"),
        (0.42, "25 min"),
        (0.94, "56 min"),
        (1, "1.0 h"),
        (3.46, "3.5 h"),
        (38.4, "38 h"),
        (140, "6 days"),
        (3650, "5 months"),
        (40_000, "5 years"),
    ],
)
def test_hours_as_people_say_them(number, words):
    assert spoken_hours(number) == words
