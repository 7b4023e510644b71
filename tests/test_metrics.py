"""Lines of metrics in parts, peaks and utilisation, and the verb that shows them."""

import itertools
import json
import math
import random
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from commands import TOY_RECIPE, pipeline
from pipelines import run, toy_engine

from model.config import SIZES
from model.gpt import GPT
from model.parallel import Team
from model.trainer import StepReport, Trainer
from pipeline import journal, metrics, peaks
from pipeline.cards import flops_per_token, listed
from pipeline.divergence import Diverged
from pipeline.engine.remembered import remember
from pipeline.errors import Interrupted
from pipeline.journal import Journal, is_part, last_step
from pipeline.metrics import Meter, number

CPU = torch.device("cpu")
STEPS = 12  # of the toy engine


def told(paths: list[Path]) -> list[int]:
    return [json.loads(line)["step"] for path in paths for line in path.read_text().splitlines()]


# lines in parts


def test_many_checkpoints_make_few_parts_and_copy_little(tmp_path, monkeypatch):
    """1,000 checkpoints of 10 steps: the parts are those of a binary counter."""
    copied = 0
    concatenate = journal._concatenate

    def counted(parts, whole):
        nonlocal copied
        concatenate(parts, whole)
        copied += whole.stat().st_size

    monkeypatch.setattr(journal, "_concatenate", counted)
    lines, most = Journal(tmp_path / "kept", {}), 0
    for step in range(1, 10_001):
        lines.add({"step": step})
        if step % 10 == 0:
            most = max(most, len(lines.cut(step)))
    parts = lines.cut(10_000)
    assert told(parts) == list(range(1, 10_001))
    assert most <= 12
    size = sum(part.stat().st_size for part in parts)
    assert copied < 12 * size
    assert all(is_part(part.name) for part in parts) and last_step(parts[-1].name) == 10_000


def test_a_large_part_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_WHOLE", 1000)
    lines = Journal(tmp_path / "kept", {})
    for step in range(1, 1001):
        lines.add({"step": step})
        if step % 10 == 0:
            parts = lines.cut(step)
    assert told(parts) == list(range(1, 1001))
    assert all(part.stat().st_size < 3000 for part in parts)
    assert len(parts) < 20


def test_what_a_checkpoint_got_is_never_written_to_and_can_be_gone_back_to(tmp_path):
    """Its parts are links: their bytes must stay however the parts behind them are merged."""
    seed = 8_113
    print(f"seed {seed}")
    draw, lines = random.Random(seed), Journal(tmp_path / "kept", {})
    given, checkpoints = [], [(0, {})]
    step = returns = 0
    for at in range(300):
        step += 1
        lines.add({"step": step})
        if draw.random() < 0.3:
            files = {}
            for part in lines.cut(step):
                files[part.name] = tmp_path / f"{at} {part.name}"
                files[part.name].hardlink_to(part)
                given.append((files[part.name], files[part.name].read_bytes()))
            checkpoints.append((step, files))
        elif draw.random() < 0.1:
            del checkpoints[max(1, len(checkpoints) - draw.randrange(3)) :]
            seen, (step, files) = step, checkpoints[-1]
            returns += 1
            untold = lines.back(files, {"step": step, "back_from": seen, "peak": 1 / returns})
            assert 1 <= untold <= returns
    assert all(copy.read_bytes() == before for copy, before in given)
    lines.finish(tmp_path / "whole")
    whole = [json.loads(line) for line in (tmp_path / "whole").read_text().splitlines()]
    assert [line["step"] for line in whole if "peak" not in line] == list(range(1, step + 1))
    peaks = [line["peak"] for line in whole if "peak" in line]
    assert returns > 5 and peaks == [1 / number for number in range(1, returns + 1)]


def test_a_checkpoint_without_a_new_line_adds_no_part(tmp_path):
    lines = Journal(tmp_path / "kept", {})
    assert lines.cut(0) == []
    lines.add({"step": 1})
    assert lines.cut(1) == lines.cut(1)


