"""Count the pieces of all texts, in several threads and in bounded memory.

The calling thread reads the texts and makes parts of them (`bpe_parts`); threads count each into a
small table of their own and empty that, when it is full, into the words that all share (see
`fast/count.py`). The order of the words depends on who came first; what is learned from them does
not.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from model.bpe_merges import Progress
from model.bpe_parts import Part, Text, parts
from model.cores import cores
from model.fast import desk
from model.fast.build import kernels
from model.fast.desk import Desk
from model.fast.plainly import endings

MOST_WORKERS = 4  # by default: reading is one thread's work, and each has a table
ALONE = 1 << 22  # bytes: not worth threads
_FIRST_BITS = 12  # of the number of slots in the first tables
_FIRST_WORDS = 1 << 18  # int32
TABLE_BITS = 18  # of the largest table of a thread: 8 MiB
MOST_WORDS = (1 << 31) - 1  # int32 of all words: their places are int32 too
_POOL = 1 << 18  # int32 for the longer pieces of a thread's table, but for one that needs more
_ENOUGH = 1 << 23  # bytes counted in one call
_FULL_BY = 0.7  # of the index: beyond that it doubles
_HEARD = 0.1  # seconds between two reports


def count_words(
    texts: Iterable[Text],
    pattern: str,
    byte_tokens: Sequence[int],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Desk:
    """A desk with the words of all texts, one for each distinct piece of two bytes or more.

    `workers`: how many threads count; None: as many as there are cores, up to MOST_WORKERS. Few
    bytes are counted without any. ValueError: the words would have more than MOST_WORDS int32.
    """
    shared, given = _Shared(byte_tokens), parts(texts)
    report = Report(progress, None, "read")
    workers = workers or min(MOST_WORKERS, cores())
    first: list[Part] = []
    size = 0
    while workers > 1 and size < ALONE and (part := next(given, None)):
        first.append(part)
        size += part.bytes
        report(size)
    given = chain(first, given)
    del first
    many = workers if size >= ALONE else 1
    own = [_Worker(shared, pattern) for _ in range(many)]
    if many == 1:
        _alone(given, own[0], report)
    else:
        _in_threads(given, own, report)
    report.end(sum(worker.done for worker in own))
    return shared.finished()


def desk_for(pattern: str) -> Desk:
    """A desk to split by a pattern."""
    new = Desk()
    new.lend(desk.CLASSES, desk.kinds())
    new[desk.MODE] = mode = desk.MODES[pattern]
    new.lend(desk.ENDINGS, endings(mode))
    new.lend(desk.AHEAD, np.zeros(4 * desk.PIECES_AHEAD, np.int64))
    return new


class Report:
    """Tells `progress` how far the work is: ten times a second, if asked so often, and at the end.

    Telling may cost more than the work between two times. What is told never falls.
    """

    def __init__(self, progress: Progress | None, total: int | None, what: str) -> None:
        self._progress, self._total, self._what = progress, total, what
        self._told, self._due = 0, time.monotonic() + _HEARD

    def __call__(self, done: int) -> None:
        if self._progress and time.monotonic() >= self._due:
            self._told = max(done, self._told)
            self._progress(self._told, self._total, self._what)
            self._due = time.monotonic() + _HEARD

    def end(self, done: int) -> None:
        if self._progress and done != self._told:
            self._progress(done, self._total, self._what)


def _alone(given: Iterator[Part], worker: "_Worker", report: Report) -> None:
    """Let the worker count in the calling thread."""

    def go_on() -> bool:
        report(worker.done)
        return True

    for part in given:
        worker.count(part, go_on)
        report(worker.done)
    worker.hand_over(last=True)


def _in_threads(given: Iterator[Part], workers: "list[_Worker]", report: Report) -> None:
    """Let each worker count in a thread. What any of them, `given` or `report` raises ends all.

    The calling thread never waits long without reporting, as that may raise what ends the work.
    """
    waiting: queue.Queue[Part | None] = queue.Queue(len(workers))
    stopped, errors = threading.Event(), list[BaseException]()

    def attempt(do: Callable[..., None], *arguments: Any) -> None:
        if stopped.is_set():
            return
        try:
            do(*arguments)
        except BaseException as error:
            errors.append(error)
            stopped.set()

    def work(worker: _Worker) -> None:
        while part := waiting.get():  # to the end, also when stopped: whoever gives must not wait
            attempt(worker.count, part, lambda: not stopped.is_set())
        attempt(worker.hand_over)

    def tell() -> None:
        if not stopped.is_set():
            report(sum(worker.done for worker in workers))

    def give(part: Part | None) -> None:
        while True:
            tell()
            with contextlib.suppress(queue.Full):
                return waiting.put(part, timeout=_HEARD)

    def end() -> None:
        for _ in threads:
            give(None)
        for thread in threads:
            while thread.is_alive():
                tell()
                thread.join(_HEARD)

    threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in workers]
    try:
        for thread in threads:
            thread.start()
        for part in given:
            give(part)
            if stopped.is_set():
                break
        end()
    except BaseException:
        stopped.set()
        end()
        raise
    if errors:
        raise errors[0]


class _Worker:
    """Counts parts into a table of its own; `done` says how many bytes."""

    def __init__(self, shared: "_Shared", pattern: str) -> None:
        self._shared, self._kernels, self.done = shared, kernels(), 0
        self._desk = work = desk_for(pattern)
        work[desk.ENOUGH] = _ENOUGH
        work.new_table(bits=min(_FIRST_BITS, TABLE_BITS))
        work[desk.POOL_SIZE] = min(1 << _FIRST_BITS, _POOL)
        work.lend(desk.POOL, np.zeros(work[desk.POOL_SIZE], np.int32))

    def count(self, part: Part, go_on: Callable[[], bool]) -> None:
        """Count a part; leave off where `go_on`, which is called now and then, says so."""
        work, documents, before = self._desk, len(part.bounds) - 1, self.done
        arguments = (work.address, part.address, part.bounds.ctypes.data, documents)
        while (answer := self._kernels.count(*arguments)) != desk.DONE:
            self.done = before + work[desk.AT]
            if not go_on():
                return
            if answer == desk.FULL_TABLE:
                self._make_room()
        self.done = before + part.bytes

    def _make_room(self) -> None:
        """For one more entry, and for NEED more bytes in the pool."""
        work = self._desk
        words = (work[desk.NEED] + 3) >> 2
        if work[desk.USED] >= work[desk.LIMIT]:
            bits = 64 - work[desk.SHIFT]
            if bits < TABLE_BITS:
                work.grow_table(self._kernels.move, times=min(2, TABLE_BITS - bits))
            else:
                self.hand_over()
        elif work[desk.POOL_USED] + words > _POOL and work[desk.POOL_USED]:
            self.hand_over()
        else:
            work.grow(desk.POOL, desk.POOL_SIZE, work[desk.POOL_USED] + words)

    def hand_over(self, last: bool = False) -> None:
        """Empty the table into the words, as the very last one if that is said."""
        self._shared.absorb(self._desk, last)


class _Shared:
    """The words of all workers."""

    def __init__(self, byte_tokens: Sequence[int]) -> None:
        self._lock, self._kernels = threading.Lock(), kernels()
        self._desk = Desk()
        self._desk.lend(desk.BYTE_TOKENS, np.array(byte_tokens, np.int32))
        self._desk.lend(desk.WORDS, np.zeros(_FIRST_WORDS, np.int32))
        self._desk[desk.WORDS_ROOM] = _FIRST_WORDS
        self._desk.lend(desk.INDEX, np.zeros(1 << _FIRST_BITS, np.int64))
        self._desk[desk.INDEX_SHIFT] = desk.TAG_BITS - _FIRST_BITS

    def absorb(self, counted: Desk, last: bool) -> None:
        """Take over what a worker's desk has counted, and leave its table empty."""
        words = self._desk
        with self._lock:
            only = last and words[desk.INDEX_USED] == 0
            if not only:
                self._grow_index(words[desk.INDEX_USED] + counted[desk.USED])
            while self._kernels.absorb(counted.address, words.address, only) != desk.DONE:
                self._grow_words()

    def _grow_index(self, most: int) -> None:
        """Room for so many words, before they come: they come in the order of their slots, and
        would crowd the first ones of an index that is too small for all of them.
        """
        words, old = self._desk, self._desk.arrays[desk.INDEX]
        bits = len(old).bit_length() - 1
        while most > _FULL_BY * (1 << bits):
            bits += 1
        if 1 << bits > len(old):
            words.lend(desk.INDEX, np.zeros(1 << bits, np.int64))
            words[desk.INDEX_SHIFT] = desk.TAG_BITS - bits
            self._kernels.move_index(words.address, old.ctypes.data, len(old))

    def _grow_words(self) -> None:
        words = self._desk
        if words[desk.NEED] > MOST_WORDS:
            raise ValueError(
                f"the texts have {words[desk.INDEX_USED]:,} distinct pieces, whose bytes are more "
                f"than {MOST_WORDS:,} numbers can hold: train on a part of them"
            )
        words.grow(desk.WORDS, desk.WORDS_ROOM, words[desk.NEED])
        words[desk.WORDS_ROOM] = min(words[desk.WORDS_ROOM], MOST_WORDS)

    def finished(self) -> Desk:
        """The words, without room for more."""
        words = self._desk
        words.arrays[desk.WORDS].resize(words[desk.WORDS_SIZE], refcheck=False)
        words.lend(desk.WORDS, words.arrays[desk.WORDS])
        words.lend(desk.INDEX, np.zeros(1, np.int64))
        return words
