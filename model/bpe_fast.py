"""The tokenizer at full speed: what `model/bpe.py` does, compiled, with the same results.

`learn` is the twin of `bpe_merges.learn`, `Coder` (in bpe_coder.py) of `bpe_plain.Coder`; the
kernels that they call are in `model/fast/`, which is to be read in the order scan, table, count,
learn, rules, merge, entries, encode, decode. Nothing here decides a result: the readable code is
the definition, and the tests compare.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from model.bpe_coder import Coder
from model.bpe_count import Report, count_words
from model.bpe_merges import Pair, Progress
from model.bpe_parts import Text
from model.fast import desk
from model.fast.build import kernels
from model.fast.desk import Desk

__all__ = ["Coder", "kernels", "learn"]

_AT_ONCE = 1024  # merges learned in one call
_ENOUGH = 1 << 20  # words rewritten in one call, or somewhat more: it ends with a merge


def learn(
    texts: Iterable[Text],
    pattern: str,
    byte_tokens: Sequence[int],
    room: int,
    min_pair_count: int,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[Pair]:
    """Up to `room` merges; see `bpe_merges.learn`. `workers`: see `count_words`."""
    work = count_words(texts, pattern, byte_tokens, progress, workers)
    _begin(work, max(byte_tokens) + 1, max(1, min_pair_count))
    merges: list[Pair] = []
    found, report = np.empty((_AT_ONCE, 2), np.int32), Report(progress, room, "merge")
    while len(merges) < room and work[desk.LEFT] >= 0:
        most = min(_AT_ONCE, room - len(merges))
        answer = kernels().learn(work.address, found.ctypes.data, most)
        if new := work[desk.MERGES]:
            merges += map(tuple, found[:new].tolist())
        report(len(merges))
        if answer not in (desk.DONE, desk.PAUSE):
            _give(work, answer)
    report.end(len(merges))
    return merges


def _begin(work: Desk, next_token: int, least: int) -> None:
    """Make a list of the words of each pair of bytes."""
    work[desk.TOKEN], work[desk.LEAST], work[desk.ENOUGH] = next_token, least, _ENOUGH
    work.new_table(desk.PAIRS, 18)
    for field, size, width, dtype in (
        (desk.HEAP, 1 << 17, 2, np.int64),
        (desk.LISTS, work[desk.WORDS_SIZE] + 1, 1, np.int32),
        (desk.EVENTS, 1 << 16, 2, np.int32),
        (desk.SIDES, next_token + 1024, 8, np.int64),
        (desk.TOUCHED, next_token + 1024, 2, np.int32),
    ):
        work.lend(field, np.zeros(size * width, dtype))
        if field != desk.TOUCHED:
            work[_SIZE_OF[field]] = size
    counts = np.zeros((1 << 16, 4), np.int64)
    kernels().begin(work.address, counts.ctypes.data)


_SIZE_OF = {
    desk.HEAP: desk.HEAP_SIZE,
    desk.LISTS: desk.LISTS_SIZE,
    desk.EVENTS: desk.EVENTS_SIZE,
    desk.SIDES: desk.SIDES_SIZE,
}


def _give(work: Desk, lacking: int) -> None:
    """What the kernel `learn` has too little of."""
    if lacking == desk.FULL_PAIRS:
        times = 2 if work[desk.PAIRS_USED] < 1 << 18 else 1
        work.grow_table(kernels().move_pairs, desk.PAIRS, times)
    elif lacking == desk.FULL_HEAP:
        work.grow(desk.HEAP, desk.HEAP_SIZE, 0, width=2)
    elif lacking == desk.FULL_LISTS:
        least = work[desk.LISTS_USED] + work[desk.EVENTS_USED]
        work.grow(desk.LISTS, desk.LISTS_SIZE, least)
    elif lacking == desk.FULL_EVENTS:
        word = work.arrays[desk.LISTS][work[desk.NEXT_WORD]]
        longest = int(work.arrays[desk.WORDS][word + 2])
        work.grow(desk.EVENTS, desk.EVENTS_SIZE, work[desk.EVENTS_USED] + longest, width=2)
    else:
        work.grow(desk.SIDES, desk.SIDES_SIZE, 0, width=8)
        work.lend(desk.TOUCHED, np.zeros(2 * work[desk.SIDES_SIZE], np.int32))