def test_at_the_end_it_is_one_file(tmp_path):
    lines = Journal(tmp_path / "kept", {})
    for step in range(1, 8):
        lines.add({"step": step})
        if step % 2 == 0:
            lines.cut(step)
    lines.finish(tmp_path / "whole")
    assert told([tmp_path / "whole"]) == list(range(1, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, None), (math.inf, None), (1 / 3, 0.333333), (12345678, 12345700)],
)
def test_a_number_is_what_json_can_say(value, shown):
    assert number(value) == shown
    json.loads(json.dumps(number(value)), parse_constant=pytest.fail)


# peaks


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("Tesla T4", "float16", 65.1),
        ("Tesla T4", "float32", 8.1),
        ("Tesla T4", "tf32", 8.1),
        ("Tesla P100-PCIE-16GB", "float32", 9.3),
        ("Tesla P100-SXM2-16GB", "float16", 21.2),
        ("NVIDIA GeForce RTX 3060", "bfloat16", 25.5),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71),
        ("NVIDIA GeForce RTX 4070", "tf32", 29),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA L4", "float32", 30.3),
        ("A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A100-PCIE-40GB", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989),
    ],
)
def test_known_cards(name, precision, tera):
    found = listed(name, precision)
    assert found == peaks.Peak(tera * 1e12, measured=False)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3060 Ti",
        "NVIDIA GeForce RTX 3060 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4070 SUPER",
        "NVIDIA GeForce RTX 4070 Ti SUPER",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA L40",
        "NVIDIA L40S",
        "NVIDIA T400",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "cpu",
        "",
    ],
)
def test_a_card_with_another_name_is_another_card(name):
    assert listed(name, "float32") is None


@pytest.mark.parametrize("name", ["Tesla T4", "Tesla P100-PCIE-16GB"])
def test_what_a_card_has_no_units_for_is_measured(name):
    assert listed(name, "bfloat16") is None


def test_a_measured_peak_is_quick_and_measured_once():
    peaks.measured.cache_clear()
    start = time.monotonic()
    found = peaks.measured(CPU, torch.float32)
    assert time.monotonic() - start < 5.0  # one second, if nobody else were here
    assert found.measured and found.flops > 1e8
    assert peaks.measured(CPU, torch.float32) is found


