"""Turn text into tokens: cut off a piece, look it up among those known, write its tokens.

An entry's third word is the number of tokens. A short piece of up to three tokens has them in the
entry as they are written, all three whether or not there are so many: cheaper than asking. Three of
16 bits are the fourth word; of three of 32 bits the last is above the number. Else the fourth word
says where in the pool the tokens lie; for a piece that is no key by itself, behind its bytes.
"""

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
from model.fast.memory import bytes_at, ints_at, longs_at, part, seldom, shorts_at, store8, value
from model.fast.merge import FEW, merge_long, merge_short, scratch_for
from model.fast.pairs import key_of_pair, slot_of
from model.fast.table import SHORT, find, has_room, keep_bytes, look_ahead, table_of

_INSIDE = 3  # tokens in an entry
_WRITTEN = 4  # tokens, of which the last do not count
_CACHED = 64  # bytes: longer pieces seldom recur
_HALF = 0xFFFFFFFF


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
    tokens, out, wide = ints_at(desk[POOL]), desk[OUT], desk[WIDE]
    ahead, room = longs_at(desk[AHEAD]), desk[OUT_SIZE]
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
        many = packed & _HALF
        if length <= SHORT and many <= _INSIDE:
            _write_three(out, wide, used, rest, packed >> 32)
            used += many
        else:
            start = rest + ((length + 3) >> 2 if length > SHORT else 0)
            used = _write(out, wide, used, tokens, start, many)
    return DONE, at, used


@seldom
def _find_or_make(desk, text, at, length, low, high, slot):
    """The entry of a piece of up to _CACHED bytes, or -1: there is no room for it."""
    table, shift, pool = table_of(desk)
    entry = find(table, shift, pool, text, at, length, low, high, slot)
    if table[entry + 1] == 0:
        if not has_room(desk, length + ((length + 3) >> 2)):
            return -1
        _remember(desk, text, at, length, low, high, entry)
    return entry


@part
def _write_three(out, wide, used, packed, third):
    """Write the three tokens of an entry, and something behind them."""
    if wide:
        ints = bytes_at(out + 4 * used)
        store8(ints, 0, packed)
        store8(ints, 8, third)
    else:
        store8(bytes_at(out + 2 * used), 0, packed)


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
    tokens, made = ints_at(desk[POOL]), ints_at(desk[SCRATCH])
    many = merge_short(desk, text, at, length)
    table[entry], table[entry + 1] = low, high
    table[entry + 2] = many
    desk[USED] += 1
    if length <= SHORT and many <= _INSIDE:
        first = value(made, 0)
        second = value(made, 1) if many > 1 else 0
        third = value(made, 2) if many > 2 else 0
        if desk[WIDE]:
            table[entry + 2] = third << 32 | many
            table[entry + 3] = second << 32 | first
        else:
            table[entry + 3] = third << 32 | second << 16 | first
        return
    start = table[entry + 3] = desk[POOL_USED]
    if length > SHORT:
        start = keep_bytes(pool, start, text, at, length)
    for i in range(many):
        tokens[start + i] = made[i]
    desk[POOL_USED] = start + many


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
