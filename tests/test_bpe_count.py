"""Counting in parts and by several threads finds what one pass over the texts does."""

import random
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import BYTE_TOKENS, awkward_bytes, counted, plainly_counted

from model import bpe_count, bpe_fast, bpe_parts, bpe_plain
from model.bpe import Tokenizer
from model.fast.build import kernels
from model.split import PATTERNS

_MODES = list(PATTERNS)
_EXACTLY = {"deadline": None, "derandomize": True}
_cuttable = st.lists(
    awkward_bytes | st.sampled_from([b"it is ", b"x\n\n ", b"\n", "。\n中".encode(), b" 12\r\n"]),
    max_size=6,
).map(b"".join)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Every text is large, every table soon full."""
    monkeypatch.setattr(bpe_parts, "PART", 0)
    monkeypatch.setattr(bpe_parts, "_WHOLE", 10)
    monkeypatch.setattr(bpe_count, "ALONE", 0)
    monkeypatch.setattr(bpe_count, "TABLE_BITS", 3)
    monkeypatch.setattr(bpe_count, "_POOL", 8)
    monkeypatch.setattr(bpe_count, "_FIRST_WORDS", 8)
    monkeypatch.setattr(bpe_count, "_ENOUGH", 20)
    monkeypatch.setattr(bpe_fast, "_ENOUGH", 3)


def small_tables() -> pytest.MonkeyPatch:
    """The same for a test that hypothesis runs often."""
    patch = pytest.MonkeyPatch()
    tiny.__wrapped__(patch)
    return patch


def some_words(many: int, seed: int = 1) -> bytes:
    """Text of words that seldom recur, some of them longer than an entry's key."""
    rng = random.Random(seed)
    lengths = rng.choices([2, 5, 9, 15, 16, 17, 40], k=many)
    return b" ".join(bytes(rng.choices(b"abcdefgh", k=length)) for length in lengths)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("pattern", _MODES)
@given(texts=st.lists(_cuttable, max_size=4))
@settings(max_examples=30, **_EXACTLY)
def test_any_parts_and_workers_count_alike(pattern, workers, texts) -> None:
    patch = small_tables()
    try:
        assert counted(texts, pattern, workers) == plainly_counted(texts, pattern)
    finally:
        patch.undo()


@pytest.mark.parametrize("pattern", _MODES)
@given(text=st.text(max_size=40), more=_cuttable)
@settings(max_examples=60, **_EXACTLY)
def test_any_kind_of_text_counts_alike(pattern, text, more) -> None:
    texts = [text, "it is \n  so\n中 ſ " + text, memoryview(b"__" + more)[2:], more]
    patch = small_tables()
    try:
        assert counted(texts, pattern, 2) == plainly_counted(texts, pattern)
    finally:
        patch.undo()


@pytest.mark.parametrize("large", [False, True])
def test_documents_are_not_joined(monkeypatch, large: bool) -> None:
    monkeypatch.setattr(bpe_parts, "PART", 0 if large else 1 << 20)
    texts = [b"ab", b"cd", b" ", b" ", b"12", b"34", b"", b"\xe4\xb8", b"\xad\xe4\xb8\xad", b"x  "]
    assert counted(texts, "gpt2") == plainly_counted(texts, "gpt2")


def test_many_words_grow_and_are_handed_over_often(monkeypatch) -> None:
    monkeypatch.setattr(bpe_parts, "PART", 1 << 12)
    monkeypatch.setattr(bpe_count, "ALONE", 1 << 12)
    monkeypatch.setattr(bpe_count, "TABLE_BITS", 13)
    monkeypatch.setattr(bpe_count.desk, "_LARGE", 1 << 16)  # by eighths
    text = some_words(30_000) + b"\n" + some_words(30_000)
    one = plainly_counted([text], "cl100k-classic")
    for workers in (1, 3):
        assert counted([text], "cl100k-classic", workers) == one
        documents = [text[i : i + 50] for i in range(0, len(text), 50)]
        found = counted(documents, "cl100k-classic", workers)
        assert found == plainly_counted(documents, "cl100k-classic")


def test_any_number_of_workers_learns_the_same(tiny) -> None:
    texts = [some_words(800, seed=1), some_words(800, seed=2), b"short", some_words(30)]
    asked = ("gpt2", BYTE_TOKENS, 300, 2, None)
    merges = bpe_plain.learn(texts, *asked)
    for workers in (1, 2, 3, 4):
        assert bpe_fast.learn(texts, *asked, workers) == merges
    assert len(merges) == 300


def test_few_bytes_need_no_threads(monkeypatch) -> None:
    monkeypatch.setattr(bpe_count, "_in_threads", None)
    assert counted([some_words(500)], "gpt2", 4) == counted([some_words(500)], "gpt2", 1)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers 0: there must be at least 1"):
        Tokenizer.train(["a"], workers=0)


class Broken(Exception):
    pass


def nothing_runs(before: set[threading.Thread]) -> bool:
    return set(threading.enumerate()) <= before