def test_a_first_product_that_takes_long_is_no_measure(monkeypatch):
    """It loads a library, or waits for what the device was asked before."""
    took = itertools.chain([2.0], itertools.repeat(1e-3))  # of each product, in turn
    readings = itertools.chain.from_iterable((0.0, next(took)) for _ in range(99))
    clock = itertools.accumulate(readings)
    monkeypatch.setattr(peaks, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(peaks, "_LARGEST", 512)
    peaks.measured.cache_clear()
    assert peaks.measured(CPU, torch.float32).flops == pytest.approx(2 * 512**3 / 1e-3)
    peaks.measured.cache_clear()


@pytest.mark.parametrize("size", SIZES)
def test_operations_of_a_token(size):
    """Six for each weight that a token is multiplied by, and attention; lookups cost nothing."""
    config, vocab = SIZES[size], 1000
    with torch.device("meta"):
        model = GPT(config, vocab)
    used = sum(p.numel() for name, p in model.named_parameters() if name != "embedding.weight")
    used += vocab * config.width if config.tied else 0
    attention = 12 * config.layers * config.width * config.context
    assert flops_per_token(config, vocab) == 6 * used + attention


# the meter


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Model:
    compute_dtype: torch.dtype = torch.float32
    config: object = SIZES["tiny"]
    vocab_size: int = 1000


@dataclass
class Trained:
    device: torch.device = CPU
    model: Model = field(default_factory=Model)
    team: Team = field(default_factory=Team)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()

    def measured(*_: object) -> peaks.Peak:
        clock.now += 0.9  # no training goes on meanwhile
        return peaks.Peak(1e9, True)

    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(peaks, "measured", measured)
    return clock


def test_a_speed_is_that_of_the_last_second(clock):
    meter = Meter(Trained(), 100)
    speeds = []
    for step in range(1, 61):  # ten steps a second, then twenty
        clock.now += 0.1001 if step <= 20 else 0.05005
        meter.lap(step)
        speeds.append(meter.values()["tokens_per_second"])
    assert speeds[:2] == [None, None], "the first was waited for, and of the second the start"
    assert speeds[2] == pytest.approx(999, abs=2)
    assert speeds[19] == pytest.approx(999, abs=2)
    assert speeds[59] == pytest.approx(1998, abs=4)


def test_a_peak_is_measured_when_a_run_lasts(clock):
    meter = Meter(Trained(), 100)
    for step in range(1, 9):
        clock.now += 1.0
        meter.lap(step)
    assert meter.values()["mfu"] is None and meter.shown() == {"tokens/s": "100"}
    for step in range(9, 13):
        clock.now += 1.0
        meter.lap(step)
        assert meter.values()["tokens_per_second"] == 100
    expected = 100 * flops_per_token(SIZES["tiny"], 1000) / 1e9
    assert meter.values()["mfu"] == pytest.approx(expected, rel=1e-3)
    assert meter.shown() == {"tokens/s": "100", "MFU": f"{expected:.1%} of a measured peak"}


def test_a_listed_peak_is_there_from_the_start(clock, monkeypatch):
    monkeypatch.setattr(peaks, "known", lambda *_: peaks.Peak(1e9, False))
    meter = Meter(Trained(), 100)
    for step in (1, 2, 3):
        clock.now += 1.0
        meter.lap(step)
    assert meter.shown()["MFU"].endswith("%")


def test_the_speed_of_a_run_is_right_from_its_first_steps(clock, tmp_path, corpus, monkeypatch):
    """What a step has measured is read a step late, and its time is not."""
    engine, step = toy_engine(tmp_path / "store", corpus), Trainer.run_step

    def slow(trainer):
        clock.now += 0.25
        return step(trainer)

    monkeypatch.setattr(Trainer, "run_step", slow)
    run(engine)
    lines = pipeline("metrics", "--store", tmp_path / "store", "--json").out.splitlines()
    told = [json.loads(line) for line in lines]
    speeds = [line["tokens_per_second"] for line in told if "lr" in line]
    batch = engine.recipe.train.batch * engine.recipe.model.context
    assert speeds[:2] == [None, None] and set(speeds[2:]) == {4 * batch}


# the verb


def test_the_table_shows_each_step_and_each_look(finished):
    said = pipeline("metrics", "--store", finished)
    assert said.code == 0, said.err
    rows = said.out.splitlines()
    assert rows[0].split()[:2] == ["step", "loss"]
    assert [int(row.split()[0]) for row in rows[1:]] == [
        *range(1, 5),
        *range(4, 9),
        *range(8, 13),
        12,
    ]
    assert sum("bits per byte" in row for row in rows) == 3
    few = pipeline("metrics", "--store", finished, "--every", "6").out.splitlines()[1:]
    assert [int(row.split()[0]) for row in few] == [4, 6, 8, 12, 12]


def test_json_is_what_is_stored(finished):
    said = pipeline("metrics", "--store", finished, "--json", "--follow")
    lines = [json.loads(text) for text in said.out.splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, 13))
    assert {"loss", "gradient_norm", "lr", "tokens_per_second", "memory", "mfu", "skipped"} < set(
        lines[0]
    )


