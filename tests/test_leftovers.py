"""What the dead left behind, apart from blobs, goes when it is old enough."""

import os
import shutil

import pytest
from stores import (
    DAY,
    KEY,
    OTHER,
    age,
    claim,
    files,
    finish,
    put,
    store_at,
    sweep,
)

from pipeline.engine import leftovers
from pipeline.engine.clocks import Clocks, read_clocks
from pipeline.engine.gc import collect, survey
from pipeline.engine.leftovers import Item
from pipeline.engine.needed import all_blobs
from pipeline.hashing import canonical
from pipeline.store import locks
from pipeline.store.locks import alone
from pipeline.store.store import Store


@pytest.fixture(params=["local", "elsewhere"])
def store(request, tmp_path):
    return store_at(request.param, tmp_path)


@pytest.fixture
def elsewhere(tmp_path):
    return store_at("elsewhere", tmp_path)


def test_beats_of_the_dead_go_once_their_logs_have_moved_on(store):
    place = store.records
    for key, owner in ((KEY, "old-1-a"), (KEY, "new-2-b"), (OTHER, "late-3-c"), (OTHER, "young-4")):
        store.replace(f"beat/{key}/{owner}", b"{}")
        store.disk.path(f"beat/{key}").mkdir(parents=True, exist_ok=True)
        store.disk.path(f"beat/{key}/{owner}.lock").write_bytes(b"")
    for key, owner in ((KEY, "old-1-a"), (KEY, "new-2-b"), (OTHER, "late-3-c")):
        age(place, 2 * DAY, f"beat/{key}/{owner}")
        age(store.disk, 2 * DAY, f"beat/{key}/{owner}.lock")
    claim(store, KEY, "old-1-a")
    claim(store, KEY, "new-2-b")  # still in force: others may yet judge by its beat
    finish(claim(store, OTHER, "late-3-c"))
    sweep(store)
    assert [n for n in place.names(f"beat/{KEY}") if ".lock" not in n] == ["new-2-b"]
    assert [n for n in place.names(f"beat/{OTHER}") if ".lock" not in n] == ["young-4"]
    assert [n for n in store.disk.names(f"beat/{KEY}") if ".lock" in n] == ["new-2-b.lock"]
    assert [n for n in store.disk.names(f"beat/{OTHER}") if ".lock" in n] == ["young-4.lock"]


def test_trials_and_unfinished_files_in_the_store_go_when_they_are_old(elsewhere):
    for name in ("probe/old", "probe/young", "tmp/old", "tmp/young"):
        elsewhere.replace(name, b"half")
    age(elsewhere.records, 2 * DAY, "probe/old", "tmp/old")
    sweep(elsewhere)
    assert elsewhere.names("probe") == elsewhere.names("tmp") == ["young"]


def at(store: Store, days: float) -> Clocks:
    """So many days from now by both clocks."""
    now = read_clocks(store)
    return Clocks(now.store + days * DAY, now.disk + days * DAY)


