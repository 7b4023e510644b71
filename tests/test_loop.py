"""The training loop: who computed what, going back when the loss runs away, what is said."""

import contextlib
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import MACHINE, SETTINGS
from toys import noisy_text

from model.batches import Batches
from model.gpt import GPT
from model.late import Late
from model.trainer import StepReport, Trainer
from pipeline import recipe
from pipeline.errors import Interrupted
from pipeline.loop import Loop
from pipeline.stage import Context
from pipeline.team import Nobody

VOCAB, STEPS = 270, 12
TOKENS = {"validation_bytes": 600, "validation_tokens": 300}
FILES = ("weights.safetensors", "best.safetensors", "history.json")


class Sickly(Trainer):
    """Diverges at some steps as long as its learning rate is above some share of the recipe's."""

    ill: tuple[tuple[int, float], ...] = ()  # (step, largest share that is well)

    def run_step(self) -> StepReport:
        report = super().run_step()
        if any(report.step == step and self.lr_factor > most for step, most in self.ill):
            return replace(report, loss_there=Late(torch.tensor(math.nan)))
        return report


class Runs:
    """A training run in any number of sessions; its store is a folder for each checkpoint."""

    def __init__(self, root: Path, ill=(), rebuilds: bool = True, every: int = 4) -> None:
        self.root, self.ill, self.rebuilds = root, ill, rebuilds
        self.machine = replace(MACHINE, checkpoint_steps=every)
        self.chosen = recipe.load("tiny", data="text.txt", settings=SETTINGS)
        self.saved: dict[str, Path] | None = None
        self.older: list[dict[str, Path]] = []
        self.states: dict[int, bytes] = {}
        self.notes: list[str] = []
        self.needs: list[tuple[str, float]] = []
        self.returns: list[int] = []
        self.sessions = self.made = 0

    def trainer(self) -> Trainer:
        self.made += 1
        shape, train = self.chosen.model, self.chosen.train
        made = Sickly(
            GPT(shape, VOCAB, 0),
            train,
            Batches(noisy_text(600, VOCAB), shape.context, train.batch, 0),
            micro_batch=4,
            device=torch.device("cpu"),
        )
        made.ill = self.ill
        return made

    def save(self, step: int, files: list[Path]) -> None:
        folder = self.root / f"checkpoint {self.sessions}-{step}"
        shutil.rmtree(folder, ignore_errors=True)  # of before it went back
        folder.mkdir()
        self.saved = {}
        for file in files:
            os.chmod(file, 0o444)
            self.saved[file.name] = file.rename(folder / file.name)
        self.states[step] = self.saved["state.safetensors"].read_bytes()
        self.older.append(self.saved)

    def earlier(self, patient: bool) -> dict[str, Path] | None:
        """What a store had before the newest, when this session began."""
        return self.older[-2] if len(self.older) > 1 else None

    def run(self, until: int = 99, share: float = 1.0) -> Path:
        """One session, interrupted after step ``until``; returns where its files lie.

        With ``share`` only once so much of the recipe's learning rate is left.
        """
        self.sessions += 1
        out = self.root / f"session {self.sessions}"
        out.mkdir()
        context = Context(
            self.chosen,
            self.machine,
            {},
            out,
            restored=self.saved,
            earlier=self.earlier,
            went_back=self.returns.append,
            stopping=lambda: (
                self.loop.trainer.step >= until and self.loop.trainer.lr_factor <= share
            ),
            save=self.save,
            note=self.notes.append,
            needs=lambda *told: self.needs.append(told),
        )
        rebuild = self.trainer if self.rebuilds else None
        text = noisy_text(300, VOCAB)
        self.loop = Loop(context, self.trainer(), text, TOKENS, rebuild)
        if until > STEPS:
            self.metrics = self.loop.run()
        else:
            with pytest.raises(Interrupted):
                self.loop.run()
        return out


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def steps(told: list[dict]) -> list[int]:
    return [line["step"] for line in told if "lr" in line]


# who computed which part


