"""Turn text into tokens: cut off a piece, look it up among those known, write its tokens.

An entry's third word has the number of tokens in its lowest 16 bits. A short piece of few tokens
has them in the entry as they are written, all that fit, whether or not there are so many: cheaper
than asking. Of 16 bits there are seven, three above the number and four in the fourth word; of 32
bits there are three, two in the fourth word and one above the number. Else the fourth word says
where in the pool the tokens lie, as they are written; for a piece that is no key by itself, behind
its bytes.
"""

from numba import types

from model.fast.desk import (
    AHEAD,
    AT,
    CALLS,
    DONE,
    FULL_OUT,
    FULL_SCRATCH,
    FULL_TABLE,
    NEED,
    OUT,
    OUT_SIZE,
    OUT_USED,
    PAIRS,
    PAIRS_SHIFT,
    POOL,
    POOL_USED,
    SCRATCH,
    SCRATCH_SIZE,
    TABLE,
    USED,
    WIDE,
)
from model.fast.memory import (
    bytes_at,
    copy16,
    ints_at,
    longs_at,
    part,
    seldom,
    shorts_at,
    store8,
    topmost,
    value,
)
from model.fast.merge import FEW, merge_long, merge_short, scratch_for
from model.fast.pairs import key_of_pair, slot_of
from model.fast.table import SHORT, find, has_room, keep_bytes, look_ahead, table_of

_INSIDE, _INSIDE_WIDE = 7, 3  # tokens in an entry
_WRITTEN = (
    8  # tokens that may be written behind those that count, and read behind those in the pool
)
_CACHED = 64  # bytes: longer pieces seldom recur
_MANY = 0xFFFF


def encode(desk_address, text_address, size, at):
    """Kernel: encode a text from `at` on, into OUT; if that is not the beginning, from OUT_USED on.

    Returns how many tokens are there when the text is done; or -FULL_...: give more room (NEED), or
    take what is there, and call again with the desk's AT.
    """
    desk, text = longs_at(desk_address), bytes_at(text_address)
    desk[CALLS] += 1
    used = desk[OUT_USED]
    if at == 0:  # whatever an interrupted call has left there
        used = 0
    answer = DONE
    while at < size and answer == DONE:
        answer, at, used = _encode_some(desk, text, at, size, used)
    desk[AT], desk[OUT_USED] = at, used
    return used if answer == DONE else -answer


@part
def _encode_some(desk, text, at, size, used):
    """Encode a few pieces; returns (answer, where in the text, tokens in OUT)."""
    table = longs_at(desk[TABLE])
    pool, out, wide = bytes_at(desk[POOL]), desk[OUT], desk[WIDE]
    ahead, room, inside = longs_at(desk[AHEAD]), desk[OUT_SIZE], _inside(wide)
    pieces = look_ahead(desk, text, at, size, size, _CACHED)
    need = ahead[4 * pieces - 4] - at + _WRITTEN
    if used + need > room:
        desk[NEED] = need
        return FULL_OUT, at, used
    for i in range(pieces):
        length, entry = ahead[4 * i] - at, 4 * ahead[4 * i + 3]
        low, high = ahead[4 * i + 1], ahead[4 * i + 2]
        if length > _CACHED:
            many = _merge(desk, text, at, length)
            if many < 0:
                return FULL_SCRATCH, at, used
            used = _write(out, wide, used, ints_at(desk[SCRATCH]), 0, many)
            at += length
            continue
        if table[entry + 1] != high or table[entry] != low or length > SHORT:
            entry = _find_or_make(desk, text, at, length, low, high, ahead[4 * i + 3])
            if entry < 0:
                return FULL_TABLE, at, used
        at += length
        packed, rest = table[entry + 2], table[entry + 3]
        many = packed & _MANY
        if length <= SHORT and many <= inside:
            _write_inside(out, wide, used, packed, rest, many)
        else:
            start = rest + ((length + 3) >> 2 if length > SHORT else 0)
            _write_kept(out, wide, used, pool, start, many)
        used += many
    return DONE, at, used