def test_what_the_dead_left_on_this_disk_goes_when_it_is_old(store):
    for name in ("tmp/1-dead/half", f"part/{KEY}", f"part/{KEY}.lock", f"damaged/{KEY}.7"):
        store.disk.path(name).parent.mkdir(parents=True, exist_ok=True)
        store.disk.path(name).write_bytes(b"half")
        os.utime(store.disk.path(name), (0, 0))  # it came just now, whatever the file says
    assert not survey(store, at(store, 0.9)).rest
    gone = collect(store, survey(store, at(store, 1.1)))
    whats = sorted(item.what for item in gone)
    assert whats == ["damaged blob", "partial blob", "temporary file"]
    assert sum(item.size for item in gone if item.what != "temporary file") == 8
    assert store.disk.names("tmp") == store.disk.names("damaged") == []
    assert store.disk.names("part") == [f"{KEY}.lock"]


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
@pytest.mark.parametrize("days", [0.01, 400])
def test_temporary_files_stay_as_long_as_their_process_lives(store, days):
    """However old they are, and however short the grace. After that the grace alone decides."""
    with store.scratch() as scratch:
        (scratch / "half").write_bytes(b"half")
        assert not [i for i in survey(store, at(store, days), 0.0).rest if "tmp/" in i.name]
    with store.scratch() as scratch:
        (scratch / "half").write_bytes(b"half")
        shutil.copytree(scratch, scratch.with_name("1-dead"))  # its lock is held by nobody
        survey(store, at(store, days), 0.0)
        assert [item.name for item in collect(store, survey(store, at(store, days), 0.0))] == [
            "tmp/1-dead"
        ]
        assert (scratch / "half").exists()


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_kept_folder_is_found_again_by_one_process_at_a_time(store):
    with store.disk.kept(KEY) as folder:
        (folder / "half").write_bytes(b"half")
        with store.disk.kept(KEY) as other:  # by somebody else
            assert other != folder and not (other / "half").exists()
        assert not other.exists()
    with store.disk.kept(KEY) as again:
        assert again == folder and (again / "half").read_bytes() == b"half"


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_kept_folder_goes_when_it_is_old_and_not_in_use(store):
    with store.disk.kept(KEY) as folder:
        (folder / "half").write_bytes(b"half")
        assert not survey(store, at(store, 0.9)).rest
        old = survey(store, at(store, 1.1))
        assert [item.what for item in old.rest] == ["part of a result"]
        assert not collect(store, old) and (folder / "half").exists()
    assert [item.name for item in collect(store, old)] == [f"work/{KEY}"]
    assert not folder.exists()


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_folder_that_goes_while_it_is_taken_is_not_taken(tmp_path, monkeypatch):
    import fcntl

    folder = tmp_path / "folder"
    assert locks.take(folder) is None  # it was there a moment ago
    folder.mkdir()
    flock = fcntl.flock

    def too_late(file, how):
        shutil.rmtree(folder, ignore_errors=True)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    assert locks.take(folder) is None


def test_temporary_files_of_which_nobody_can_tell_stay_for_a_day(store):
    store.disk.replace("tmp/1-old/half", b"half")
    assert not survey(store, at(store, 0.9), 0.0).rest
    assert [item.name for item in survey(store, at(store, 1.1), 0.0).rest] == ["tmp/1-old"]


def test_a_lock_that_is_about_to_be_taken_counts(store):
    store.disk.replace("tmp/1-young/.held", b"")
    assert not survey(store, at(store, 0), 0.0).rest
    assert [item.name for item in survey(store, at(store, 0.01), 0.0).rest] == ["tmp/1-young"]


def test_a_part_that_is_being_fetched_stays(store):
    part = store.disk.path(f"part/{KEY}")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    found = survey(store, at(store, 2))
    with alone(part, lambda: None):
        assert collect(store, found) == [] and part.exists()
    assert [item.name for item in collect(store, found)] == [f"part/{KEY}"]


def test_copies_that_the_store_does_without_go(elsewhere):
    """But not those of a checkpoint that waits here to be sent, until others have the result."""
    needed, loose, waits = (put(elsewhere, data) for data in (b"one", b"two", b"three"))
    finish(claim(elsewhere), needed)
    owner = claim(elsewhere, OTHER)
    elsewhere.disk.replace(f"unsent/{OTHER}", canonical({"step": 4, "seconds": 1, **files(waits)}))
    collect(elsewhere, survey(elsewhere, at(elsewhere, 0.9)))
    assert sorted(all_blobs(Store(elsewhere.disk))) == sorted([needed, loose, waits])
    collect(elsewhere, survey(elsewhere, at(elsewhere, 1.1)))
    assert sorted(all_blobs(Store(elsewhere.disk))) == sorted([needed, waits])
    finish(owner, needed)
    collect(elsewhere, survey(elsewhere, at(elsewhere, 1.1)))
    assert elsewhere.disk.names("unsent") == []
    collect(elsewhere, survey(elsewhere, at(elsewhere, 1.1)))
    assert all_blobs(Store(elsewhere.disk)) == [needed]


def test_a_leftover_that_vanishes_while_we_look_is_nobodys_harm(store):
    gone = Item("temporary file", "tmp/1-a", 1, here=True)
    assert leftovers.remove(store, gone)
    assert leftovers._age_and_size(store.disk.path("tmp/1-a")) == (float("inf"), 0)
