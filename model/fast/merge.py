"""Apply learned merges to short pieces: the smallest token that can be made, leftmost first.

Each step of a piece waits for the step before: for what it has stored, and for the table of merges.
So several pieces are merged at a time, each in a lane of its own, one step of each in turn, and the
processor does one while it waits for another.

A lane has for each place the token that is there, and what that token and the next one make, with
the place in the lowest bits: the least of these says what to merge, and where. What is merged away
stays where it was; LEFT has a bit for each token that is left. Beyond both ends is NO_TOKEN, which
makes nothing, so that no step asks where it is.
"""

from numba import types

from model.fast.desk import (
    BYTE_PAIRS,
    BYTE_TOKENS,
    LANE,
    NO_TOKEN,
    NONE,
    PAIRS,
    PAIRS_SHIFT,
    TOKEN_BITS,
)
from model.fast.memory import (
    highest,
    ints_at,
    longs_at,
    lowest,
    part,
    topmost,
    value,
    without_lowest,
)
from model.fast.rules import made_of
from model.fast.vectors import least64

_PLACE_BITS = 6
FEW = 64  # bytes of a short piece: LEFT has as many bits, and least64 takes as many numbers
# A lane: two int64; from the next line of memory on, as int32, the candidates; the tokens. Before
# both of these, and behind the tokens, there is room for one more.
LEFT, PIECE = range(2)
_CANDIDATES, _TOKENS = 16, 16 + FEW + 1
assert _TOKENS + FEW + 1 <= 2 * LANE and TOKEN_BITS + _PLACE_BITS < 31


@part
def begin(desk, lane, text, at, length, piece):
    """Put a piece into a lane, and its number."""
    candidates, tokens = ints_at(lane + 4 * _CANDIDATES), ints_at(lane + 4 * _TOKENS)
    of_byte, of_bytes = ints_at(desk[BYTE_TOKENS]), ints_at(desk[BYTE_PAIRS])
    for i in range(FEW):
        candidates[i] = NONE
    last = value(text, at)
    tokens[0] = of_byte[last]
    for i in range(1, length):
        byte = value(text, at + i)
        tokens[i] = of_byte[byte]
        candidates[i - 1] = _with_place(value(of_bytes, last << 8 | byte), i - 1)
        last = byte
    tokens[-1] = tokens[FEW] = NO_TOKEN
    longs_at(lane)[LEFT], longs_at(lane)[PIECE] = topmost(types.int64(-1), FEW - length), piece


@part
def next_merge(lane):
    """What to merge next, and where, as one number; or NONE."""
    return least64(ints_at(lane + 4 * _CANDIDATES))


@part
def merge(desk, lane, what):
    """Do what `next_merge` says."""
    pairs, shift = longs_at(desk[PAIRS]), desk[PAIRS_SHIFT]
    candidates, tokens = ints_at(lane + 4 * _CANDIDATES), ints_at(lane + 4 * _TOKENS)
    left, token, place = longs_at(lane)[LEFT], what >> _PLACE_BITS, what & (FEW - 1)
    after = left & (types.int64(-2) << place)
    gone, following = lowest(after), lowest(without_lowest(after))
    before = highest(left & ((types.int64(1) << place) - 1))
    longs_at(lane)[LEFT] = left ^ (types.int64(1) << gone)
    tokens[place], candidates[gone] = token, NONE
    candidates[before] = _with_place(made_of(pairs, shift, value(tokens, before), token), before)
    candidates[place] = _with_place(made_of(pairs, shift, token, value(tokens, following)), place)


@part
def _with_place(token, place):
    return NONE if token == NONE else token << _PLACE_BITS | place


@part
def gather(lane, target):
    """Copy the tokens that are left; returns how many there are."""
    tokens, left, many = ints_at(lane + 4 * _TOKENS), longs_at(lane)[LEFT], 0
    while left != 0:
        target[many] = tokens[lowest(left)]
        many += 1
        left = without_lowest(left)
    return many