@seldom
def _find_or_make(desk, text, at, length, low, high, slot):
    """The entry of a piece of up to _CACHED bytes, or -1: there is no room for it."""
    table, shift, pool = table_of(desk)
    entry = find(table, shift, pool, text, at, length, low, high, slot)
    if table[entry + 1] == 0:
        if not has_room(desk, length + ((length + 3) >> 2) + _WRITTEN):
            return -1
        _remember(desk, text, at, length, low, high, entry)
    return entry


@part
def _inside(wide):
    return _INSIDE_WIDE if wide else _INSIDE


@part
def _write_inside(out, wide, used, packed, rest, many):
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
def _write_kept(out, wide, used, pool, start, many):
    """Write tokens of the pool, and something behind them."""
    width = 4 if wide else 2
    target = bytes_at(out + width * used)
    for i in range(0, width * many, 16):
        copy16(target, i, pool, 4 * start + i)


@part
def _write(out, wide, used, tokens, start, many):
    """Append `many` tokens; returns how many there are now."""
    if wide:
        ints = ints_at(out)
        for i in range(many):
            ints[used + i] = tokens[start + i]
    else:
        shorts = shorts_at(out)
        for i in range(many):
            shorts[used + i] = tokens[start + i]
    return used + many


@seldom
def _merge(desk, text, at, length):
    """A piece's tokens in the scratch; how many, or -1: the scratch must be NEED long."""
    if length <= FEW:
        return merge_short(desk, text, at, length)
    desk[NEED] = scratch_for(length)
    if desk[NEED] > desk[SCRATCH_SIZE]:
        return -1
    return merge_long(desk, text, at, length)


@seldom
def _remember(desk, text, at, length, low, high, entry):
    """Encode a piece of up to _CACHED bytes and make its entry; there must be room."""
    table, _, pool = table_of(desk)
    made, wide = ints_at(desk[SCRATCH]), desk[WIDE]
    many = merge_short(desk, text, at, length)
    table[entry], table[entry + 1] = low, high
    desk[USED] += 1
    if length <= SHORT and many <= _inside(wide):
        _put_inside(table, entry, made, many, wide)
        return
    start = table[entry + 3] = desk[POOL_USED]
    table[entry + 2] = many
    if length > SHORT:
        start = keep_bytes(pool, start, text, at, length)
    _write(desk[POOL] + 4 * start, wide, 0, made, 0, many)
    desk[POOL_USED] = start + many


@part
def _put_inside(table, entry, made, many, wide):
    """Give an entry its few tokens."""
    bits = 32 if wide else 16
    first, rest = many, types.int64(0)
    for i in range(many):
        token, in_first = value(made, i), i == 2 if wide else i < 3
        if in_first:
            first |= token << (32 if wide else 16 * (i + 1))
        else:
            rest |= token << bits * (i if wide else i - 3)
    table[entry + 2], table[entry + 3] = first, rest


def know_merges(desk_address, merges_address, many, first_made):
    """Kernel: fill the empty table of pairs; merge i makes token first_made + i.

    Returns how many different pairs there are.
    """
    desk, merges = longs_at(desk_address), ints_at(merges_address)
    pairs, shift, different = longs_at(desk[PAIRS]), desk[PAIRS_SHIFT], 0
    mask = (1 << (64 - shift)) - 1
    for i in range(many):
        key = key_of_pair(value(merges, 2 * i), value(merges, 2 * i + 1))
        slot = slot_of(key, shift)
        while pairs[2 * slot] != 0 and pairs[2 * slot] != key:
            slot = (slot + 1) & mask
        different += 1 if pairs[2 * slot] == 0 else 0
        pairs[2 * slot], pairs[2 * slot + 1] = key, first_made + i
    return different
