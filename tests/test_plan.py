"""`launch plan`: what is estimated, held against what was measured, and how it is told."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from commands import launch
from test_trainer import SHAPE, TRAIN
from toys import noisy_text

from launchers.estimate import (
    GIB,
    corpus_bytes,
    disk,
    hours,
    on_cpu,
    on_gpu,
    state_bytes,
    tokens,
    traffic,
    weights_bytes,
)
from launchers.plan import GPUS, TYPICAL, Place, here, places, survey
from launchers.plan_command import NEEDS, command, spoken_hours
from launchers.target import Away, Offer, Refused
from model.batches import Batches
from model.config import SIZES
from model.gpt import GPT
from model.trainer import Trainer
from pipeline import recipe
from pipeline.cards import CARDS, find, listed
from pipeline.memory import fixed_bytes, token_bytes
from pipeline.recipe import Recipe, TokenizerConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
SIX = ["model.layers=6", "model.width=256", "model.feed_forward=1024", "model.heads=8"]


def measured(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def of(size: str, *settings: str) -> Recipe:
    return recipe.load(size, data="tinyshakespeare", settings=settings)


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    """A machine without nvidia-smi, and an empty directory to be in."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IGNITE_STORE", raising=False)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# speeds


def test_an_h100_is_as_fast_as_it_was():
    told = measured("gpu-training")
    small = measured("gpu")["quality"]["segments"][0]
    for size, speed in (
        ("small", small["tokens_per_second"]),
        ("medium", told["medium"]["ours"]["tokens_per_second"]),
        ("large", told["large"]["ours, before"]["tokens_per_second"]),
    ):
        found = on_gpu(of(size), "NVIDIA H100 80GB HBM3")
        assert found.tokens_per_second == pytest.approx(speed, rel=0.03), size
        assert found.measured and found.basis.endswith("of 989 TFLOP/s in bf16, measured")


def test_nothing_else_is_called_measured():
    medium = of("medium")
    for card in CARDS:
        assert on_gpu(medium, card.name).measured == (card.name == "H100 SXM")
    assert not on_gpu(medium, "H100 SXM", 2).measured
    assert not on_gpu(medium, "H100 SXM", memory=4).measured  # it recomputes
    assert not on_gpu(of("tiny"), "H100 SXM").measured
    assert not on_cpu(medium, 2, "bf16").measured


