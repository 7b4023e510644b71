"""What nothing needs is deleted in two passes, and nobody is robbed, whatever they do."""

import json
import time

import pytest
from faults import Fault, Faulty
from stores import (
    DAY,
    KEY,
    age,
    checkpoint,
    claim,
    finish,
    later,
    put,
    store_at,
    sweep,
)

from pipeline.engine import gc, log
from pipeline.engine.clocks import read_clocks
from pipeline.engine.gc import MARKS, collect, survey
from pipeline.engine.needed import all_blobs
from pipeline.errors import StoreAway, StoreError
from pipeline.hashing import canonical
from pipeline.store.disk import Disk
from pipeline.store.store import Store


@pytest.fixture(params=["local", "elsewhere"])
def store(request, tmp_path):
    return store_at(request.param, tmp_path)


@pytest.fixture
def elsewhere(tmp_path):
    return store_at("elsewhere", tmp_path)


# two passes


def test_what_is_unneeded_is_marked_first_and_deleted_a_day_later(store):
    needed, loose = put(store, b"one"), put(store, b"two")
    finish(claim(store), needed)
    assert sweep(store) == []
    assert json.loads(store.read(MARKS)) == [loose]
    later(store, DAY - 60)
    assert sweep(store) == []
    later(store, DAY + 60)
    assert sweep(store) == [loose]
    assert all_blobs(store) == [needed] and store.blob(needed).read_bytes() == b"one"
    assert store.read(MARKS) is None


def test_a_gc_within_the_grace_does_not_begin_it_anew(store):
    finish(claim(store), put(store, b"one"))
    first = put(store, b"two")
    sweep(store)
    later(store, DAY - 60)
    second = put(store, b"three")
    found = survey(store, read_clocks(store))
    assert [item.name for item in found.later] == [first]
    assert [item.name for item in found.waiting] == [second]
    assert 0 < found.after <= 61
    written = store.stat(MARKS)
    sweep(store)
    assert store.stat(MARKS) == written
    age(store.records, DAY + 60, MARKS)
    assert sweep(store) == [first]
    assert json.loads(store.read(MARKS)) == [second]


def test_no_grace_for_those_who_know_that_nobody_else_is_there(store):
    finish(claim(store), put(store, b"one"))
    loose = put(store, b"two")
    assert [sweep(store, 0.0), sweep(store, 0.0)] == [[], [loose]]


@pytest.mark.parametrize("wrong", [-3600.0, 400 * DAY, -400 * DAY])
def test_this_machines_clock_decides_nothing(store, monkeypatch, wrong):
    finish(claim(store), put(store, b"one"))
    loose = put(store, b"two")
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    assert sweep(store) == [] and sweep(store) == []
    monkeypatch.undo()
    later(store)
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    assert sweep(store) == [loose]


def test_a_store_clock_that_was_set_back_deletes_nothing(store):
    finish(claim(store), put(store, b"one"))
    put(store, b"two")
    sweep(store)
    age(store.records, -3600, MARKS)
    assert sweep(store) == []


def test_a_place_that_tells_no_time_needs_to_be_told_that_there_is_none(elsewhere, monkeypatch):
    finish(claim(elsewhere), put(elsewhere, b"one"))
    loose, stat = put(elsewhere, b"two"), Disk.stat

    def timeless(self, name):
        found = stat(self, name)
        return (found[0], 0.0) if found and self is elsewhere.records else found

    monkeypatch.setattr(Disk, "stat", timeless)
    with pytest.raises(StoreError, match=r"does not tell when .*`pipeline gc --grace 0s`"):
        sweep(elsewhere)
    assert [sweep(elsewhere, 0.0), sweep(elsewhere, 0.0)] == [[], [loose]]


# nobody is robbed


def test_who_is_between_sending_and_writing_the_entry_is_not_robbed(store):
    owner = claim(store)
    later_named = put(store, b"one")
    assert sweep(store) == []
    later(store, DAY - 60)
    assert sweep(store) == []
    finish(owner, later_named)
    later(store)
    assert sweep(store) == [] and all_blobs(store) == [later_named]


def test_who_sends_after_the_marks_is_not_robbed_by_old_marks(store):
    """The same bytes were there before, marked, and were removed by somebody."""
    owner, blob = claim(store), put(store, b"one")
    sweep(store)
    later(store)
    store.remove_blob(blob)
    assert put(store, b"one") == blob
    assert sweep(store) == []
    finish(owner, blob)
    later(store)
    assert sweep(store) == [] and all_blobs(store) == [blob]


