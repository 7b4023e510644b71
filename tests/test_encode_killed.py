"""The stage ``encode``, killed or damaged: the same bytes, and nothing whole is encoded twice."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from encoding import Case
from pipelines import run, toy_engine, write_corpus
from test_kill import die_after

from model.bpe import Tokenizer
from pipeline.data import shards
from pipeline.data.splits import SplitWriter
from pipeline.errors import Interrupted
from pipeline.stages import encode


def child(case: Case, acts: int) -> int:
    """Encode in a fork that dies before it does so many things to files; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            context = case.context(1)
            die_after(acts)
            encode.run(context)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_before_every_act(tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(encode, "SIZE", 40)
    case = Case(tmp_path, [b"some words and " * 8, b"more"], [b"the same words again " * 4])
    case.tokenizer.encode("")  # compiled, for all forks
    expected, total, acts = case.expected(), len(case.planned()), 0
    while True:
        acts += 1
        case.kept = tmp_path / f"kept{acts}"
        if (code := child(case, acts)) == 0:
            break
        assert code == -signal.SIGKILL
        done = case.described()
        encoded.clear()
        assert case.run() == expected
        assert len(encoded) == total - done and not list(case.kept.glob("*.shard"))
        assert case.run() == expected  # killed when all was there, but not the stage's result
        assert len(encoded) == total - done
    assert acts > 4 * total > 16


def stopped_after(case: Case, count: int) -> None:
    """Let somebody stop the stage when so many shards are there."""
    with pytest.raises(Interrupted, match="what was encoded so far is kept"):
        encode.run(case.context(1, stopping=lambda: case.described() >= count))
    assert case.described() == count


def test_going_on_says_what_is_there(case):
    stopped_after(case, 5)
    assert case.notes == []
    case.shown.clear()
    case.run()
    assert case.notes == ["goes on: 5.0 KiB of 33.2 KiB were encoded before"]
    assert case.shown[0][2] == "shards"  # another unit, so that the rate begins with what is new
    assert case.shown[-1][2] == "B"


@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "gone", "foreign", "no json"])
def test_a_shard_that_is_not_whole_or_not_ours_is_encoded_again(case, encoded, damage):
    stopped_after(case, 4)
    encoder = shards.Encoder(encode._files(case.context(1)), case.kept)
    before, at, after = case.planned()[5:8]  # behind a gap, so that they are not joined
    for shard in (before, at, after):
        encoder.encode(shard)
    file, description = encoder.path(at), case.kept / f"{at.name}.json"
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "changed":
        file.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    elif damage == "longer":
        file.write_bytes(data + b"\0\0")
    elif damage == "gone":
        file.unlink()
    elif damage == "foreign":  # whole, and of another text
        file.write_bytes(encoder.path(after).read_bytes())
        description.write_bytes((case.kept / f"{after.name}.json").read_bytes())
    else:
        description.write_text("[")
    encoded.clear()
    assert case.run() == case.expected()
    assert at.name in encoded and before.name not in encoded and after.name not in encoded


def test_a_damaged_token_file_is_mended(case, encoded):
    stopped_after(case, 6)
    path = case.kept / "train.tokens"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :])
    encoded.clear()
    assert case.run() == case.expected()
    assert "train-000000" not in encoded and "train-000005" in encoded


@pytest.mark.parametrize("change", ["tokenizer", "text", "ends"])
def test_of_other_inputs_nothing_is_taken(case, encoded, change):
    """An engine gives other inputs another folder; this is what holds without one."""
    case.run()
    total = len(case.planned())
    if change == "tokenizer":
        case.tokenizer = Tokenizer.train(case.texts["validation"], vocab_size=300)
        case.tokenizer.save(case.inputs["tokenizer/tokenizer.json"])
        expected = case.expected()
    else:  # the same lengths
        texts = case.texts["train"]
        texts[0] = texts[0][:-1] + b"#" if change == "text" else texts[0]
        if change == "ends":
            texts[2:4] = [texts[2] + texts[3][:1], texts[3][1:]]
        with SplitWriter(case.folder, "train") as split:
            for text in texts:
                split.add(text)
        expected = case.expected()
    encoded.clear()
    assert case.run() == expected
    assert len(encoded) >= (total if change == "tokenizer" else total // 2)


def test_what_is_published_is_not_written_to(case, encoded):
    """A result has the same bytes on the disk as the folder, which somebody may go on from."""
    expected = case.run()
    encoded.clear()
    max(case.kept.glob("train-*.json")).write_text("{}")
    case.kept.joinpath("train.tokens").chmod(0o444)
    assert case.run() == expected and len(encoded) == 1
    published = case.folder / "out0" / "train.tokens"
    assert published.read_bytes() == expected["train.tokens"]
    assert not published.samefile(case.kept / "train.tokens")


RUN = """
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from pipelines import MACHINE, run, toy_engine
from pipeline.data.joined import Joined
from pipeline.stages import encode
left, add = {kill_after}, Joined.add
def count(self, shard):
    global left
    left -= 1
    if not left:
        os.killpg(0, signal.SIGKILL)
    add(self, shard)
encode.SIZE, Joined.add = {size}, count
run(toy_engine(Path({store!r}), Path({corpus!r})), "encode", replace(MACHINE, workers=2))
"""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes there")
def test_kill_9_of_the_whole_group_at_random_moments(tmp_path, monkeypatch, encoded):
    """Through the engine: its folder outlives the kills, and is gone when there is a result."""
    monkeypatch.setattr(encode, "SIZE", 2000)
    draw, tests = random.Random(20_262), Path(__file__).parent
    corpus = write_corpus(tmp_path / "text.txt", words=60_000)
    whole = toy_engine(tmp_path / "whole", corpus)
    run(whole, "encode")
    total = len(encoded)
    store, done = tmp_path / "store", 0
    engine = toy_engine(store, corpus)
    run(engine, "tokenizer")
    paths = {"tests": tests, "root": tests.parent, "store": store, "corpus": corpus}
    paths = {name: str(path) for name, path in paths.items()}
    for _ in range(3):
        wanted = draw.randint(1, total // 5)
        code = RUN.format(size=2000, kill_after=wanted, **paths)
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        assert process.wait() == -signal.SIGKILL
        wait_until_gone(str(store))
        before, done = done, len(list(store.glob("work/*/*.json")))
        assert before + wanted <= done < total
    encoded.clear()
    _, printed = run(engine, "encode")
    assert len(encoded) == total - done and "goes on: " in printed
    assert not list((store / "work").iterdir())
    made, expected = (each.plan()[2].result for each in (engine, whole))
    assert made.body["files"] == expected.body["files"]


def wait_until_gone(word: str) -> None:
    """Wait for the end of all processes that were told of a path."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        there = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                there.append(word.encode() in path.read_bytes())
        if not any(there):
            return
        time.sleep(0.01)
    raise AssertionError("workers outlive the process that they work for")