def test_an_assumed_share_is_near_what_others_publish():
    """nanoGPT's README: 10.6 M parameters make 455,000 tokens a second on an A100."""
    shape = ["model.layers=6", "model.width=384", "model.heads=6", "model.feed_forward=1536"]
    baby = of("small", *shape, "model.context=256", "tokenizer.vocab_size=258")
    assert on_gpu(baby, "A100 SXM4").tokens_per_second == pytest.approx(455_000, rel=0.2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_cores_are_as_fast_as_they_were(precision):
    six = of("tiny", *SIX, "model.context=256")
    speed = measured("train_cpu")["rows"][f"ours {precision}"]["tokens_per_second"]
    assert on_cpu(six, 2, precision).tokens_per_second == pytest.approx(speed, rel=0.03)


def test_tiny_on_two_cores_takes_what_it_took():
    runs = measured("tiny")["runs"]
    speeds = sorted(run["tokens_per_second"] for run in runs)
    found = on_cpu(of("tiny"), 2, "bf16", corpus_bytes("tinyshakespeare"))
    assert speeds[0] <= found.tokens_per_second <= speeds[-1]
    training = sorted(run["train_seconds"] for run in runs)
    assert training[0] * 0.9 <= found.training <= training[2] * 1.1  # the median
    others = [
        sum(run[f"{stage}_seconds"] for stage in ("prepare", "tokenizer", "encode", "evaluate"))
        for run in runs
    ]
    assert max(others) < found.others < max(others) + 30


def test_more_work_takes_longer_and_more_cards_less():
    base = of("medium")
    more = replace(base, train=replace(base.train, steps=2 * base.train.steps))
    assert tokens(base) == 20_000 * 256 * 1024
    for gpu in GPUS:
        one, two = on_gpu(base, gpu), on_gpu(base, gpu, 2)
        assert on_gpu(more, gpu).training == pytest.approx(2 * one.training)
        assert one.training / 2 < two.training < one.training
        assert one.hours > one.training / 3600
    assert [on_gpu(base, gpu).hours for gpu in GPUS] == sorted(
        (on_gpu(base, gpu).hours for gpu in GPUS), reverse=True
    )
    for small, large in pairwise(SIZES):
        assert hours(of(small), "RTX 4090") < hours(of(large), "RTX 4090")


def test_a_text_adds_its_reading_and_its_scoring():
    base = of("medium")
    nothing, much = (on_gpu(base, "RTX 4090", corpus=size) for size in (None, 10**9))
    assert much.training == nothing.training
    assert 500 < much.others - nothing.others < 2000


def test_hours_are_those_that_targets_ask_for():
    base = of("large")
    assert hours(base, "RTX_4090") == hours(base, "NVIDIA GeForce RTX 4090")
    assert hours(base, "RTX 4090") == on_gpu(base, "RTX 4090").hours
    assert hours(base, "RTX 4090", memory=4) is None  # it does not fit
    assert hours(base, "RTX 4090 D") is None and hours(base, "") is None


# cards


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_can_be_estimated(card):
    assert find(card.name) is card and find(card.name.replace(" ", "_")) is card
    assert on_gpu(of("tiny"), card.name).hours > 0
    assert listed(card.name, "float32") == card.peak("float32")


@pytest.mark.parametrize(
    ("name", "torch_name"),
    [
        ("Tesla T4", "Tesla T4"),
        ("RTX 3060", "NVIDIA GeForce RTX 3060"),
        ("RTX 5090", "NVIDIA GeForce RTX 5090"),
        ("L4", "NVIDIA L4"),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB"),
        ("A100 PCIE", "NVIDIA A100 80GB PCIe"),
        ("H100 SXM", "NVIDIA H100 80GB HBM3"),
        ("H100 PCIE", "NVIDIA H100 PCIe"),
        ("H200", "NVIDIA H200"),
    ],
)
def test_a_card_has_one_entry_whoever_names_it(name, torch_name):
    assert find(torch_name) is find(name) is not None


def test_a_price_is_that_of_a_known_card():
    assert all(find(name).name == name for name in TYPICAL)
    assert all(0 < least <= most for least, most in TYPICAL.values())


# memory


def test_memory_is_a_little_more_than_was_seen():
    """Ours is for a run that is not compiled, and the one that was seen was."""
    told, memory = measured("gpu-training"), 79.6 * GIB
    for size, ours in (("medium", "ours"), ("large", "ours, before")):
        shape, count = SIZES[size], told[size]["micro_batch"]
        expected = fixed_bytes(shape, told["vocabulary"], False, memory)
        expected += count * shape.context * token_bytes(shape, False)
        seen = told[size][ours]["peak_bytes"]
        assert seen < expected < 1.15 * seen, size


@pytest.mark.parametrize(
    ("size", "memory", "fits", "micro_batch"),
    [  # as the table of docs/training.md has them
        ("medium", 4, "recomputing", 16),
        ("medium", 8, "yes", 8),
        ("large", 4, "no", 0),
        ("large", 8, "recomputing", 8),
        ("large", 24, "yes", 8),
    ],
)
def test_what_fits_is_what_fit_would_find(size, memory, fits, micro_batch):
    found = on_gpu(of(size), "RTX 4090", memory=memory)
    assert (found.fits, found.micro_batch) == (fits, micro_batch)
    assert (found.training is None) == (fits == "no") == (found.hours is None)


def test_recomputing_costs_a_third():
    short, enough = (on_gpu(of("medium"), "RTX 4090", memory=memory) for memory in (4, 24))
    assert short.training == pytest.approx(enough.training * 4 / 3)


@pytest.mark.parametrize(
    ("settings", "fits", "micro_batch"),
    [
        ((), "recomputing", 8),
        (("model.dropout=0.1",), "recomputing", 4),
        (("train.ema=0.9",), "no", 0),
    ],
)
def test_masks_and_the_mean_of_the_weights_want_room(settings, fits, micro_batch):
    found = on_gpu(of("large", *settings), "RTX 4090", memory=8)
    assert (found.fits, found.micro_batch) == (fits, micro_batch)


# what is sent


@pytest.mark.parametrize("ema", [0.0, 0.99])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_as_large_as_it_is(optimizer, ema):
    base, vocabulary = of("tiny"), 258
    told = replace(
        base,
        model=SHAPE,
        train=replace(TRAIN, optimizer=optimizer, ema=ema),
        tokenizer=TokenizerConfig(vocabulary),
    )
    batches = Batches(noisy_text(600, vocabulary), SHAPE.context, TRAIN.batch, TRAIN.seed)
    device = torch.device("cpu")
    run = Trainer(GPT(SHAPE, vocabulary), told.train, batches, micro_batch=8, device=device)
    tensors = {name: each for name, each in run.state().items() if each.ndim}
    assert tensors.pop("scaler").nbytes < 100
    assert state_bytes(told) == sum(each.nbytes for each in tensors.values())
    assert weights_bytes(told) == sum(each.nbytes for each in run.weights().values())


def test_traffic_is_checkpoints_and_no_more_than_the_network_takes():
    large = of("large")
    often, seldom = (traffic(large, 36_000, every=every) for every in (60, 1800))
    assert often.gap > 60 and often.up / 36_000 < 25e6 * 1.4  # the best weights come on top
    assert seldom.gap == 1800
    assert seldom.up == pytest.approx(
        20 * (state_bytes(large) + weights_bytes(large)) + 2 * weights_bytes(large)
    )
    again = traffic(large, 36_000, sessions=3, every=1800)
    assert again.down - seldom.down > 2 * state_bytes(large)
    assert disk(large) > 4 * state_bytes(large)


def test_a_text_is_as_long_as_its_files(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    (tmp_path / "below" / "b.txt").write_bytes(b"x" * 11)
    assert corpus_bytes(str(tmp_path / "a.txt")) == 100
    assert corpus_bytes(str(tmp_path)) == 111
    assert corpus_bytes("https://example.com/a.txt") is None
    assert corpus_bytes(str(tmp_path / "missing")) is None


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


def test_the_default_cards_are_known():
    assert all(find(name) for name in GPUS)
