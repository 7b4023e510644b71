"""What people type as a place: slips are told with what was meant, and never become a directory."""

import contextlib
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from commands import TOY_RECIPE, pipeline
from pipelines import local_store, run, toy_engine

from pipeline.errors import StoreError
from pipeline.store.places import check, open_store

WRONG = [
    ("memory://x", "memory://x ends with this process and keeps nothing: give a directory or a"),
    ("foo://x", "foo://x: there is no kind of place called foo://: give a directory or a URL"),
    ("s3:bucket/x", "did you mean s3://bucket/x? For a directory of that name, write ./ before"),
    ("gs:/bucket/x", "did you mean gs://bucket/x?"),
    ("file:/tmp/x", "did you mean /tmp/x?"),
    ("file://tmp/x", "a file URL has three slashes: did you mean file:///tmp/...?"),
    ("", "'' is no place: give a directory or a URL such as s3://bucket/folder"),
    ("s3://", "'s3://' is no remote place"),
    ("s3://me:sesame@bucket/x", "holds no password"),
    ("s3:me:sesame@bucket/x", "did you mean s3://bucket/x?"),
]
WINDOWS = [("C:\\runs", "C:\\runs is a path of Windows"), ("d:/runs", "d:/runs is a path of")]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, corpus):
    """A store with a result of prepare; tests only read it."""
    engine = toy_engine(tmp_path_factory.mktemp("prepared") / "store", corpus)
    run(engine, "prepare")
    return engine.store.root


@pytest.mark.parametrize(("place", "answer"), [*WRONG, *(WINDOWS if os.name != "nt" else [])])
@pytest.mark.parametrize("verb", ["run", "push", "pull", "--from", "gc"])
def test_what_is_no_place_is_answered_and_makes_nothing(tmp_path, prepared, verb, place, answer):
    words = {
        "push": ["push", place, "--store", prepared],
        "pull": ["pull", place, "--store", "mine"],
        "--from": ["status", "--from", place, "--store", "mine"],
    }.get(verb, [verb, "--store", place])
    told = pipeline(*words)
    name = {"push": "PLACE", "pull": "PLACE", "--from": "--from"}.get(verb, "--store")
    assert told.code == 2 and f"Error: {name}: " in told.err, told
    assert answer in told.err and "sesame" not in told.err and told.out == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["file", "file/store", "file/a/b"])
def test_a_file_is_no_store(tmp_path, place):
    (tmp_path / "file").write_text("text")
    for verb in ("run", "status", "sample", "generate", "verify"):
        told = pipeline(verb, "--store", place)
        assert told.code == 2 and "Error: --store: file is a file: give a directory" in told.err


@pytest.mark.parametrize("place", ["./s3:bucket/x", "runs:1", "x/C:/y", "~/runs", "new/a/b"])
def test_what_is_a_directory_all_the_same(place):
    check(place)
    assert open_store(place).remote is None


def test_programs_may_use_memory():
    with pytest.raises(StoreError, match="keeps nothing"):
        check("memory://test_places")
    store = open_store("memory://test_places")
    assert store.create("name", b"one") and store.read("name") == b"one"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_over_http_a_place_is_only_read(prepared, tmp_path, corpus):
    with serving(prepared) as url:
        told = pipeline("pull", url, "--store", "mine")
        assert told.code == 0 and told.out.startswith("pulled 1 result"), told
        told = pipeline("status", "--store", "other", "--data", corpus, *TOY_RECIPE, "--from", url)
        assert told.code == 0 and f"in {url}" in told.out
        for words in (["push", url, "--store", prepared], ["run", "--store", url]):
            told = pipeline(*words)
            assert told.code == 2 and "over HTTP a place can only be read, with --from" in told.err


# other stores to take results from


@pytest.mark.parametrize(
    "words", [["run"], ["run", "-n"], ["status"], ["adopt", "123456"], ["explain", "train"]]
)
def test_a_from_that_is_not_there_is_a_mistake(tmp_path, words):
    told = pipeline(*words, "--from", tmp_path / "none", "--store", "mine")
    assert told.code == 2 and f"--from: there is no directory {tmp_path / 'none'}" in told.err
    assert os.listdir(tmp_path) == []


def test_a_from_with_nothing_in_it_is_noted(tmp_path, prepared, corpus):
    words = ["status", "--store", "mine", "--data", corpus, *TOY_RECIPE]
    told = pipeline(*words, "--from", tmp_path)
    assert told.code == 0
    assert told.err == (
        f"note: --from: there is nothing in {tmp_path}: no stage has ever run there\n"
    )
    assert pipeline(*words, "--from", prepared).err == ""


@pytest.mark.parametrize("verb", ["gc", "verify", "push", "pull"])
def test_where_nothing_is_nobody_says_that_all_is_well(tmp_path, verb):
    words = {"push": ["push", "copy", "--store", "none"], "pull": ["pull", "none"]}
    told = pipeline(*words.get(verb, [verb, "--store", "none"]))
    assert told.code == 1 and told.out == ""
    assert told.err == "error: there is nothing in none: no stage has ever run there\n"
    assert not (tmp_path / "none").exists()


def test_a_store_that_cannot_be_read_says_what_and_why(prepared, monkeypatch):
    read = os.listdir

    def refuse(path):
        if str(path).endswith("log"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "listdir", refuse)
    told = pipeline("verify", "--store", prepared)
    log = local_store(prepared).root / "log"
    assert told.code == 1 and told.err == (
        f"error: cannot read the store {prepared}: Permission denied ({log}). Give a directory "
        "that you may read with --store\n"
    )
