"""Disks that fail: full, read-only, without links, with limits; each said with what to do."""

import errno
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from commands import TOY, pipeline
from pipelines import digests, local_store, run, toy_engine, write_corpus

from pipeline.errors import StoreError
from pipeline.store import disk as disk_module
from pipeline.store.disk import is_full


@pytest.fixture
def store(tmp_path):
    return local_store(tmp_path / "store")


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
        (errno.EFBIG, r"a file in the store .* would be larger .*`ulimit -f`.*with --store"),
        (errno.ENAMETOOLONG, r"store can be no store: File name too long. Give another"),
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


@pytest.mark.parametrize(
    ("call", "function"),
    [
        (lambda store: store.read("ref/latest"), "pathlib.Path.read_bytes"),
        (lambda store: store.names("log"), "os.listdir"),
        (lambda store: store.stat("ref/latest"), "pathlib.Path.stat"),
    ],
)
def test_a_failed_read_is_explained(store, monkeypatch, call, function):
    store.replace("ref/latest", b"one")

    def fails(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(function, fails)
    words = r"cannot read the store .*: Permission denied \(.*/store/(ref/latest|log)\)\. Give"
    with pytest.raises(StoreError, match=words):
        call(store)


def test_a_file_where_a_folder_should_be_holds_nothing(store):
    store.replace("log/notes.txt", b"mine")
    assert store.names("log/notes.txt") == [] and store.read("log/notes.txt/0") is None


def test_a_limit_on_the_size_of_files_is_explained(tmp_path, corpus):
    """By a process of its own: the limit cannot be raised again."""
    command = [sys.executable, "-c", "from pipeline.cli.main import main; main()", "run", "train"]
    command += map(str, ["--store", tmp_path / "store", "--data", corpus, *TOY])
    limited = ["bash", "-c", f"ulimit -f 40; exec {shlex.join(command)}"]
    told = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert told.returncode == 1, told
    assert f"error: a file in the store {tmp_path / 'store'} would be larger" in told.stderr


def test_a_full_disk_is_told_from_the_words_of_a_library():
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_full(RuntimeError("I/O error: No such file (os error 2)"))


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
