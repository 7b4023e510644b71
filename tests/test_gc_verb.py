"""``pipeline gc`` as users meet it: what it says, and what a pipeline has after it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import TOY, TOY_RECIPE, pipeline
from pipelines import digests, local_store, run, toy_engine
from stores import (
    claim,
    later,
    put,
)

from pipeline.engine import log
from pipeline.engine.log import Claim
from pipeline.engine.needed import all_blobs
from pipeline.engine.superseded import give_up, superseded
from pipeline.errors import Interrupted, Lost


def tree(root: Path) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino, path.is_file() and path.read_bytes())
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def ran(finished, corpus, tmp_path):
    """A finished run, and the result of another learning rate that nobody uses any more."""
    shutil.copytree(finished, tmp_path / "store")
    store = tmp_path / "store"
    words = ["--data", corpus, *TOY, "--set", "train.lr=1e-3"]
    assert pipeline("run", "train", "--store", store, *words).code == 0
    assert pipeline("run", "--store", store, "--data", corpus, *TOY).code == 0
    return store


def gc_json(store: Path, *words: str) -> dict:
    told = pipeline("gc", "--store", store, "--json", *words)
    assert told.code == 0, told.err
    return json.loads(told.out)


def test_a_run_after_gc_has_nothing_to_do(ran, corpus):
    loose = put(local_store(ran), b"loose")
    told = pipeline("gc", "--store", ran)
    assert told.code == 0 and re.search(r"marked: 1 blob \(5 B\), deleted .* 24:00:00", told.out)
    pipeline("gc", "--store", ran, "--grace", "0s")
    assert loose not in all_blobs(local_store(ran))
    assert "nothing to do" in pipeline("run", "--store", ran).out
    assert pipeline("verify", "--store", ran).code == 0


def test_a_dry_run_says_exactly_what_goes_and_changes_not_a_byte(ran):
    store = local_store(ran)
    put(store, b"loose")
    (ran / "tmp" / "1-dead").mkdir(parents=True)
    for words in (["--grace", "0s"], ["--grace", "0s"], ["--superseded", "-y", "--grace", "0s"]):
        pipeline("status", "--store", ran)  # a look may write the cache of digests
        before = tree(ran)
        promised = gc_json(ran, "-n", *words)
        text = pipeline("gc", "--store", ran, "-n", *words).out
        assert tree(ran) == before
        assert promised["dry_run"] and all(item["name"] in text for item in promised["freed"])
        assert all(item["name"] in text for item in promised["marked"])
        done = gc_json(ran, *words)
        for part in ("freed", "freed_bytes", "marked", "marked_bytes", "superseded"):
            assert done[part] == promised[part]
        assert not done["dry_run"]


def test_superseded_results_go_and_those_in_use_stay(ran, corpus):
    whole = digests(toy_engine(ran, corpus))
    entries = sum(len(local_store(ran).names(f"log/{key}")) for key in log.keys(local_store(ran)))
    told = gc_json(ran, "--superseded", "-y")
    assert [each["stage"] for each in told["superseded"]] == ["train"]
    (old,) = told["superseded"]
    assert told["marked_bytes"] == old["bytes"] > 0
    state = log.read(local_store(ran), old["key"])
    assert [entry.kind for entry in state.entries[-3:]] == ["claim", "retire", "claim"]
    assert state.needed == set() and state.owner is None
    later(local_store(ran))
    assert gc_json(ran)["freed_bytes"] == old["bytes"]
    assert sum(len(local_store(ran).names(f"log/{key}")) for key in log.keys(local_store(ran))) == (
        entries + 3
    )
    assert digests(toy_engine(ran, corpus)) == whole
    assert "nothing to do" in pipeline("run", "--store", ran).out
    assert gc_json(ran, "--superseded", "-y")["superseded"] == []
    again = ["--data", corpus, *TOY, "--set", "train.lr=1e-3"]
    assert pipeline("run", "--store", ran, *again).code == 0


def test_superseded_asks_first(ran, monkeypatch):
    before = len(list((ran / "log").rglob("*")))
    told = pipeline("gc", "--superseded", "--store", ran)
    assert told.code == 1 and "for good? [y/N]" in told.err and "train" in told.out
    assert len(list((ran / "log").rglob("*"))) == before and not (ran / "gc").exists()


def test_superseded_leaves_alone_what_is_worked_on(ran):
    """Somebody was there when we looked, or comes in between."""
    store = local_store(ran)
    used = {"train": "of the recipe"}
    first, second = superseded(store, used)
    assert {first.stage, second.stage} == {"train"}
    claim(store, first.key)
    assert not give_up(store, first) and log.read(store, first.key).owner is not None
    (found,) = superseded(store, used)
    assert found.key == second.key
    with pytest.raises(Lost):
        Claim.take(store, first.key, first.state, "late", {})


def test_superseded_checkpoints_go_too(ran, corpus):
    engine, steps = toy_engine(ran, corpus, "train.lr=1e-2"), []
    with pytest.raises(Interrupted):
        run(engine, "train", stopping=lambda: len(steps) > 6 or steps.append(1))
    assert pipeline("run", "--store", ran, "--data", corpus, *TOY).code == 0
    told = pipeline("gc", "--superseded", "-n", "--store", ran)
    assert re.search(r"step \d+ of train", told.out) and "result of train" in told.out


def test_superseded_keeps_what_others_have_of_a_stage_without_result(ran, corpus):
    """Somebody may want to accept it, or adopt from it."""
    words = ["--data", corpus, *TOY_RECIPE, "--set", "train.lr=2e-3"]
    assert pipeline("run", "encode", "--store", ran, *words).code == 0
    told = pipeline("gc", "--superseded", "-y", "--store", ran)
    assert "train has no result yet: what other keys have of it is kept" in told.out
    assert "nothing to free" in told.out


def test_superseded_by_no_run_at_all(tmp_path):
    claim(local_store(tmp_path / "s"))
    told = pipeline("gc", "--superseded", "--store", tmp_path / "s")
    assert told.code == 1 and "has no last run" in told.err


def test_a_grace_that_is_none(tmp_path):
    told = pipeline("gc", "--grace", "soon", "--store", tmp_path / "s")
    assert told.code == 2 and "'--grace': 'soon' is not a duration" in told.err
