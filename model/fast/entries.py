"""The known pieces: what stands in an entry of the table, how it is written out, how it is made.

A short piece of few tokens has them in its entry, as they are written:

    16 bits: third word  n t0 t1 t2    fourth word  t3 t4 t5 t6
    32 bits: third word  n -  t2       fourth word  t0 t1

and all that fit are written, whether or not there are so many: cheaper than asking. Of others the
third word is n, the number of tokens, and the fourth says where in the pool they lie, as they are
written; for a piece that is no key by itself, behind its bytes.
"""

from numba import types

from model.fast.desk import (
    AHEAD,
    KEPT,
    LANES,
    MANY_LANES,
    NEED,
    NONE,
    POOL,
    POOL_USED,
    SCRATCH,
    SPARE,
    TABLE,
    USED,
    WIDE,
)
from model.fast.memory import (
    bytes_at,
    ints_at,
    longs_at,
    part,
    seldom,
    shorts_at,
    stay_apart,
    store8,
    topmost,
    value,
)
from model.fast.merge import FEW, PIECE, begin, gather, merge, next_merge
from model.fast.merge_long import merge_long
from model.fast.table import SHORT, find, has_room, keep_bytes, length_of, table_of
from model.fast.vectors import copy16

# words of the pool that a piece may take: a token for each byte, its bytes, and what is read behind
_ROOM = KEPT + KEPT // 4 + SPARE
_INSIDE, _INSIDE_WIDE = 7, 3  # tokens in an entry


@part
def inside(wide):
    """How many tokens there may be in an entry."""
    return _INSIDE_WIDE if wide else _INSIDE


@part
def write_inside(out, wide, used, packed, rest, many):
    """Write the tokens of an entry, and something behind them."""
    if wide:
        target = bytes_at(out + 4 * used)
        store8(target, 0, rest)
        store8(target, 8, topmost(packed, 32))
    else:
        target = bytes_at(out + 2 * used)
        store8(target, 0, topmost(packed, 16))
        if many > 3:
            store8(target, 6, rest)


@part
def write_kept(out, wide, used, pool, start, many):
    """Write tokens of the pool, and something behind them."""
    width = 4 if wide else 2
    target = bytes_at(out + width * used)
    for i in range(0, width * many, 16):
        copy16(target, i, pool, 4 * start + i)


@part
def write(out, wide, used, tokens, many):
    """Append `many` tokens; returns how many there are now."""
    if wide:
        ints = ints_at(out)
        for i in range(many):
            ints[used + i] = tokens[i]
    else:
        shorts = shorts_at(out)
        for i in range(many):
            shorts[used + i] = tokens[i]
    return used + many


@seldom
def find_or_make(desk, text, at, i, pieces):
    """The entry of piece i of those ahead, which begins `at`; or -1: there is no room for it."""
    stay_apart()
    entry = _find(desk, text, at, i)
    if longs_at(desk[TABLE])[entry + 1] == 0:
        desk[NEED] = pieces * _ROOM
        if not has_room(desk, pieces, desk[NEED]):
            return -1
        _make(desk, text, at, i, pieces)
        entry = _find(desk, text, at, i)
    return entry


@part
def _find(desk, text, at, i):
    """The entry of piece i, which begins `at`, or where it should be."""
    table, shift, pool = table_of(desk)
    ahead = longs_at(desk[AHEAD])
    length, low, high = ahead[4 * i] - at, ahead[4 * i + 1], ahead[4 * i + 2]
    return find(table, shift, pool, text, at, length, low, high, ahead[4 * i + 3])


@seldom
def _make(desk, text, at, i, pieces):
    """Make the entries of all pieces from i on that have none and are to be kept."""
    table, ahead = longs_at(desk[TABLE]), longs_at(desk[AHEAD])
    lanes, busy, scratch = longs_at(desk[LANES]), 0, ints_at(desk[SCRATCH])
    while busy > 0 or i < pieces:
        while busy < MANY_LANES and i < pieces:
            length = ahead[4 * i] - at
            if length <= KEPT and table[_find(desk, text, at, i) + 1] == 0:
                if length <= FEW:
                    begin(desk, lanes[busy], text, at, length, i)
                    busy += 1
                else:
                    _enter(desk, text, i, merge_long(desk, text, at, length))
            at += length
            i += 1
        which = 0
        while which < busy:
            lane = lanes[which]
            what = next_merge(lane)
            if what != NONE:
                merge(desk, lane, what)
                which += 1
            else:
                _enter(desk, text, longs_at(lane)[PIECE], gather(lane, scratch))
                busy -= 1
                lanes[which], lanes[busy] = lanes[busy], lane


@seldom
def _enter(desk, text, i, many):
    """Make the entry of piece i, whose tokens are in the scratch; there must be room."""
    table, _, pool = table_of(desk)
    scratch, wide, ahead = ints_at(desk[SCRATCH]), desk[WIDE], longs_at(desk[AHEAD])
    end, low, high = ahead[4 * i], ahead[4 * i + 1], ahead[4 * i + 2]
    length = length_of(high)
    entry = _find(desk, text, end - length, i)
    if table[entry + 1] != 0:  # the same piece stood twice ahead
        return
    table[entry], table[entry + 1] = low, high
    desk[USED] += 1
    if length <= SHORT and many <= inside(wide):
        _put_inside(table, entry, scratch, many, wide)
        return
    start = table[entry + 3] = desk[POOL_USED]
    table[entry + 2] = many
    if length > SHORT:
        start = keep_bytes(pool, start, text, end - length, length)
    write(desk[POOL] + 4 * start, wide, 0, scratch, many)
    desk[POOL_USED] = start + (many if wide else (many + 1) >> 1)


@part
def _put_inside(table, entry, scratch, many, wide):
    """Give an entry its few tokens."""
    first, rest = many, types.int64(0)
    for i in range(many):
        token = value(scratch, i)
        if wide and i < 2:
            rest |= token << 32 * i
        elif wide:
            first |= token << 32
        elif i < 3:
            first |= token << 16 * (i + 1)
        else:
            rest |= token << 16 * (i - 3)
    table[entry + 2], table[entry + 3] = first, rest