def test_an_error_of_the_texts_ends_the_threads(tiny) -> None:
    def texts() -> Iterator[bytes]:
        yield from [some_words(300, seed) for seed in range(20)]
        raise Broken

    before = set(threading.enumerate())
    with pytest.raises(Broken):
        counted(texts(), "gpt2", 3)
    assert nothing_runs(before)


def test_an_error_of_progress_ends_the_threads(tiny, monkeypatch) -> None:
    monkeypatch.setattr(bpe_count, "_HEARD", 0.0)

    def progress(done: int, total: int | None, what: str) -> None:
        raise Broken

    before = set(threading.enumerate())
    with pytest.raises(Broken):
        Tokenizer.train([some_words(300)], progress=progress, workers=3)
    assert nothing_runs(before)


@pytest.mark.parametrize("workers", [1, 3])
def test_too_many_distinct_pieces_are_an_error(tiny, monkeypatch, workers: int) -> None:
    monkeypatch.setattr(bpe_count, "MOST_WORDS", 5000)
    before = set(threading.enumerate())
    texts = iter(some_words(100, seed) for seed in range(1000))
    with pytest.raises(ValueError, match=r"distinct pieces.*more than 5,000 numbers.*a part of"):
        counted(texts, "gpt2", workers)
    assert nothing_runs(before)
    assert next(texts, None) is not None  # not read to the end in vain


def test_an_error_at_the_very_end_is_an_error_too(monkeypatch) -> None:
    monkeypatch.setattr(bpe_count, "ALONE", 0)
    monkeypatch.setattr(bpe_count, "MOST_WORDS", 5000)
    monkeypatch.setattr(bpe_count, "_FIRST_WORDS", 8)
    monkeypatch.setattr(bpe_parts, "PART", 1 << 10)
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="distinct pieces"):
        counted([some_words(5000)], "gpt2", 4)
    assert nothing_runs(before)


def test_the_last_place_is_used_and_none_behind_it(tiny, monkeypatch) -> None:
    text = some_words(500)
    needed = sum(3 + len(piece) for piece in plainly_counted([text], "gpt2"))
    monkeypatch.setattr(bpe_count, "MOST_WORDS", needed)
    assert counted([text], "gpt2", 1) == plainly_counted([text], "gpt2")
    monkeypatch.setattr(bpe_count, "MOST_WORDS", needed - 1)
    with pytest.raises(ValueError, match="distinct pieces"):
        counted([text], "gpt2", 1)


class Watched:
    """The kernels; says when counting has begun, and goes on when the workers are to stop."""

    def __init__(self, monkeypatch) -> None:
        self.begun, self.calls = threading.Event(), 0
        self._kernels, self._stopped = kernels(), threading.Event()
        names = {"Thread": threading.Thread, "Lock": threading.Lock, "Event": lambda: self._stopped}
        monkeypatch.setattr(bpe_count, "threading", SimpleNamespace(**names))
        monkeypatch.setattr(bpe_count, "kernels", lambda: self)
        monkeypatch.setattr(bpe_count, "_ENOUGH", 1 << 20)

    def __getattr__(self, name: str):
        return getattr(self._kernels, name)

    def count(self, *arguments: int) -> int:
        self.calls += 1
        answer = self._kernels.count(*arguments)
        self.begun.set()
        assert self._stopped.wait(60)
        return answer


@pytest.mark.parametrize("where", ["reading", "at the end"])
def test_ctrl_c_does_not_wait_for_a_huge_text(monkeypatch, where: str) -> None:
    before, watched = set(threading.enumerate()), Watched(monkeypatch)

    def texts() -> Iterator[bytes]:
        yield ("。" + "\n" * 3).encode() * 1_000_000  # nowhere to cut; six calls
        if where == "reading":
            assert watched.begun.wait(60)
            signal.raise_signal(signal.SIGINT)

    def progress(done: int, total: int | None, what: str) -> None:
        if watched.begun.is_set():
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        bpe_fast.learn(texts(), "gpt2", BYTE_TOKENS, 9, 2, progress, 2)
    assert nothing_runs(before)
    assert watched.calls == 1


def test_progress_comes_now_and_then(monkeypatch) -> None:
    heard: list[tuple[int, int | None, str]] = []
    clock = iter(range(1_000_000))
    monkeypatch.setattr(bpe_count.time, "monotonic", lambda: next(clock) / 10_000)
    documents = [b"some words "] * 20_000
    Tokenizer.train(documents, vocab_size=260, progress=lambda *news: heard.append(news))
    read = [done for done, total, what in heard if what == "read" and total is None]
    assert read == sorted(read) and read[-1] == 220_000
    assert 5 <= len(read) <= 20


def test_a_text_that_comes_slowly_is_counted_as_it_comes(monkeypatch) -> None:
    monkeypatch.setattr(bpe_parts, "_SLOW", 0.0)
    assert [part.bytes for part in bpe_parts.parts([b"ab", b"cde"])] == [2, 3]
