"""The store: one winner, and nothing half done."""

import errno
import multiprocessing
import os
import time
from contextlib import suppress

import pytest
from pipelines import local_store

from pipeline import hashing
from pipeline.errors import StoreError
from pipeline.store.locks import machine_id
from pipeline.store.places import open_store
from pipeline.store.store import Store


@pytest.fixture
def store(tmp_path):
    return local_store(tmp_path / "store")


def put(store: Store, data: bytes) -> str:
    with store.scratch() as scratch:
        (scratch / "file").write_bytes(data)
        return store.put(scratch / "file")


# records


def test_a_created_record_is_read_back(store):
    assert store.create("log/a/0", b"one")
    assert store.read("log/a/0") == b"one"
    assert store.names("log") == ["a"] and store.names("log/a") == ["0"]


def test_what_is_not_there(store):
    assert store.read("log/a/0") is None
    assert store.names("log") == []
    store.remove("log/a/0")
    assert not store.root.exists()


def test_a_name_is_created_once(store):
    assert store.create("name", b"one")
    assert not store.create("name", b"two")
    assert store.read("name") == b"one"


def test_creating_the_same_again_is_no_loss(store):
    assert store.create("name", b"one") and store.create("name", b"one")


def test_replace_lets_the_last_writer_win(store):
    store.replace("ref/name", b"one")
    store.replace("ref/name", b"two")
    assert store.read("ref/name") == b"two"


def test_names_leaves_out_what_file_managers_leave_behind(store):
    store.create("log/a/0", b"one")
    (store.root / "log" / ".DS_Store").write_bytes(b"")
    assert store.names("log") == ["a"]


ROUNDS, PROCESSES = 50, 4


def racer(store: Store, barrier, number: int, results) -> None:
    won = []
    for turn in range(ROUNDS):
        barrier.wait()
        won.append(store.create(f"race/{turn}", b"%d" % number))
    results.put((number, won))


def test_of_racing_processes_exactly_one_wins(store):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=racer, args=(store, barrier, number, results))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    won = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    for turn in range(ROUNDS):
        winners = [number for number, wins in won.items() if wins[turn]]
        assert len(winners) == 1
        assert store.read(f"race/{turn}") == b"%d" % winners[0]


def test_a_lost_answer_is_no_lost_race(store, monkeypatch):
    """The name was given, but the call failed, as may happen over a network."""
    link = os.link

    def fails_afterwards(source, target):
        link(source, target)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "link", fails_afterwards)
    assert store.create("name", b"one")
    assert not store.create("name", b"two")


# blobs


def test_a_blob_is_named_by_its_content(store):
    name = put(store, b"bytes")
    assert name == hashing.digest(b"bytes")
    assert store.blob(name).read_bytes() == b"bytes"
    assert list(store.blobs()) == [name]
    assert os.listdir(store.root / "tmp") == []


def test_a_blob_is_kept_once(store):
    assert put(store, b"bytes") == put(store, b"bytes")
    assert len(list(store.blobs())) == 1


def test_has_looks_at_the_size(store):
    name = put(store, b"bytes")
    assert store.has(name, 5) and not store.has(name, 4)
    assert not store.has(hashing.digest(b"other"), 5)


def test_a_removed_blob_is_gone(store):
    name = put(store, b"bytes")
    store.remove_blob(name)
    store.remove_blob(name)
    assert list(store.blobs()) == []


def test_a_missing_blob_says_what_makes_it_again(store):
    with pytest.raises(StoreError, match=r"is missing from .*: run `pipeline run` again"):
        store.blob("0" * 64)


@pytest.mark.parametrize("damage", [b"bytez", b"byte", b""])
def test_a_damaged_blob_is_found_and_moved_aside(store, damage):
    name = put(store, b"bytes")
    path = store.blob_path(name)
    path.chmod(0o644)
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"is damaged.*moved to .*run `pipeline run` again"):
        store.blob(name)
    assert not store.has(name, 5)
    (aside,) = (store.root / "damaged").iterdir()
    assert aside.read_bytes() == damage
    assert put(store, b"bytes") == name and store.blob(name).read_bytes() == b"bytes"


def test_a_blob_that_was_cut_short_is_replaced_by_the_next_put(store):
    name = put(store, b"bytes")
    store.blob_path(name).chmod(0o644)
    store.blob_path(name).write_bytes(b"by")
    put(store, b"bytes")
    assert store.blob(name).read_bytes() == b"bytes"


# death


def dies_in(call: str, work, monkeypatch) -> None:
    """Do ``work`` in a process that dies when it calls ``os.<call>``."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, call, lambda *_, **__: os._exit(9))
        with suppress(BaseException):
            work()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_death_during_put_leaves_no_blob(store, monkeypatch, call):
    dies_in(call, lambda: put(store, b"bytes"), monkeypatch)
    assert list(store.blobs()) == []
    assert len(store.names("tmp")) == 1
    assert put(store, b"bytes")


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_death_during_create_leaves_no_record(store, monkeypatch, call):
    dies_in(call, lambda: store.create("log/a/0", b"one"), monkeypatch)
    assert store.read("log/a/0") is None
    assert store.create("log/a/0", b"two")


def test_scratch_space_is_gone_after_an_error(store):
    with pytest.raises(RuntimeError), store.scratch() as scratch:
        (scratch / "file").write_bytes(b"half")
        raise RuntimeError
    assert store.names("tmp") == []


def test_sweep_removes_what_the_dead_left_behind_and_nothing_young(store):
    for name, age in (("old", 90_000), ("young", 80_000)):
        folder = store.root / "tmp" / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"half")
        for path in (folder / "file", folder):
            os.utime(path, (time.time() - age,) * 2)
    store.disk.sweep()
    assert store.names("tmp") == ["young"]


def test_sweep_leaves_a_file_that_is_still_written_to(store):
    folder = store.root / "tmp" / "busy"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"half")
    os.utime(folder, (0, 0))
    store.disk.sweep()
    assert store.names("tmp") == ["busy"]


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_sweep_leaves_what_a_living_process_holds(store):
    """It may have been suspended for days."""
    with store.scratch() as scratch:
        (scratch / "file").write_bytes(b"half")
        held = scratch.name
        for path in (*scratch.iterdir(), scratch):
            os.utime(path, (0, 0))
        store.disk.sweep()
        assert (scratch / "file").read_bytes() == b"half"
    assert store.names("tmp") == []
    dies_in("fsync", lambda: put(store, b"bytes"), pytest.MonkeyPatch())
    (dead,) = (store.root / "tmp").iterdir()
    assert dead.name != held
    store.disk.sweep()
    assert store.names("tmp") == [dead.name], "it may be about to take its lock"

    def age(seconds: float) -> None:
        for path in (*dead.iterdir(), dead):
            os.utime(path, (time.time() - seconds,) * 2)

    age(100)
    (dead / ".held").write_text("another machine")
    age(100)
    store.disk.sweep()
    assert store.names("tmp") == [dead.name], "whose locks may not reach here"
    (dead / ".held").write_text(machine_id())
    age(100)
    store.disk.sweep()
    assert store.names("tmp") == []


# places


@pytest.mark.parametrize("place", ["", "file://", "s3://key:secret@bucket/store"])
def test_what_can_be_no_store(place):
    with pytest.raises(StoreError) as caught:
        open_store(place)
    assert "secret" not in str(caught.value)


def test_a_directory_as_a_url(tmp_path):
    assert open_store(f"file://{tmp_path}/a%20store").root == tmp_path / "a store"


def test_a_store_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/runs").root == tmp_path / "runs"
