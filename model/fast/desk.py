"""What kernels and their callers agree on: the numbers of the fields on a desk, and of the modes.

A desk is an array of int64 that holds all a kernel works with: counters, and the addresses of
larger arrays. A kernel that runs out of room in one of them says so, is given a larger one, and
goes on where it was; so kernels allocate nothing. This module needs no compiler.
"""

import contextlib
import functools
import mmap

import numpy as np

from model import unicode16

# kinds of characters, and the ways to split
OTHER, LETTER, NUMBER, SPACE, LINE_END = range(5)
CL100K_CLASSIC, CL100K, GPT2 = range(3)
MODES = {"cl100k-classic": CL100K_CLASSIC, "cl100k": CL100K, "gpt2": GPT2}

# the table of pieces; where in the text; what the pieces are split by; the token of each byte
TABLE, SHIFT, USED, LIMIT, POOL, POOL_USED, POOL_SIZE = range(7)
AT, CLASSES, MODE, BYTE_TOKENS = range(7, 11)
# counting: which document of the buffer
DOCUMENT = 11
# learning, see learn.py
WORDS, PAIRS, PAIRS_SHIFT, PAIRS_USED, PAIRS_LIMIT, HEAP, HEAP_USED, HEAP_SIZE = range(12, 20)
LISTS, LISTS_USED, LISTS_SIZE, EVENTS, EVENTS_USED, EVENTS_SIZE = range(20, 26)
SIDES, SIDES_SIZE, TOUCHED, TOUCHED_USED, LEAST, WORDS_SIZE = range(26, 32)
LEFT, RIGHT, TOKEN, NEXT_WORD, LAST_WORD, MERGES = range(32, 38)
# encoding, see encode.py
OUT, OUT_USED, OUT_SIZE, WIDE, SCRATCH, SCRATCH_SIZE, NEED = range(38, 45)
# decoding
STARTS, BYTES, TOKENS = range(45, 48)
# pieces cut off and not yet looked up
AHEAD = 48
# counting: where in `words` each word is, see count.py; how much there may be in `words`
INDEX, INDEX_SHIFT, INDEX_USED, WORDS_ROOM = range(49, 53)
# bytes counted or words rewritten in one call, for whoever wants to watch or interrupt
ENOUGH = 53
# what is between the kernels and Python, see lists.py; where plain pieces end, see plainly.py
NUMBERS, TEXT_SIZE, BUSY, CALLS, ENDINGS = range(54, 59)
# what two bytes make (PAIRS: any two tokens), and where each of the lanes is, see merge.py
BYTE_PAIRS, LANES = 59, 60
FIELDS = 61
LANE, MANY_LANES = 80, 4  # int64 of a lane; how many lanes there are
KEPT = 256  # bytes: longer pieces seldom recur and are merged anew each time
SPARE = 8  # tokens that may be written behind those that count
NONE = 0x7FFFFFFF  # no token: greater than any
TOKEN_BITS = 21  # of a token that is encoded
NO_TOKEN = (1 << TOKEN_BITS) - 1  # that no pair has
PIECES_AHEAD = 64
TAG_BITS = 31  # of a hash, in a slot of the index

# what kernels answer: done, or what there is too little of; or that somebody may look up
DONE, FULL_TABLE, FULL_PAIRS, FULL_HEAP, FULL_LISTS, FULL_EVENTS, FULL_SIDES = range(7)
FULL_OUT, FULL_SCRATCH, FULL_WORDS, PAUSE = range(7, 11)

_FIRST_BITS = 12  # of the number of slots in a new table
_SLOT = 4  # words of an entry
LINE = 8  # words of a line of the processor's memory
_LARGE_PAGE = 1 << 21  # bytes
_LARGE = 1 << 23  # bytes: from about here on the C library gives an array pages of its own


class Desk:
    """The fields, and the arrays whose addresses stand in them, which it keeps alive."""

    def __init__(self) -> None:
        self.fields = np.zeros(FIELDS, np.int64)
        self.address = self.fields.ctypes.data
        self.arrays: dict[int, np.ndarray] = {}

    def __getitem__(self, field: int) -> int:
        return int(self.fields[field])

    def __setitem__(self, field: int, value: int) -> None:
        self.fields[field] = value

    def lend(self, field: int, array: np.ndarray) -> None:
        """Let the field hold the address of the array."""
        address = array.ctypes.data  # first: nothing may come between the two that follow
        self.arrays[field] = array
        self.fields[field] = address

    def grow(self, field: int, size_field: int, least: int, width: int = 1) -> None:
        """Give the array of a field, `width` numbers for each of its size, more room.

        What is new is zero. A small array grows to at least twice its size; a large one by an
        eighth, and is moved without being copied where the system can: then there never are two.
        """
        array, size = self.arrays[field], self[size_field]
        step = size if array.nbytes < _LARGE else size // 8
        size = max(size + step, least)
        array.resize(size * width, refcheck=False)
        self.lend(field, array)
        self[size_field] = size

    def new_table(self, field: int = TABLE, bits: int = _FIRST_BITS) -> None:
        """An empty hash table and, in the fields that follow, its shift, use and limit."""
        self.lend(field, lines(_SLOT << bits))
        self[field + 1], self[field + 2], self[field + 3] = 64 - bits, 0, 1 << (bits - 1)

    def grow_table(self, move, field: int = TABLE, times: int = 1) -> None:
        """A table with 2**`times` as many slots, into which the kernel `move` puts the entries."""
        old, used, bits = self.arrays[field], self[field + 2], 64 - self[field + 1]
        self.new_table(field, bits + times)
        self[field + 2] = used
        move(self.address, old.ctypes.data, len(old) // _SLOT)


def lines(words: int) -> np.ndarray:
    """Zeros, from the beginning of one of the processor's lines on, so that no entry is in two.

    Where the system can, many of them lie in large pages: entries are looked up here and there, and
    finding out where a page lies would take longer than reading it.
    """
    size = 8 * words
    if size >= _LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(memory, np.int64)
    array = np.zeros(words + LINE - 1, np.int64)
    first = -array.ctypes.data // 8 % LINE  # words up to the next line
    return array[first : first + words]


@functools.cache
def kinds() -> np.ndarray:
    """The kind of each code point."""
    table = np.zeros(0x110000, np.uint8)
    for kind, ranges in (
        (LETTER, unicode16.LETTERS),
        (NUMBER, unicode16.NUMBERS),
        (SPACE, unicode16.WHITESPACE),
    ):
        for first, last in unicode16.ranges(ranges):
            table[first : last + 1] = kind
    table[[10, 13]] = LINE_END
    return table
