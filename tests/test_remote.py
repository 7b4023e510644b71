"""Remote places: the contract of storage.py on real servers, and what makes a place trustworthy."""

import functools
import itertools
import multiprocessing
import os
import threading
import time
import uuid
from pathlib import Path

import pytest
from servers import (
    forwarded,
    make_bucket,
    s3_environment,
    s3_server,
    web,
)

from pipeline.errors import StoreAway, StoreError
from pipeline.store import backends
from pipeline.store.disk import Disk
from pipeline.store.remote import NotExclusive, Remote
from pipeline.store.store import Store


@pytest.fixture(scope="module")
def s3():
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        make_bucket(endpoint, "bucket")
        yield endpoint


@pytest.fixture(params=["memory", "s3"])
def url(request) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return f"{request.param}://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def place(url) -> Remote:
    return Remote(url)


@pytest.fixture
def s3_place(s3) -> Remote:
    return Remote(f"s3://bucket/{uuid.uuid4().hex}")


@pytest.fixture
def file(tmp_path) -> Path:
    """A file of several parts, the last one short."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(251)) * (20_000_000 // 251))
    return path


def silent(_: int) -> None:
    pass


# the contract


def test_what_is_not_there(place):
    assert place.read("log/a/0") is None and place.stat("log/a/0") is None
    assert place.names("log") == [] and place.names("") == []
    place.remove("log/a/0")
    with pytest.raises(FileNotFoundError):
        next(place.chunks("log/a/0"))


def test_a_name_is_created_once(place):
    place.create("log/a/0", b"one")
    with pytest.raises(FileExistsError):
        place.create("log/a/0", b"two")
    assert place.read("log/a/0") == b"one"
    place.create("log/a/1", b"")
    assert place.read_many(["log/a/1", "log/a/2", "log/a/0"]) == [b"", None, b"one"]


def test_replace_lets_the_last_writer_win(place):
    place.replace("ref/name", b"one")
    place.replace("ref/name", b"two")
    assert place.read("ref/name") == b"two"
    place.remove("ref/name")
    assert place.read("ref/name") is None
    place.create("ref/name", b"three")


def test_names_are_of_one_folder(place):
    for name in ("log/b/0", "log/a/1", "log/a/0", "log/.DS_Store", "logs/c", "top"):
        place.create(name, b"x")
    assert place.names("log") == ["a", "b"]
    assert place.names("log/a") == ["0", "1"]
    assert place.names("") == ["log", "logs", "top"]
    assert place.names("log/a/0") == []


def test_stat_tells_size_and_time(place):
    before = time.time()
    place.create("log/a/0", b"four")
    size, modified = place.stat("log/a/0")
    assert size == 4 and before - 2 < modified < time.time() + 2
    assert place.stat("log") is None


@pytest.mark.parametrize("start", [0, 1, backends.PIECE - 1, backends.PIECE, 19_000_000])
def test_a_file_goes_there_and_comes_back(place, file, start):
    told = []
    place.upload(file, "blob/ab", told.append)
    assert sum(told) == file.stat().st_size == place.stat("blob/ab")[0]
    assert b"".join(place.chunks("blob/ab", start)) == file.read_bytes()[start:]


def test_an_empty_file_and_a_finished_one(place, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    place.upload(tmp_path / "empty", "blob/empty", silent)
    assert place.stat("blob/empty")[0] == 0 and list(place.chunks("blob/empty")) == []
    (tmp_path / "empty").write_bytes(b"now not")
    place.upload(tmp_path / "empty", "blob/empty", silent)
    assert list(place.chunks("blob/empty", 7)) == []
    assert list(place.chunks("blob/empty", 3)) == [b" not"]


@pytest.mark.parametrize("call", [Remote.read, Remote.stat, Remote.names, Remote.remove])
def test_a_missing_bucket_is_not_an_empty_one(s3, call):
    with pytest.raises(StoreError, match=r"^s3://missing/x: the bucket.*does not exist"):
        call(Remote("s3://missing/x"), "name")
    with pytest.raises(StoreError, match="does not exist"):
        Remote("s3://missing/x").replace("name", b"data")


class Enough(BaseException):
    """As KeyboardInterrupt, not an Exception."""


def test_an_upload_stops_when_the_report_raises(s3_place, file):
    from fsspec import filesystem

    stopped = Enough()

    def report(_: int) -> None:
        raise stopped

    file.write_bytes(bytes(150_000_000))
    with pytest.raises(Enough) as caught:
        s3_place.upload(file, "blob/ab", report)
    assert caught.value is stopped
    assert s3_place.stat("blob/ab") is None
    unfinished = filesystem("s3").call_s3("list_multipart_uploads", Bucket="bucket")
    assert unfinished.get("Uploads", []) == []


def test_a_reader_that_stops_early_costs_nothing(s3_place, file):
    s3_place.upload(file, "blob/ab", silent)
    pieces = s3_place.chunks("blob/ab")
    next(pieces)
    pieces.close()
    assert s3_place.read("nothing") is None


def test_many_threads_use_one_place(place):
    failed = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                place.create(f"log/{number}/{turn}", b"%d" % turn)
                place.replace(f"beat/{number}", b"%d" % turn)
                assert place.read(f"beat/{number}") == b"%d" % turn
            assert len(place.names(f"log/{number}")) == 10
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_another_wrote_is_seen_at_once(url):
    one, other = Remote(url), Remote(url)
    one.create("log/a/0", b"0")
    assert one.names("log/a") == ["0"] and one.stat("log/a/1") is None and one.names("new") == []
    other.create("log/a/1", b"1")
    other.replace("log/a/0", b"longer")
    other.create("new/name", b"2")
    assert one.read("log/a/1") == b"1" and one.read("log/a/0") == b"longer"
    assert one.stat("log/a/0")[0] == 6 and list(one.chunks("log/a/0")) == [b"longer"]
    assert one.names("log/a") == ["0", "1"] and one.names("new") == ["name"]


def test_a_forked_process_connects_anew(s3_place):
    s3_place.create("log/a/0", b"parent")
    child = os.fork()
    if child == 0:
        try:
            s3_place.create("log/a/1", s3_place.read("log/a/0") + b"'s child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert s3_place.read("log/a/1") == b"parent's child"


# exactly one


ROUNDS, PROCESSES = 200, 4


def racer(url: str, cache: Path, barrier, number: int, results) -> None:
    store, won = Store(Disk(cache), Remote(url)), []
    store.read("connected")
    for turn in range(ROUNDS):
        barrier.wait(60)
        if store.create(f"race/{turn}", b"%d" % number):
            won.append(turn)
    results.put((number, won))


def test_of_racing_processes_exactly_one_wins(s3_place, tmp_path):
    """Through a store, which reads back: on a busy machine a winner's answer does get lost."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(
            target=racer, args=(s3_place.place, tmp_path, barrier, number, results), daemon=True
        )
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    won = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    contents = s3_place.read_many([f"race/{turn}" for turn in range(ROUNDS)])
    for turn, content in enumerate(contents):
        winners = [b"%d" % number for number, turns in won.items() if turn in turns]
        assert winners == [content]
    assert len([number for number in won if won[number]]) > 1, "nobody raced"