@pytest.mark.parametrize("stops", [(), (5,), (1, 2, 3, 11, 12), (4, 8)])
def test_each_session_is_a_segment_and_every_step_is_in_one(tmp_path, stops):
    run = Runs(tmp_path)
    for stop in stops:
        run.run(until=stop)
    out = run.run()
    told = json.loads((out / "segments.json").read_text())
    ends = [*stops, STEPS] if 12 not in stops else stops
    assert [(each["from"], each["to"]) for each in told] == [
        (start + 1, end) for start, end in zip((0, *ends), ends)
    ]
    assert run.metrics["segments"] == told
    for each in told:
        assert (each["device"], each["precision"], each["micro_batch"]) == ("cpu", "float32", 4)
        assert each["world_size"] == 1 and each["torch"] == torch.__version__
        tokens = (each["to"] - each["from"] + 1) * 4 * 16
        assert each["tokens_per_second"] * each["seconds"] == pytest.approx(tokens, rel=0.2)
        assert (each["skipped"], each["rollbacks"]) == (0, 0)


def test_the_segment_of_a_killed_session_ends_where_the_next_begins(tmp_path):
    run = Runs(tmp_path, every=4)
    run.run(until=10)
    folder = tmp_path / "checkpoint 1-8"  # the one of step 10 did not arrive
    run.saved = {path.name: path for path in folder.iterdir()}
    out = run.run()
    told = json.loads((out / "segments.json").read_text())
    assert [(each["from"], each["to"]) for each in told] == [(1, 8), (9, 12)]
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, 13))


def test_a_checkpoint_of_an_older_version_is_gone_on_from(tmp_path):
    run = Runs(tmp_path)
    run.run(until=5)
    old = ("state.safetensors", "history.json", "best.safetensors")
    run.saved = {name: run.saved[name] for name in old}
    out = run.run()
    assert [each["from"] for each in json.loads((out / "segments.json").read_text())] == [6]
    assert steps(lines(out / "metrics.jsonl")) == list(range(6, 13))


# a line a step


@pytest.mark.parametrize("stops", [(), (5,), (1, 2, 3, 11), (4, 8)])
def test_metrics_have_each_step_once_and_each_look(tmp_path, stops):
    run = Runs(tmp_path, every=1)
    for stop in stops:
        run.run(until=stop)
    out = run.run()
    told, history = lines(out / "metrics.jsonl"), json.loads((out / "history.json").read_text())
    assert steps(told) == list(range(1, STEPS + 1))
    losses = [line["loss"] for line in told if "lr" in line]
    assert losses == pytest.approx(history["losses"], rel=1e-5)
    looks = [line for line in told if "validation_loss" in line]
    assert [look["step"] for look in looks] == [4, 8, 12]
    for line, look in zip(looks, history["validation"]):
        assert line["validation_loss"] == pytest.approx(look["loss"], rel=1e-5)
        bits = look["loss"] / math.log(2) * 299 / 600
        assert line["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    first = next(line for line in told if "lr" in line)
    assert first["lr"] == pytest.approx(run.chosen.train.lr / 2)
    assert first["gradient_norm"] > 0 and first["skipped"] is False and first["memory"] > 1 << 20
    assert {file.name for file in out.iterdir()} == {*FILES, "segments.json", "metrics.jsonl"}


def test_ending_is_measured(tmp_path):
    run = Runs(tmp_path)
    run.run(until=5)
    assert {part for part, seconds in run.needs if seconds > 0} == {"step", "checkpoint"}
    assert sum(part == "checkpoint" for part, _ in run.needs) == 2


# what the trainer says


def test_whoever_waits_for_a_step_is_watched(tmp_path, monkeypatch):
    """A step is a sum over all processes, and on GPUs one that lacks a process never ends."""

    class Watched(Nobody):
        watched = False

        @contextlib.contextmanager
        def waiting(self):
            self.watched = True
            yield
            self.watched = False

    leader, waits = Watched(), []
    read = Late.item
    monkeypatch.setattr("pipeline.loop.Nobody", lambda: leader)
    monkeypatch.setattr(Late, "item", lambda late: (waits.append(leader.watched), read(late))[1])
    Runs(tmp_path).run()
    assert len(waits) == 2 * STEPS and all(waits)


def test_each_event_is_said_once(tmp_path):
    run = Runs(tmp_path)
    made = run.trainer

    def trainer() -> Trainer:
        changed = made()
        changed.events = [(1, "one"), (1, "two")]
        return changed

    run.trainer = trainer
    run.run()
    assert run.notes == ["step 1: one", "step 1: two"]
