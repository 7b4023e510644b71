"""A loss that runs away: when that is seen, what the run goes back to, and what is said."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import run as run_engine
from pipelines import toy_engine, write_corpus
from test_loop import FILES, STEPS, Runs, Sickly, lines, steps

from model.late import Late
from model.trainer import StepReport, Trainer
from pipeline.checkpoint import Stored, write
from pipeline.divergence import Diverged, WayBack, judge
from pipeline.errors import Interrupted, StoreAway
from pipeline.loop import Loop


def of_kind(run: Runs, kind: type[Sickly]) -> Runs:
    """The run with trainers of that kind."""
    made = run.trainer

    def trainer() -> Trainer:
        one = made()
        one.__class__ = kind
        return one

    run.trainer = trainer
    return run


def test_a_diverged_run_goes_back_to_its_newest_checkpoint(tmp_path):
    run = Runs(tmp_path, ill=[(7, 0.5)])
    out = run.run()
    assert run.notes == [
        "the loss became nan at step 7: back to step 4, and on with 0.5 of the recipe's "
        "learning rate"
    ]
    assert run.made == 1 and run.loop.trainer.lr_factor == 0.5
    told = lines(out / "metrics.jsonl")
    assert steps(told) == list(range(1, STEPS + 1))
    assert [line for line in told if "back_from" in line] == [
        {"step": 4, "back_from": 7, "loss": None, "peak": 0.5}
    ]
    assert [(each["from"], each["to"], each["rollbacks"]) for each in run.metrics["segments"]] == [
        (1, 4, 0),
        (5, STEPS, 1),
    ]
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
            told, self.lr_factor = self.lr_factor, 1.0
            report = Trainer.run_step(self)
            self.lr_factor = told
            if any(report.step == step and told > most for step, most in self.ill):
                return replace(report, loss_there=Late(torch.tensor(math.nan)))
            return report

    return of_kind(run, Unmoved).run()


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
    assert run.made == 2 and run.loop.trainer.lr_factor == 0.5
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
        ValueError, match=r"at step 7: the run has diverged.*Take a lower .*--set train\.lr="
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


def test_returns_of_another_process_are_told_though_they_are_undone(tmp_path):
    run = Runs(tmp_path, ill=[(7, 0.5)])
    run.run(until=8, share=0.5)
    run.ill = [(9, 0.25)]
    out = run.run()
    assert run.returns == [4, 4]
    told = [line["peak"] for line in lines(out / "metrics.jsonl") if "back_from" in line]
    assert told == [0.5, 0.25]
    assert [each["rollbacks"] for each in run.metrics["segments"]] == [0, 2]


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
    assert cut.loop.trainer.lr_factor == 0.5
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    told = lines(out / "metrics.jsonl")
    assert steps(told) == list(range(1, STEPS + 1))
    assert sum("back_from" in line for line in told) == 1


class Rotting(Sickly):
    """At some step, at the recipe's full rate, weights go bad that only the next step's loss shows.

    With ``rot`` of infinity the gradient of that step is infinite as well.
    """

    rots_at, rot = 8, 1e4

    def run_step(self) -> StepReport:
        report = super().run_step()
        if report.step == self.rots_at and self.lr_factor == 1:
            with torch.no_grad():
                self.model.embedding.weight.mul_(self.rot)
            if math.isinf(self.rot):
                return replace(report, norm_there=Late(torch.tensor(math.inf)))
        return report


def rotting(run: Runs, **kind: float) -> Runs:
    return of_kind(run, type("Rotting", (Rotting,), kind))


def test_a_checkpoint_that_is_ill_itself_is_passed_over(tmp_path):
    """The loss of the first step behind it is the same at any learning rate."""
    run = rotting(Runs(tmp_path))
    out = run.run()
    assert len(run.notes) == 1
    assert "at step 9: back to step 4, and on with 0.5" in run.notes[0]
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, STEPS + 1))
    assert [(each["from"], each["to"]) for each in run.metrics["segments"]] == [(1, 4), (5, STEPS)]
    losses = json.loads((out / "history.json").read_text())["losses"]
    assert len(losses) == STEPS and max(losses) < 10


def test_so_is_one_that_another_process_has_left(tmp_path):
    run = rotting(Runs(tmp_path))
    run.run(until=8)
    out = run.run()
    assert "at step 9: back to step 4, and on with 0.5" in run.notes[0]
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, STEPS + 1))
    told = json.loads((out / "segments.json").read_text())
    assert [(each["from"], each["to"], each["rollbacks"]) for each in told] == [
        (1, 4, 0),
        (5, STEPS, 1),
    ]


def test_a_young_run_with_no_other_starts_over(tmp_path):
    run = rotting(Runs(tmp_path, every=0), rots_at=1)
    run.run(until=1)
    out = run.run()
    assert "at step 2: back to step 0, and on with 0.5" in run.notes[0]
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, STEPS + 1))


def test_an_old_run_with_no_other_does_not(tmp_path):
    run = rotting(Runs(tmp_path, every=0))
    run.run(until=8)
    with pytest.raises(ValueError, match="at step 9: the run has diverged"):
        run.run()
    assert len(run.notes) == 3 and all("back to step 8" in note for note in run.notes)


def test_who_comes_no_further_goes_further_back(tmp_path):
    run = Runs(tmp_path, ill=[(11, 0.25)])
    out = run.run()
    assert ["step 8" in run.notes[0], "step 4" in run.notes[1]] == [True, True]
    told = lines(out / "metrics.jsonl")
    assert steps(told) == list(range(1, STEPS + 1))
    assert [line["peak"] for line in told if "back_from" in line] == [0.5, 0.25]
    assert [each["rollbacks"] for each in run.metrics["segments"]] == [0, 2]


def test_an_illness_that_shows_late_is_behind_the_second_return(tmp_path):
    """What is saved before the run has come further is nothing to go back to."""

    class Latent(Sickly):
        """Its weights go bad in step 5, and the loss shows it in step 11."""

        def run_step(self) -> StepReport:
            report = super().run_step()
            ill = self.model.embedding.weight[0]
            if report.step == 5 and self.lr_factor == 1:
                with torch.no_grad():
                    ill.fill_(5.0)
            if report.step == 11 and ill.mean() > 4:
                return replace(report, loss_there=Late(torch.tensor(math.nan)))
            return report

    run = of_kind(Runs(tmp_path, every=4), Latent)
    out = run.run()
    assert run.returns == [8, 4]
    assert steps(lines(out / "metrics.jsonl")) == list(range(1, STEPS + 1))


def test_the_store_has_the_one_before_and_its_log_says_which_were_left(tmp_path, monkeypatch):
    plain, shown, seen = Trainer.run_step, Loop._show, [0]

    def run_step(self: Trainer) -> StepReport:
        report = plain(self)
        if report.step == 8 and self.lr_factor == 1:
            with torch.no_grad():
                self.model.embedding.weight.mul_(1e4)
        return report

    def show(self: Loop, step: int) -> None:
        shown(self, step)
        seen.append(step)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    monkeypatch.setattr(Loop, "_show", show)
    engine = toy_engine(tmp_path / "store", write_corpus(tmp_path / "corpus.txt"))

    def checkpoints() -> list[int]:
        train = next(planned for planned in engine.plan() if planned.stage.name == "train")
        return [entry.body["step"] for entry in train.state.checkpoints]

    with pytest.raises(Interrupted):
        run_engine(engine, "train", stopping=lambda: seen[-1] == 8)
    assert checkpoints() == [6, 8]
    with pytest.raises(Interrupted):
        run_engine(engine, "train", stopping=lambda: seen[-1] == 7)
    assert checkpoints() == [6, 7]
    report, _ = run_engine(engine, "train")
    assert report[-1][0].result.body["metrics"]["steps"] == STEPS


def test_a_gradient_that_is_no_number_is_found_before_anything_is_saved(tmp_path):
    run = rotting(Runs(tmp_path), rot=math.inf)
    run.run()
    assert run.notes == [
        "the gradient became inf at step 8: back to step 4, and on with 0.5 of the recipe's "
        "learning rate"
    ]


def test_in_float16_it_costs_a_step_until_there_is_nothing_left_to_scale(tmp_path):
    class Narrow(Runs):
        factor = 2.0**16

        def trainer(self) -> Trainer:
            made = super().trainer()
            made.model.compute_dtype = torch.float16
            backward = made._backward

            def infinite(*where):
                loss = backward(*where)
                made.scaler.factor = self.factor
                if made.step == 5:
                    made.model.embedding.weight.grad.fill_(math.inf)
                return loss

            made._backward = infinite
            return made

    well, ill = Narrow(tmp_path / "well"), Narrow(tmp_path / "ill")
    for run in (well, ill):
        run.root.mkdir()
    out = well.run()
    skipped = [line["step"] for line in lines(out / "metrics.jsonl") if line.get("skipped")]
    assert skipped == [6] and not well.notes
    ill.factor = 1.0
    with pytest.raises(
        ValueError, match=r"Take --precision fp32, because float16 .* lower"
    ) as told:
        ill.run()
    assert "the gradient became inf at step 6" in str(told.value)


def report(loss: float, norm: float = 1.0, scale: float = 1.0) -> StepReport:
    return StepReport(1, Late(torch.tensor(loss)), Late(torch.tensor(norm)), 0.1, scale)


def test_a_loss_twice_that_of_a_blind_guess_is_refused():
    judge(report(9.2), 100)
    for loss in (9.22, math.inf, math.nan):
        with pytest.raises(Diverged, match="the loss became"):
            judge(report(loss), 100)


def test_a_gradient_that_was_scaled_may_be_infinite():
    judge(report(1.0, math.inf, 2.0), 100)
    for norm in (math.inf, math.nan):
        with pytest.raises(Diverged, match="the gradient became"):
            judge(report(1.0, norm), 100)


@pytest.mark.parametrize(("share", "factor"), [(1, 1 / 8), (1 / 2, 1 / 4), (1 / 16, 1)])
def test_an_adopted_checkpoint_is_gone_on_from_at_the_rate_that_was_asked_for(
    tmp_path, share, factor
):
    """Of a run that gave up at an eighth of its rate; the advice is a sixteenth."""
    run = Runs(tmp_path, ill=[(7, 0.125)])
    run.run(until=8, share=0.125)
    of = run.chosen.train
    rates = {"lr": of.lr * share, "muon_lr": of.muon_lr * share}
    run.chosen = replace(run.chosen, train=replace(of, **rates))
    run.run(until=9)
    assert run.loop.trainer.lr_factor == pytest.approx(factor)


class Away:
    """Earlier checkpoints that a store has which is away for some asks."""

    def __init__(self, asks: int, files: dict[str, Path] | None) -> None:
        self.asks, self.files, self.patience = asks, files, []

    def __call__(self, patient: bool) -> dict[str, Path] | None:
        self.patience.append(patient)
        if len(self.patience) <= self.asks:
            raise StoreAway("the store cannot be reached")
        return self.files


def state_of(step: int, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    write({"step": torch.tensor(step)}, folder / "state.safetensors")
    return {"state.safetensors": folder / "state.safetensors"}


def test_a_store_that_is_away_is_waited_for_only_where_there_is_no_other_way(tmp_path):
    newest, older = (state_of(step, tmp_path / str(step)) for step in (8, 6))
    away = Away(1, older)
    way = WayBack(tmp_path / "held", away)
    way.here(8, newest)

    def reached(diverged: int) -> int:
        return int(Stored(way.choose(diverged, 100)["state.safetensors"])["step"])

    assert reached(10) == 8
    assert reached(10) == 6  # no further than before: by then it is there
    assert away.patience == [False, False]
    ill = WayBack(tmp_path / "ill", away := Away(1, older))
    ill.here(8, newest)
    with pytest.raises(StoreAway):
        ill.choose(9, 100)
    assert away.patience == [True]


def test_a_return_to_what_others_left_raises_no_rate(tmp_path):
    """Others had gone down to a quarter when they left step 9; ours of step 10 is ill."""
    ours, theirs = Runs(tmp_path / "ours"), Runs(tmp_path / "theirs", ill=[(5, 0.25)])
    for run in (ours, theirs):
        run.root.mkdir()
    ours.run(until=10)
    theirs.run(until=9, share=0.25)
    ours.ill, ours.earlier = [(11, 0.9)], lambda patient: theirs.saved
    ours.run()
    assert "at step 11: back to step 9, and on with 0.25 of" in ours.notes[-1]


def test_the_trainer_obeys_the_factor(tmp_path):
    probe = Runs(tmp_path).trainer()
    full = probe.run_step().lr
    other = Runs(tmp_path).trainer()
    other.lr_factor = 0.5
    assert other.run_step().lr == full / 2
