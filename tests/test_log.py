"""The log of a key, and the beat by which others judge whether its owner lives."""

import contextlib
import json
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import local_store

from pipeline.engine import beat as beat_module
from pipeline.engine import gc, log
from pipeline.engine.beat import Beat, Watch
from pipeline.engine.further import led_back, wanted
from pipeline.engine.log import Claim, Entry, State, fold
from pipeline.engine.unsent import candidates
from pipeline.errors import Lost, StoreError
from pipeline.store.locks import machine_id
from pipeline.store.store import Store

KEY = "k" * 64


@pytest.fixture
def store(tmp_path):
    return local_store(tmp_path / "store")


def take(store: Store, owner: str = "a", **body) -> Claim:
    return Claim.take(store, KEY, log.read(store, KEY), owner, body)


def entries(*bodies: dict) -> list[Entry]:
    return [Entry(position, body["kind"], body) for position, body in enumerate(bodies)]


def claim(owner: str | None, **body) -> dict:
    return {"kind": "claim", "owner": owner, **body}


def checkpoint(step: int, blob: str = "") -> dict:
    files = {"state": {"digest": blob or f"blob{step}", "size": step}}
    return {"kind": "checkpoint", "step": step, "files": files}


def result(blob: str = "blob") -> dict:
    return {"kind": "result", "files": {"out": {"digest": blob, "size": 1}}, "metrics": {}}


def retire(*positions: int) -> dict:
    return {"kind": "retire", "positions": list(positions), "why": "damaged"}


# what a log says


def test_nothing():
    assert fold([]) == State((), None, (), None, None)


def test_a_claim_and_what_it_claims():
    state = fold(entries(claim("a", record={"stage": "train"})))
    assert state.owner.body["owner"] == "a" and state.record == {"stage": "train"}


def test_a_later_claim_takes_over_and_keeps_what_was_done():
    state = fold(entries(claim("a", record={"stage": "train"}), checkpoint(5), claim("b")))
    assert state.owner.body["owner"] == "b"
    assert [entry.body["step"] for entry in state.checkpoints] == [5]
    assert state.record == {"stage": "train"}


def test_a_release_leaves_no_owner():
    assert fold(entries(claim("a"), checkpoint(5), claim(None, why="Interrupted"))).owner is None


def test_a_result_ends_the_work():
    state = fold(entries(claim("a"), checkpoint(5), result()))
    assert state.owner is None and state.result.position == 2
    assert state.result.digests == {"blob": 1}


def test_the_first_result_stands():
    assert fold(entries(claim("a"), result("one"), result("two"))).result.position == 1


def test_a_retired_result_is_none_and_its_successor_stands():
    taken_back = entries(claim("a"), result("one"), claim("b"), retire(1))
    assert fold(taken_back).result is None and fold(taken_back).owner.body["owner"] == "b"
    again = [*taken_back, Entry(4, "result", result("two"))]
    assert fold(again).result.position == 4


def test_retired_checkpoints_are_passed_over():
    state = fold(entries(claim("a"), checkpoint(5), checkpoint(10), claim("b"), retire(2)))
    assert [entry.body["step"] for entry in state.checkpoints] == [5]


def test_checkpoints_that_a_stage_went_back_behind_are_left():
    """So that the newest is that of the highest step, and the others lead to it."""
    ill = entries(claim("a"), checkpoint(5), checkpoint(10), {**checkpoint(8), "back_to": 5})
    assert [entry.body["step"] for entry in fold(ill).checkpoints] == [5, 8]
    start = [*ill, Entry(4, "checkpoint", {**checkpoint(3), "back_to": 0})]
    assert [entry.body["step"] for entry in fold(start).checkpoints] == [3]


def test_kinds_of_a_later_version_are_passed_over():
    state = fold(entries(claim("a"), {"kind": "remark", "text": "hm"}))
    assert state.owner.body["owner"] == "a" and len(state.entries) == 2


@pytest.mark.parametrize(
    ("bodies", "needed"),
    [
        ([claim("a")], set()),
        ([claim("a"), checkpoint(1)], {"blob1"}),
        ([claim("a"), checkpoint(1), checkpoint(2), checkpoint(3)], {"blob2", "blob3"}),
        ([claim("a"), checkpoint(1), checkpoint(2), checkpoint(3), retire(3)], {"blob2"}),
        ([claim("a"), checkpoint(1), checkpoint(2), result()], {"blob"}),
    ],
)
def test_which_blobs_are_needed(bodies, needed):
    assert fold(entries(*bodies)).needed == needed


