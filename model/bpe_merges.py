"""Byte-pair encoding on words: learn which neighbours to merge, and apply what was learned.

Start from single bytes, find the pair of neighbours that occurs most often, make it a token, and
repeat (Gage 1994; for language models Sennrich et al. 2016, arXiv:1508.07909, algorithm 1). Tokens
grow from letters to parts of words to words. To encode a new word, replay its merges in order.

One trick carries this file: *a token is the character chr(id), so a word is a string*. Merging is
then `str.replace` - all occurrences, left to right, none overlapping - and comparing two pairs as
strings compares their left ids, then their right ids.

Cost on one core: counting 10 MB takes 1 s; then 4,000 merges take 0.4 s on 15,000 distinct words
(1 MB of plays) and 1.6 s on 62,000 (12 MB of source code). Memory goes with the distinct words.
Words should be short: each merge reads the words that it changes from end to end.
"""

import heapq
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from model.split import split

Pair = tuple[int, int]
Progress = Callable[[int, int | None, str], None]
MOST_TOKENS = 0x110000  # as there are characters


def to_bytes(text: str | bytes | memoryview) -> bytes:
    """The UTF-8 of a text, also of one with lone surrogates, which are not Unicode text."""
    if isinstance(text, str):
        return str.encode(text, "utf-8", "surrogatepass")
    return text if type(text) is bytes else bytes(text)


def from_bytes(data: bytes) -> str:
    """Bytes read as UTF-8; one that is not becomes a lone surrogate, so that none is lost."""
    return str(data, "utf-8", "surrogateescape")


def learn(
    texts: Iterable[str | bytes | memoryview],
    pattern: str,
    byte_tokens: Sequence[int],
    room: int,
    min_pair_count: int,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[Pair]:
    """Up to `room` merges from the texts; fewer if no pair is left that occurs `min_pair_count`
    times. Byte b is the token `byte_tokens[b]`; new tokens come after those. `workers` is for
    programs with threads, of which this is none.
    """
    pieces = count_pieces(texts, pattern, progress)
    chars = [chr(token) for token in byte_tokens]
    words = [spell(piece, chars) for piece in pieces]
    found = learn_merges(words, list(pieces.values()), max(byte_tokens) + 1, min_pair_count)
    merges = []
    for left, right in islice(found, room):
        merges.append((ord(left), ord(right)))
        if progress:
            progress(len(merges), room, "merge")
    return merges


def count_pieces(
    texts: Iterable[str | bytes | memoryview], pattern: str, progress: Progress | None
) -> Counter[str]:
    """How often each distinct piece occurs in the documents: all that learning needs to know."""
    pieces: Counter[str] = Counter()
    bytes_read = 0
    for document in texts:
        data = to_bytes(document)
        pieces.update(split(from_bytes(data), pattern))
        bytes_read += len(data)
        if progress:
            progress(bytes_read, None, "read")
    return pieces


def spell(piece: str, chars: Sequence[str]) -> str:
    """A piece as a word of byte tokens."""
    return "".join([chars[b] for b in piece.encode("utf-8", "surrogateescape")])


def learn_merges(
    words: list[str], counts: list[int], next_token: int, min_pair_count: int
) -> Iterator[str]:
    """Yield the most frequent pair, merge it in `words`, find the next, and so on.

    Word i stands for `counts[i]` words of the text; `next_token` is the first new token's id. Ends
    when no pair occurs `min_pair_count` times. Ties go to the smaller left id, then the smaller
    right id. Counts are kept, not made anew: only the words that hold the merged pair change them.

    The heap is lazy: an entry is corrected when it comes to the top, not when its count changes.
    That still finds the exact maximum. Once the step that made its younger token is over, a pair's
    count can only fall, so an old entry promises too much, never too little; and a top entry that
    keeps its promise beats whatever the others promise.
    """
    times: dict[str, int] = defaultdict(int)  # pair -> occurrences; "aaa" has "aa" twice
    where: dict[str, set[int]] = defaultdict(set)  # pair -> the words that have it, or once had
    for i, word in enumerate(words):
        for pair in pairs_of(word):
            times[pair] += counts[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in times.items()]
    heapq.heapify(heap)
    while heap:
        promised, pair = heapq.heappop(heap)
        if -promised != times[pair]:
            heapq.heappush(heap, (-times[pair], pair))
            continue
        if times[pair] < max(1, min_pair_count):
            return
        yield pair
        token = chr(next_token)
        next_token += 1
        born = set()
        for i in where.pop(pair):
            before = words[i]
            after = words[i] = before.replace(pair, token)
            for old in pairs_of(before):
                times[old] -= counts[i]
            for new in pairs_of(after):
                times[new] += counts[i]
                if token in new:
                    where[new].add(i)
                    born.add(new)
        for new in born:
            heapq.heappush(heap, (-times[new], new))


def apply_merges(word: str, token_of_pair: dict[str, str]) -> str:
    """Apply to a word the merges it allows, the earliest learned (the smallest token) first.

    A merge brings forth only pairs with its own token, whose merges were learned later still. So
    the order never turns back, and replacing all occurrences of a pair at once is the same as one
    at a time: always the earliest merge, leftmost first.
    """
    found = {token_of_pair[pair]: pair for pair in pairs_of(word) if pair in token_of_pair}
    waiting = sorted(found)  # a heap of tokens to make
    while waiting:
        token = heapq.heappop(waiting)
        word = word.replace(found[token], token)
        at = word.find(token)
        while at >= 0:
            for pair in (word[max(at - 1, 0) : at + 1], word[at : at + 2]):
                new = token_of_pair.get(pair)
                if new is not None and new not in found:
                    found[new] = pair
                    heapq.heappush(waiting, new)
            at = word.find(token, at + 1)
    return word


def pairs_of(word: str) -> list[str]:
    """All neighbours in a word: "abcd" -> ["ab", "bc", "cd"]."""
    return list(map(operator.add, word, word[1:]))


def why_stopped(merges: int, room: int, vocab_size: int, min_pair_count: int) -> str:
    """Why learning ended after so many `merges`, of the `room` that `vocab_size` left for them."""
    if merges == room:
        return f"vocabulary reached {vocab_size:,}"
    times = max(1, min_pair_count)
    return f"no pair occurs {times} times: the corpus supports {merges:,} merges"