def test_an_unfinished_run_is_shown_as_far_as_its_newest_checkpoint(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "encode")
    remember(engine.store, engine.recipe)
    said = pipeline("metrics", "--store", tmp_path / "store")
    assert said.code == 0 and "no step of this run is stored" in said.err
    for more in range(3):
        steps = iter(range(100))
        with pytest.raises(Interrupted):
            run(engine, stopping=lambda steps=steps: next(steps) == 2)
        said = pipeline("metrics", "--store", tmp_path / "store", "--json")
        lines = [json.loads(text) for text in said.out.splitlines()]
        assert [line["step"] for line in lines if "lr" in line] == list(range(1, 3 * more + 4))


def test_follow_goes_on_until_the_result(tmp_path, corpus, monkeypatch):
    """Each wait for a checkpoint is another session of the run."""
    from pipeline.cli import metrics as verb

    engine = toy_engine(tmp_path / "store", corpus)
    with pytest.raises(Interrupted):
        run(engine, stopping=lambda: bool(engine.plan()[3].key))
    waits = 0

    def sleep(_: float) -> None:
        nonlocal waits
        waits += 1
        steps = iter(range(100))
        try:
            run(engine, stopping=lambda: next(steps) == 4)
        except Interrupted:
            return

    monkeypatch.setattr(verb, "time", types.SimpleNamespace(sleep=sleep))
    said = pipeline("metrics", "--store", tmp_path / "store", "--json", "--follow")
    lines = [json.loads(text) for text in said.out.splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, 13))
    assert waits >= 2


def test_follow_shows_what_is_done_again(tmp_path, corpus, monkeypatch):
    """All up to a checkpoint is shown when the step behind it goes back to the one before."""
    from pipeline.cli import metrics as verb

    def judge(report: StepReport, _: int) -> None:
        if report.step in ill:
            raise Diverged("the loss became absurd", report.loss, ill.pop())

    ill, asked = [], iter(range(1000))
    monkeypatch.setattr("pipeline.loop.judge", judge)
    engine = toy_engine(tmp_path / "store", corpus)
    with pytest.raises(Interrupted):
        run(engine, "train", stopping=lambda: next(asked) > 10)
    train = next(planned for planned in engine.plan() if planned.stage.name == "train")
    reached = train.state.checkpoints[-1].body["step"]
    ill.append(reached + 1)
    monkeypatch.setattr(verb, "time", types.SimpleNamespace(sleep=lambda _: run(engine, "train")))
    said = pipeline("metrics", "--store", tmp_path / "store", "--json", "--follow")
    lines = [json.loads(text) for text in said.out.splitlines()]
    at = next(at for at, line in enumerate(lines) if "back_from" in line)
    shown, again = (
        [line["step"] for line in part if "lr" in line] for part in (lines[:at], lines[at:])
    )
    assert lines[at]["step"] < reached == lines[at]["back_from"] - 1 < STEPS
    assert shown == list(range(1, reached + 1))
    assert again == list(range(lines[at]["step"] + 1, STEPS + 1))


def test_events_need_their_package(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = pipeline("metrics", "--store", finished, "--tensorboard", tmp_path / "events")
    assert said.code == 1 and "pip install 'ignite-llm[tensorboard]'" in said.err
    assert not (tmp_path / "events").exists()


def test_events_hold_every_number(finished, tmp_path, monkeypatch):
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert purge_step == 0

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    said = pipeline("metrics", "--store", finished, "--tensorboard", tmp_path / "events")
    assert said.code == 0 and f"tensorboard --logdir {tmp_path / 'events'}" in said.out
    assert [step for name, _, step in written if name == "loss"] == list(range(1, 13))
    assert [step for name, _, step in written if name == "validation_loss"] == [4, 8, 12]


def test_the_package_reads_what_was_written(finished, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = pipeline("metrics", "--store", finished, "--tensorboard", tmp_path / "events")
    assert said.code == 0, said.err
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))


def test_a_recipe_that_never_ran_has_no_metrics(finished, corpus):
    said = pipeline(
        "metrics", "--store", finished, "--data", corpus, *TOY_RECIPE, "--set", "train.lr=0.1"
    )
    assert said.code == 0 and said.out == "" and "no step of this run is stored" in said.err
