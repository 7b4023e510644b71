"""What people see of work that failed, that nobody does, and that they leave behind."""

import itertools
import json

import pytest
from commands import TOY, pipeline
from pipelines import run, toy_engine

from pipeline.cli import metrics as verb
from pipeline.engine import log
from pipeline.engine.engine import Engine
from pipeline.engine.log import Claim, Entry, fold
from pipeline.engine.remembered import latest, remember
from pipeline.errors import Interrupted


@pytest.fixture(scope="module")
def failed(tmp_path_factory, corpus):
    """A store whose training has diverged, and what the run said."""
    store = tmp_path_factory.mktemp("failed") / "store"
    wild = ("--set", "train.lr=900", "--set", "train.clip=0")
    told = pipeline("run", "--store", store, "--data", corpus, *TOY, *wild)
    assert told.code == 1 and "the run has diverged" in told.err
    return store


def test_a_failed_stage_is_called_failed_and_why(failed):
    told = json.loads(pipeline("status", "--store", failed, "--json").out)["stages"]["train"]
    assert told["state"] == "failed" and "the run has diverged" in told["why"]
    assert not told["why"].startswith("ValueError")
    shown = pipeline("status", "--store", failed).out
    assert "failed" in shown and "the run has diverged" in shown
    assert "train: failed (" in pipeline("explain", "train", "--store", failed).out
    assert "failed: " in pipeline("log", "train", "--store", failed).out


def test_following_ends_when_the_run_fails(failed, monkeypatch):
    """One that had failed before may be on its way again: somebody is waited for."""
    engine = _latest(toy_engine(failed, "nothing"))
    key, slept = engine.plan()[3].key, itertools.count(1)

    def sleep(_):
        if next(slept) == 3:
            claim = Claim.take(engine.store, key, log.read(engine.store, key), "a-1-x", {})
            claim.release("once more", failed=True)

    monkeypatch.setattr(verb.time, "sleep", sleep)
    told = pipeline("metrics", "--follow", "--store", failed)
    assert told.code == 1 and told.err.count("nobody works on this run, and it has failed: ") == 1
    assert told.err.endswith("error: the training has failed: once more\n")


def _latest(engine):
    return Engine(engine.store, latest(engine.store))


def test_work_that_goes_on_is_not_failed_any_more():
    took, ended = {"owner": "a-1-x", "record": {"stage": "train"}}, {"owner": None, "why": "x"}
    bodies = [took, ended | {"failed": True}, took]
    entries = [Entry(at, "claim", body) for at, body in enumerate(bodies)]
    assert [fold(entries[:count]).failure for count in (1, 2, 3)] == [None, "x", None]
    assert fold([entries[0], Entry(1, "claim", ended)]).failure is None  # interrupted


def test_a_new_run_tells_of_the_one_that_it_leaves_behind(tmp_path, corpus):
    first, second = (toy_engine(tmp_path / "s", corpus, f"train.lr={lr}") for lr in (1e-3, 2e-3))
    run(first, "encode")
    asked = iter([False] * 4)
    with pytest.raises(Interrupted, match="checkpoint written at step"):
        run(first, stopping=lambda: next(asked, True))
    state = {item.stage.name: item for item in first.plan()}["train"].state
    step, key = state.checkpoints[-1].body["step"], log.keys(first.store)
    _, printed = run(second, "train")
    words = f"another run stands unfinished at step {step:,}; since then train.lr 0.001 -> 0.002."
    assert f"train: {words}" in printed
    assert any(f"`pipeline adopt {each[:12]}`" in printed for each in key)
    _, printed = run(first, "train")
    assert "unfinished" not in printed  # it goes on with its own


def test_it_tells_of_none_that_cannot_be_adopted_and_of_none_that_it_cannot_read(tmp_path, corpus):
    first = toy_engine(tmp_path / "s", corpus)
    asked = iter([False] * 4)
    run(first, "encode")
    with pytest.raises(Interrupted, match="checkpoint written at step"):
        run(first, stopping=lambda: next(asked, True))
    for setting in (
        "model.layers=2",
        "train.optimizer=muon",
        "train.steps=1",
        "data.validation=0.3",
    ):
        _, printed = run(toy_engine(tmp_path / "s", corpus, setting), "train")
        assert "unfinished" not in printed, setting
    key = next(item for item in first.plan() if item.stage.name == "train").key
    for file in first.store.disk.path(f"log/{key}").iterdir():
        file.write_bytes(b"{")
    _, printed = run(toy_engine(tmp_path / "s", corpus, "train.lr=0.002"), "train")
    assert "unfinished" not in printed


def test_the_last_run_is_the_one_that_was_started_last(tmp_path, corpus):
    """However long one that was started before still works on its stages."""
    first, second = (toy_engine(tmp_path / "s", corpus, f"train.seed={seed}") for seed in (1, 2))
    plan = first._plan

    def planned(stage, *rest, **more):
        if stage.name == "tokenizer":
            remember(second.store, second.recipe)
        return plan(stage, *rest, **more)

    first._plan = planned
    run(first, "encode")
    assert latest(first.store) == second.recipe