def test_who_sends_while_a_gc_works_is_not_robbed(store):
    put(store, b"one")
    claim(store)
    sweep(store)
    later(store)
    found = survey(store, read_clocks(store))
    (item,) = found.blobs
    store.remove_blob(item.name)
    put(store, b"one")
    assert collect(store, found) == [] and all_blobs(store) == [item.name]


def test_a_marked_blob_that_is_needed_again_survives(store):
    owner, blob = claim(store), put(store, b"one")
    sweep(store)
    later(store)
    finish(owner, blob)
    assert sweep(store) == [] and store.read(MARKS) is None


def test_logs_are_read_again_before_each_batch(store, monkeypatch):
    """An entry that is written while a gc works saves what it names."""
    monkeypatch.setattr(gc, "BATCH", 2)
    owner = claim(store)
    blobs = sorted(put(store, b"%d" % number) for number in range(6))
    sweep(store)
    later(store)
    found, rounds = survey(store, read_clocks(store)), []

    def progress(done, total, unit):
        rounds.append(done)
        if done == 2:
            finish(owner, blobs[3], blobs[5])

    gone = collect(store, found, progress)
    assert rounds == [0, 2, 4]
    assert sorted(item.name for item in gone) == [blobs[n] for n in (0, 1, 2, 4)]
    assert all_blobs(store) == [blobs[3], blobs[5]]


def test_of_two_at_once_none_takes_new_marks_for_old_ones(store, monkeypatch):
    """The other one writes its marks between our reading of them and of their time."""
    owner, old = claim(store), put(store, b"one")
    sweep(store)
    later(store)
    new, stat = [], Store.stat

    def meanwhile(self, name):
        if name == MARKS and not new:
            new.append(put(store, b"two"))
            store.replace(MARKS, canonical([old, *new]))
        return stat(self, name)

    monkeypatch.setattr(Store, "stat", meanwhile)
    assert sweep(store) == []
    finish(owner, old, *new)


@pytest.mark.parametrize("damage", [b"", b"{", b"7", b"null"])
def test_marks_that_cannot_be_read_are_none(store, damage):
    finish(claim(store), put(store, b"one"))
    loose = put(store, b"two")
    store.replace(MARKS, damage)
    later(store)
    assert sweep(store) == [] and json.loads(store.read(MARKS)) == [loose]


def test_the_newest_checkpoints_stay_and_replaced_ones_go(store):
    blobs = [put(store, b"%d" % step) for step in range(4)]
    owner = claim(store)
    for step, blob in enumerate(blobs):
        checkpoint(owner, step, blob)
    sweep(store, 0.0)
    assert sorted(sweep(store, 0.0)) == sorted(blobs[:2])


@pytest.mark.parametrize("harm", ["damaged", "gap", "later version"])
def test_a_log_that_cannot_be_read_whole_keeps_all_that_it_names(store, harm):
    blobs = [put(store, b"%d" % step) for step in range(4)]
    owner = claim(store)
    for step, blob in enumerate(blobs[:3]):
        checkpoint(owner, step, blob)
    finish(owner, blobs[3])
    path = store.records.path(log.entry_name(KEY, 2))
    if harm == "gap":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes({"damaged": b"\0", "later version": b'{"kind":"halve","at":""}'}[harm])
    again = Store(store.disk, store.remote)
    sweep(again, 0.0)
    assert sweep(again, 0.0) == [blobs[1]]


def test_a_store_without_any_log_is_left_alone(store):
    put(store, b"one")
    with pytest.raises(StoreError, match=r"holds blobs and not one log"):
        sweep(store, 0.0)


def test_files_of_others_between_the_blobs_stay(store):
    blob = put(store, b"one")
    finish(claim(store), blob)
    strange = store.records.path("blob/notes/read me.txt")
    strange.parent.mkdir()
    strange.write_text("mine")
    sweep(store, 0.0)
    assert sweep(store, 0.0) == [] and strange.exists()


def test_a_store_that_is_away_loses_nothing(tmp_path, monkeypatch):
    faulty = Faulty(Disk(tmp_path / "store"))
    store = Store(Disk(tmp_path / "cache"), faulty)
    store.patience = 0.0
    finish(claim(store), put(store, b"one"))
    loose = put(store, b"two")
    sweep(store, 0.0)
    for number in range(12):
        left = [number]

        def choose(call, name, left=left):
            left[0] -= 1
            return Fault.FAIL if left[0] < 0 else None

        faulty.choose = choose
        with pytest.raises(StoreAway):
            sweep(store, 0.0)
    faulty.choose = lambda call, name: None
    assert sweep(store, 0.0) == [loose]