def test_a_good_place_passes_the_probe_and_is_left_clean(place):
    assert place.exclusive
    place.probe()
    assert place.names("") == []


def test_the_probe_wants_reads_to_show_the_last_write(place, monkeypatch):
    monkeypatch.setattr(place, "replace", lambda name, data: None)
    with pytest.raises(NotExclusive, match="does not show what was last written"):
        place.probe()


@pytest.mark.parametrize(
    ("careless", "words"),
    [(range(4), "4 of 4 creations won"), ([4], "creates a name that is taken")],
)
def test_the_probe_sees_carelessness_in_a_race_and_after_it(monkeypatch, careless, words):
    place, calls, create = Remote("memory://careless"), itertools.count(), Remote.create

    def careless_create(name: str, data: bytes) -> None:
        write = place.replace if next(calls) in careless else functools.partial(create, place)
        write(name, data)

    monkeypatch.setattr(place, "create", careless_create)
    with pytest.raises(NotExclusive, match=words):
        place.probe()


def test_memory_is_exclusive_between_threads(monkeypatch):
    from fsspec.implementations.memory import MemoryFile

    commit = MemoryFile.commit
    monkeypatch.setattr(MemoryFile, "commit", lambda file: (time.sleep(0.02), commit(file)))
    Remote("memory://slow").probe()


@pytest.fixture
def forgetful(s3, monkeypatch):
    """A way to S3 on which the answer to the first successful PUT is lost."""
    lost = []

    def answer(request):
        told = forwarded(request, s3)
        if request.method == "PUT" and told.status == 200 and not lost:
            lost.append(request.path)
            return None
        return told

    with web(answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield lost


def test_a_lost_answer_leaves_our_bytes(forgetful, s3_place):
    with pytest.raises((FileExistsError, StoreAway)):
        s3_place.create("log/a/0", b"ours")
    assert len(forgetful) == 1 and s3_place.read("log/a/0") == b"ours"


def test_a_lost_answer_does_not_mislead_the_probe(forgetful, s3_place):
    s3_place.probe()
    assert len(forgetful) == 1
