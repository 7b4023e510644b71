"""The stage ``encode``: the same bytes from any number of processes, however the text is cut."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoding import SIZE, Case

from model import cores as cores_module
from model import cut
from model.bpe import Tokenizer
from pipeline.data import shards
from pipeline.errors import Interrupted
from pipeline.stages import encode
from pipeline.workers import Workers


@pytest.mark.parametrize("size", [9, 100, SIZE, shards.SIZE])
def test_the_bytes_do_not_depend_on_where_shards_end(case, monkeypatch, size):
    monkeypatch.setattr(encode, "SIZE", size)
    assert case.run() == case.expected()


@pytest.mark.parametrize("workers", [2, 3])
def test_nor_on_who_encodes_them(case, workers):
    assert case.run(workers) == case.expected()
    total = sum(len(text) for texts in case.texts.values() for text in texts)
    assert case.shown[0][:3] == (0, total, "B") and case.shown[-1][:3] == (total, total, "B")


def test_special_tokens_in_a_text_are_plain_text(case):
    ids = np.frombuffer(case.run()["train.tokens"], "<u2")
    assert (ids == case.tokenizer.end_of_text).sum() == len(case.texts["train"])


@pytest.mark.parametrize("size", [1, 3, 100])
def test_documents_of_nothing(tmp_path, monkeypatch, size):
    """The stage ``prepare`` leaves them out; each would be an end-of-text by itself."""
    monkeypatch.setattr(encode, "SIZE", size)
    case = Case(tmp_path, [b"", b"a b", b"", b"", b"c d e f", b""], [b"x"])
    assert case.run() == case.expected()


def test_where_shards_end(case):
    """With a document or at a cut, and near their size where the text lets them."""
    found = [shard for shard in case.planned() if shard.split == "train"]
    assert [shard.start for shard in found] == [0, *(shard.stop for shard in found[:-1])]
    assert sum(shard.last - shard.first for shard in found) == len(case.texts["train"])
    stuck = b"".join(case.texts["train"]).index(b"oneword" * 600)
    (long,) = (shard for shard in found if shard.bytes > SIZE * 9 // 8 + 200)
    assert long.start <= stuck and long.stop >= stuck + 7 * 600


def test_a_cut_far_behind_is_found(tmp_path, monkeypatch):
    """Also where a window of the search ends in the middle of what it looks for."""
    monkeypatch.setattr(cut, "_WINDOW", 16)
    for before in range(60, 80):
        text = b"(" * before + "中 ".encode() + b")" * 300
        (tmp_path / "t.text").write_bytes(text)
        (tmp_path / "t.ends").write_bytes(np.array([len(text)], "<u8").tobytes())
        found = list(shards.shards("t", tmp_path / "t.text", tmp_path / "t.ends", 50))
        assert [shard.stop for shard in found] == [before + 3, len(text)]


def test_wide_tokens(tmp_path, monkeypatch):
    """A vocabulary of more than 65,536 tokens needs four bytes for each."""
    case = Case(tmp_path, [b"a b"], [b"b a"])
    case.tokenizer = Tokenizer([(1 + i, 1 + j) for i in range(256) for j in range(256)])
    case.tokenizer.save(case.inputs["tokenizer/tokenizer.json"])
    made = case.run()
    assert made == case.expected() and len(made["train.tokens"]) == 4 * 3


# workers


def test_how_many_there_are(case, monkeypatch):
    """None for a small text; else, with this process, one for each core, but not more than there
    are shards.
    """
    started = []

    class Counted(Workers):
        def __init__(self, count, *rest):
            started.append(count)
            super().__init__(1, *rest)

    monkeypatch.setattr(encode, "Workers", Counted)
    case.run(0)
    assert started == []
    for cores, count in ((1, None), (7, 7), (100, encode.MOST)):
        case.kept = case.folder / f"kept{cores}"
        monkeypatch.setattr(encode, "SMALL", 0)
        monkeypatch.setattr(encode, "cores", lambda cores=cores: cores)
        case.run(0)
        assert started == ([count - 1] if count else [])
        started.clear()
    case.kept = case.folder / "kept of many"
    case.run(1000)
    assert started == [len(case.planned()) - 1]


def test_cores_are_those_that_a_container_is_given(monkeypatch):
    told = {"max 100000": 8, "150000 100000": 1, "50000 100000": 1, "300000 100000": 3}
    told |= {"nonsense": 8, "6400000 100000": 8}
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for limit, count in told.items():
        monkeypatch.setattr(Path, "read_text", lambda self, limit=limit: limit)
        assert cores_module.cores() == count


def test_a_worker_that_is_killed_is_told_of_and_nothing_is_lost(case, monkeypatch, encoded):
    do, done = Workers.do, []

    def kill_one(self, jobs, here):
        for answer in do(self, jobs, here):
            if answer is not None:
                done.append(answer)
                self.processes[0].kill()
            yield answer

    monkeypatch.setattr(Workers, "do", kill_one)
    with pytest.raises(ValueError, match=r"worker 1 of 1 was killed by signal 9, as.*--workers 1"):
        case.run(2)
    assert 0 < len(done) <= case.described() < len(case.planned())
    before = case.described()
    encoded.clear()
    assert case.run() == case.expected()
    assert len(encoded) == len(case.planned()) - before


def test_a_workers_error_is_this_processs(case):
    files = encode._files(case.context(1))
    nowhere = [json.dumps(files), str(case.folder / "nowhere")]
    damaged = [json.dumps(files | {"tokenizer": files["train.text"]}), str(case.folder)]
    for words, kind, said in (
        (nowhere, OSError, "No such file"),
        (damaged, ValueError, "worker 1 of 1 has ended: .* is not a tokenizer"),
    ):
        with (
            Workers(1, "pipeline.data.shards", words, case.folder) as workers,
            pytest.raises(kind, match=said) as raised,
        ):
            list(workers.do([vars(shard) for shard in case.planned()[:1]], print))
        if kind is OSError:
            assert raised.value.errno == errno.ENOENT
        assert workers.processes[0].returncode is not None


def test_workers_that_are_told_to_end_with_us_are_no_news(case, monkeypatch):
    """Whoever ends a whole service sends the signal to each of its processes."""
    do, asked = Workers.do, []

    def end_all(self, jobs, here):
        for answer in do(self, jobs, here):
            yield answer
            for process in self.processes:
                process.terminate()
            for process in self.processes:
                process.wait()
            asked.append(True)

    monkeypatch.setattr(Workers, "do", end_all)
    with pytest.raises(Interrupted, match="what was encoded so far is kept"):
        encode.run(case.context(2, stopping=lambda: bool(asked)))


def test_workers_do_without_torch():
    """It would cost each of them seconds and 200 MB."""
    code = "import sys, pipeline.data.shards; print([m for m in sys.modules if 'torch' in m])"
    root = Path(__file__).parents[1]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert told.stdout.strip() == "[]", told.stderr