def test_pruning_keeps_what_another_log_names(store):
    for blob in ("blob1", "blob2", "blob3", "blob4"):
        path = store.blob_path(blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    owner = take(store)
    for step in (1, 2, 3, 4):
        owner.append("checkpoint", checkpoint(step))
    other = Claim.take(store, "other", log.read(store, "other"), "b", {})
    other.append("checkpoint", checkpoint(9, "blob1"))
    gone: set[str] = set()
    gc.prune(store, KEY, set(), gone)
    assert gone == {"blob2"}
    assert set(store.blobs()) == {"blob1", "blob3", "blob4"}


# writing


def test_what_was_appended_is_read_back(store):
    owner = take(store, machine_id="m", record={"stage": "train"})
    owner.append("checkpoint", checkpoint(5))
    owner.append("result", result())
    state = log.read(store, KEY)
    assert [entry.kind for entry in state.entries] == ["claim", "checkpoint", "result"]
    assert state.entries[0].body["machine_id"] == "m"
    assert log.keys(store) == [KEY]


def test_a_release_can_be_taken(store):
    take(store, "a").release("Interrupted")
    assert log.read(store, KEY).owner is None
    take(store, "b").append("checkpoint", checkpoint(5))
    assert log.read(store, KEY).owner.body["owner"] == "b"


def test_who_saw_too_little_does_not_get_the_claim(store):
    seen = log.read(store, KEY)
    take(store, "a")
    with pytest.raises(Lost):
        Claim.take(store, KEY, seen, "b", {})
    assert log.read(store, KEY).owner.body["owner"] == "a"


@pytest.mark.parametrize("kind", ["checkpoint", "result", "retire"])
def test_who_lost_its_claim_writes_nothing_more(store, kind):
    first = take(store, "a")
    take(store, "b")
    before = log.read(store, KEY)
    for _ in range(2):
        with pytest.raises(Lost, match="was taken by another process"):
            first.append(kind, {})
    first.release("Interrupted")
    assert log.read(store, KEY) == before


def test_a_release_that_cannot_be_written_hides_no_error(store, monkeypatch):
    owner = take(store)

    def full(*_):
        raise StoreError("no space left")

    monkeypatch.setattr(store, "create", full)
    owner.release("OSError")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"7", b"\xff", b'"claim"'])
def test_a_damaged_entry_holds_its_position(store, damage):
    claim = take(store)
    Claim(store, KEY, 1, claim.owner).append("checkpoint", checkpoint(5))
    path = store.root / log.entry_name(KEY, 1)
    path.chmod(0o644)
    path.write_bytes(damage)
    state = log.read(local_store(store.root), KEY)
    assert [entry.kind for entry in state.entries] == ["claim", "damaged"]
    with pytest.raises(Lost):
        claim.append("checkpoint", checkpoint(6))  # the position stays taken


def test_files_of_others_in_a_log_are_no_entries(store):
    take(store)
    for name in (".DS_Store", "notes.txt"):
        (store.root / "log" / KEY / name).write_bytes(b"")
    assert len(log.read(store, KEY).entries) == 1


NOTHING = fold([])


@dataclass
class Process:
    """One of two that work on the same key; it acts on what it saw last."""

    name: str
    seen: State = NOTHING
    claim: Claim | None = None

    def look(self, store: Store) -> None:
        self.seen = log.read(store, KEY)

    def take(self, store: Store) -> None:
        try:
            self.claim = Claim.take(store, KEY, self.seen, self.name, {})
        except Lost:
            self.claim = None

    def append(self, store: Store) -> None:
        if self.claim is not None:
            with contextlib.suppress(Lost):
                self.claim.append("checkpoint", {**checkpoint(1), "by": self.name})

    def release(self, store: Store) -> None:
        if self.claim is not None:
            self.claim.release("on purpose")


ACTS = st.tuples(st.sampled_from([0, 1]), st.sampled_from(["look", "take", "append", "release"]))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(acts=st.lists(ACTS, max_size=24))
def test_no_entry_is_by_anybody_but_the_owner(acts):
    """However two processes take turns, and however old what they know is."""
    with tempfile.TemporaryDirectory() as place:
        store, processes = local_store(Path(place)), [Process("a"), Process("b")]
        for number, act in acts:
            getattr(processes[number], act)(store)
        owner = None
        for entry in log.read(store, KEY).entries:
            if entry.kind == "claim":
                owner = entry.body["owner"] or owner  # it may go on until somebody else takes over
            else:
                assert entry.body["by"] == owner


# liveness


def watching(store: Store, owner: str, machine: str | None = None) -> Watch:
    body = {"owner": owner, "machine_id": machine or machine_id()}
    return Watch(store, KEY, Entry(0, "claim", body))


def test_an_owner_lives_while_it_holds_its_beat(store):
    with Beat(store, KEY) as beat:
        watch = watching(store, beat.owner)
        assert watch.alive()
    assert not watch.alive()
    assert store.names(f"beat/{KEY}") == []


def test_an_owner_that_never_was_is_dead(store):
    assert not watching(store, "nobody").alive()


def test_an_owner_shows_its_progress(store, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.01)
    with Beat(store, KEY) as beat:
        watch = watching(store, beat.owner)
        assert watch.progress() == {}
        beat.progress = {"done": 5}
        deadline = time.monotonic() + 10
        while not watch.progress() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch.progress() == {"done": 5}


