"""The store: one winner, nothing half done, and words for every way a disk can fail."""

import errno
import multiprocessing
import os
import shutil
import subprocess
import time
from contextlib import suppress

import pytest
from commands import TOY, pipeline
from pipelines import digests, local_store, run, toy_engine, write_corpus

from pipeline import hashing
from pipeline.errors import StoreError
from pipeline.store import disk as disk_module
from pipeline.store.disk import is_full
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


# disks that fail


def test_a_file_system_without_hard_links_is_refused(store, monkeypatch):
    def refuses(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    with pytest.raises(StoreError, match=r"has no hard links.*another disk with --store"):
        store.create("name", b"one")
    assert store.names("tmp") == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"no space left in the store .* MiB free\).*--store"),
        (errno.EDQUOT, r"no space left in the store"),
        (errno.EROFS, r"cannot write to the store .*: Read-only file system.*--store"),
        (errno.EACCES, r"cannot write to the store .*: Permission denied"),
        (errno.EIO, r"the store .* failed: \[Errno 5\] Input/output error"),
    ],
)
def test_a_failed_write_is_explained(store, monkeypatch, number, words):
    store.create("name", b"one")

    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk_module, "_write", fails)
    with pytest.raises(StoreError, match=words):
        store.create("other", b"two")


def test_a_full_disk_is_told_from_the_words_of_a_library():
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_full(RuntimeError("I/O error: No such file (os error 2)"))


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


@pytest.mark.parametrize("verb", ["run", "status", "sample", "generate"])
def test_a_file_is_no_store(tmp_path, verb):
    (tmp_path / "file").write_text("text")
    told = pipeline(verb, "--store", tmp_path / "file")
    assert told.code == 1
    assert told.err == f"error: --store {tmp_path / 'file'} is a file: give a directory\n"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB, and what mounts it in another way."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a disk to fill")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)

    if (mounted := mount("-t", "tmpfs", "-o", "size=2m", "tmpfs")).returncode:
        pytest.skip(f"cannot mount a disk here: {mounted.stderr.strip()}")
    yield place, lambda options: mount("-o", f"remount,{options}").check_returncode()
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize(
    ("words", "settings", "stage"),
    [
        (900_000, ["data.validation=0.004"], "prepare"),
        (300, ["model.width=96", "model.feed_forward=192"], "train"),
    ],
    ids=["text", "second checkpoint"],
)
def test_a_full_disk_costs_nothing_but_room(small_disk, tmp_path, words, settings, stage):
    place, remount = small_disk
    corpus = write_corpus(tmp_path / "text.txt", words)
    assert words < 1000 or corpus.stat().st_size > 2 << 20
    command = ["run", "--store", place / "store", "--data", corpus, *TOY]
    command += [word for setting in settings for word in ("--set", setting)]
    told = pipeline(*command)
    assert told.code == 1
    assert told.err.startswith(f"error: no space left in the store {place / 'store'} ("), told.err
    assert "--store" in told.err and told.err.count("\n") == 1
    assert [line for line in told.out.splitlines() if ": " in line][-1].startswith(f"{stage}: ")
    store = local_store(place / "store")
    for blob in store.blobs():
        store.blob(blob)
    assert store.names("tmp") == []
    remount("size=64m")
    again = pipeline(*command)
    assert again.code == 0
    assert stage != "train" or "going on from step 2" in again.out
    whole = toy_engine(tmp_path / "whole", corpus, *settings)
    run(whole)
    assert digests(toy_engine(place / "store", corpus, *settings)) == digests(whole)


def test_a_read_only_store_can_be_read_and_says_why_not_more(small_disk, tmp_path):
    place, remount = small_disk
    corpus = write_corpus(tmp_path / "text.txt", 300)
    command = ["run", "encode", "--store", place, "--data", corpus, *TOY]
    assert pipeline(*command).code == 0
    remount("ro")
    assert pipeline("status", "--store", place).code == 0
    assert "nothing to do" in pipeline(*command).out
    told = pipeline(*command, "--set", "tokenizer.vocab_size=280")
    assert told.code == 1
    assert told.err == (
        f"error: cannot write to the store {place}: Read-only file system. Give a directory that "
        "you may write to with --store\n"
    )
