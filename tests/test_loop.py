"""The training loop: who computed what, going back when the loss runs away, what is said."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import MACHINE, SETTINGS
from toys import noisy_text

from model.batches import Batches
from model.gpt import GPT
from model.trainer import StepReport, Trainer
from pipeline import recipe
from pipeline.checkpoint import Stored
from pipeline.errors import Interrupted
from pipeline.loop import Loop
from pipeline.stage import Context

VOCAB, STEPS = 270, 12
TOKENS = {"validation_bytes": 600, "validation_tokens": 300}
FILES = ("weights.safetensors", "best.safetensors", "history.json")


class Sickly(Trainer):
    """Diverges at some steps as long as its learning rate is above some share of the recipe's."""

    ill: tuple[tuple[int, float], ...] = ()  # (step, largest share that is well)

    def run_step(self) -> StepReport:
        report = super().run_step()
        if any(report.step == step and self.peak > most for step, most in self.ill):
            return replace(report, loss_there=torch.tensor(math.nan))
        return report


class Runs:
    """A training run in any number of sessions; its store is a folder for each checkpoint."""

    def __init__(self, root: Path, ill=(), rebuilds: bool = True, every: int = 4) -> None:
        self.root, self.ill, self.rebuilds = root, ill, rebuilds
        self.machine = replace(MACHINE, checkpoint_steps=every)
        self.chosen = recipe.load("tiny", data="text.txt", settings=SETTINGS)
        self.saved: dict[str, Path] | None = None
        self.states: dict[int, bytes] = {}
        self.notes: list[str] = []
        self.needs: list[tuple[str, float]] = []
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
        folder.mkdir()
        self.saved = {}
        for file in files:
            os.chmod(file, 0o444)
            self.saved[file.name] = file.rename(folder / file.name)
        self.states[step] = self.saved["state.safetensors"].read_bytes()

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
            stopping=lambda: self.loop.trainer.step >= until and self.loop.trainer.peak <= share,
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
        bits = look["loss"] / math.log(2) * 300 / 600
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


# a loss that runs away


def test_a_diverged_run_goes_back_to_its_newest_checkpoint(tmp_path):
    run = Runs(tmp_path, ill=[(7, 0.5)])
    out = run.run()
    assert run.notes == [
        "the loss became nan at step 7: back to step 4, and on with 0.5 of the recipe's "
        "learning rate"
    ]
    assert run.made == 1 and run.loop.trainer.peak == 0.5
    told = lines(out / "metrics.jsonl")
    assert steps(told) == list(range(1, STEPS + 1))
    assert [line for line in told if "back_from" in line] == [
        {"step": 4, "back_from": 7, "loss": None, "peak": 0.5}
    ]
    assert run.metrics["segments"][0]["rollbacks"] == 1
    history = json.loads((out / "history.json").read_text())
    assert len(history["losses"]) == STEPS
    assert [look["step"] for look in history["validation"]] == [4, 8, 12]


def test_what_is_gone_back_to_is_what_was_there(tmp_path):
    """With a learning rate that stays as it was, a run that went back ends as one that did not."""
    well, ill = Runs(tmp_path / "well"), Runs(tmp_path / "ill", ill=[(7, 0.5)])
    for run in (well, ill):
        run.root.mkdir()
    expected = well.run()
    out = _run_with_the_same_rate(ill)
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def _run_with_the_same_rate(run: Runs) -> Path:
    class Unmoved(Sickly):
        """Whatever it is told: its learning rate stays the recipe's."""

        def run_step(self) -> StepReport:
            told, self.peak = self.peak, 1.0
            report = Trainer.run_step(self)
            self.peak = told
            if any(report.step == step and told > most for step, most in self.ill):
                return replace(report, loss_there=torch.tensor(math.nan))
            return report

    made = run.trainer

    def trainer() -> Trainer:
        changed = made()
        changed.__class__ = Unmoved
        return changed

    run.trainer = trainer
    return run.run()