def test_a_beat_that_cannot_be_written_ends_nothing(store, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.01)
    tries = []

    def full(*_):
        tries.append(1)
        raise StoreError("no space left")

    with Beat(store, KEY) as beat:
        monkeypatch.setattr(store.records, "replace", full)
        deadline = time.monotonic() + 10
        while len(tries) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(tries) >= 3 and watching(store, beat.owner).alive()


def test_a_killed_owner_is_dead_at_once(store):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        beat = Beat(store, KEY)
        beat.__enter__()
        os.write(writing, beat.owner.encode())
        signal.pause()
        os._exit(1)
    watch = watching(store, os.read(reading, 1000).decode())
    assert watch.alive()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not watch.alive()


def test_on_another_machine_only_a_beat_that_stands_still_is_death(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(beat_module, "DEAD_AFTER", 60.0)
    monkeypatch.setattr(beat_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    store.replace(f"beat/{KEY}/far", json.dumps({"nonce": "1"}).encode())
    watch = watching(store, "far", machine="another")
    assert watch.alive()
    now[0] += 59
    assert watch.alive()
    store.replace(f"beat/{KEY}/far", json.dumps({"nonce": "2"}).encode())
    now[0] += 59
    assert watch.alive()
    now[0] += 59
    assert watch.alive()
    now[0] += 2
    assert not watch.alive()


def test_an_owner_elsewhere_without_a_beat_is_given_the_same_time(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(beat_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = watching(store, "far", machine="another")
    assert watch.alive()
    now[0] += beat_module.DEAD_AFTER + 1
    assert not watch.alive()


@pytest.mark.parametrize("beat", [b"", b"{", b"\xff"])
def test_progress_that_cannot_be_read_is_none(store, beat):
    store.replace(f"beat/{KEY}/far", beat)
    assert watching(store, "far", machine="another").progress() == {}


# what is left behind


LOG = (claim("a"), checkpoint(100), checkpoint(200), {**checkpoint(150), "back_to": 100})


def steps(found: list[Entry]) -> list[int]:
    return [entry.body["step"] for entry in found]


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (LOG[:3], LOG, []),  # an older copy: what we left is not brought back
        (LOG, LOG[:3], [150]),  # we are the older copy: the return is brought
        (LOG, [*LOG[:3], checkpoint(300)], []),  # but not onto what has gone on by itself
        ([*LOG, checkpoint(250)], LOG[:3], [150, 250]),
        ([*LOG, checkpoint(250)], [claim("b"), checkpoint(200)], [150, 250]),
        ([*LOG, checkpoint(160), checkpoint(170)], LOG[:3], [160, 170]),  # 150 was replaced
        ([*LOG, checkpoint(160)], [claim("b"), checkpoint(160)], []),  # it came without the return
        # a claim of its own is no work of its own
        (LOG, [*LOG[:3], claim(None)], [150]),
        ([*LOG[:3], retire(2)], LOG[:3], []),  # damaged there, and whole here
        (LOG[:3], [*LOG[:3], retire(2)], [200]),  # and the other way round
    ],
)
def test_what_another_log_brings_after_a_return(theirs, ours, expected):
    assert steps(wanted(fold(entries(*theirs)), fold(entries(*ours)))) == expected


def test_a_return_is_told_with_the_first_that_comes_behind_it():
    theirs, ours = fold(entries(*LOG, checkpoint(160), checkpoint(170))), fold(entries(*LOG[:3]))
    assert led_back(theirs, ours, wanted(theirs, ours)) == {"back_to": 100}
    further = fold(entries(*LOG, checkpoint(250), checkpoint(260)))
    assert led_back(further, ours, wanted(further, ours)) == {}


@pytest.mark.parametrize(
    ("logged", "unsent", "expected"),
    [
        (LOG[:3], {"step": 150, "back_to": 100, "before": 3}, [150, 100]),
        (LOG[:3], {"step": 250, "before": 3}, [250, 200, 100]),
        (LOG, {"step": 150, "back_to": 100, "before": 3}, [150, 100]),  # it was sent
        # others went on from it, or from elsewhere
        ([*LOG, checkpoint(900)], {"step": 150, "back_to": 100, "before": 3}, [900, 150]),
        ([*LOG[:3], checkpoint(900)], {"step": 150, "back_to": 100, "before": 3}, [900, 200]),
        (LOG[:3], {"step": 150, "back_to": 100}, [200, 100]),  # of an older version
        # our own arrived after all, though it was told as failed
        (
            [*LOG[:2], {**checkpoint(200), "by": "me"}],
            {"step": 150, "back_to": 100, "before": 2, "by": "me"},
            [150, 100],
        ),
    ],
)
def test_an_unsent_checkpoint_counts_as_long_as_the_log_is_as_it_was(
    store, monkeypatch, logged, unsent, expected
):
    noted = {"step": unsent["step"], "seconds": 1.0, "files": {}, **unsent}
    monkeypatch.setattr("pipeline.engine.unsent.read_unsent", lambda *_: noted)
    found = candidates(store, KEY, fold(entries(*logged)).checkpoints)
    assert [body["step"] for _, body in found] == expected