def test_the_best_weights_go_back_as_well(tmp_path):
    """Those of step 8, after the checkpoint of step 5, are of a step that was undone."""
    run = Runs(tmp_path, ill=[(9, 0.5)], every=5)
    run.run(until=6, share=0.5)
    assert "at step 9: back to step 5" in run.notes[0]
    before = (tmp_path / "checkpoint 1-5" / "best.safetensors").read_bytes()
    assert (tmp_path / "checkpoint 1-6" / "best.safetensors").read_bytes() == before


def test_a_run_that_has_no_checkpoint_starts_over(tmp_path):
    run = Runs(tmp_path, ill=[(3, 0.5)])
    out = run.run()
    assert run.made == 2 and run.loop.trainer.peak == 0.5
    assert run.notes[0].startswith("the loss became nan at step 3: back to step 0")
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, STEPS + 1))
    assert run.metrics["segments"][0]["from"] == 1


def test_a_resumed_run_goes_back_to_what_it_came_from(tmp_path):
    run = Runs(tmp_path, every=0)
    run.run(until=6)
    run.ill = [(8, 0.5)]
    run.run()
    assert "at step 8: back to step 6" in run.notes[0]
    assert [each["rollbacks"] for each in run.metrics["segments"]] == [0, 1]


def test_each_time_takes_half_and_the_fourth_gives_up(tmp_path):
    run = Runs(tmp_path, ill=[(7, 0.0)])
    with pytest.raises(
        ValueError, match=r"at step 7: the run has diverged.*--set train\.lr="
    ) as error:
        run.run()
    assert [note.split("on with ")[1].split()[0] for note in run.notes] == ["0.5", "0.25", "0.125"]
    lower = run.chosen.train.lr / 16
    assert f"--set train.lr={lower:g}" in str(error.value)
    assert "with 0.125 of its learning rate" in str(error.value)


def test_every_return_is_told_though_no_checkpoint_was_between(tmp_path):
    run = Runs(tmp_path, ill=[(7, 0.25)])
    out = run.run()
    told = [line["peak"] for line in lines(out / "metrics.jsonl") if "back_from" in line]
    assert told == [0.5, 0.25]
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, STEPS + 1))


def test_without_a_way_to_start_over_an_early_divergence_ends_it(tmp_path):
    run = Runs(tmp_path, ill=[(3, 0.5)], rebuilds=False)
    lower = run.chosen.train.lr / 2
    with pytest.raises(ValueError, match=f"diverged. Take a lower .*train.lr={lower:g}"):
        run.run()


def test_a_divergence_is_found_before_anything_is_saved(tmp_path):
    """What a step measured is read one step late, but not where a checkpoint is due."""
    run = Runs(tmp_path, ill=[(8, 0.5)])
    run.run()
    assert "at step 8: back to step 4" in run.notes[0]
    assert "peak" not in list(Stored(tmp_path / "checkpoint 1-4" / "state.safetensors"))
    assert Stored(tmp_path / "checkpoint 1-8" / "state.safetensors")["peak"].item() == 0.5


def test_a_run_that_went_back_is_resumed_to_the_same_bytes(tmp_path):
    whole, cut = Runs(tmp_path / "whole", [(7, 0.5)]), Runs(tmp_path / "cut", [(7, 0.5)])
    for run in (whole, cut):
        run.root.mkdir()
    expected = whole.run()
    cut.run(until=9)
    out = cut.run()
    assert cut.loop.trainer.peak == 0.5
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    told = lines(out / "metrics.jsonl")
    assert steps(told) == list(range(1, STEPS + 1))
    assert sum("back_from" in line for line in told) == 1


def test_the_trainer_obeys_the_factor(tmp_path):
    probe = Runs(tmp_path).trainer()
    full = probe.run_step().lr
    other = Runs(tmp_path).trainer()
    other.peak = 0.5
    assert other.run_step().lr == full / 2


# what the trainer says


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
