"""Turn text into tokens: cut off pieces, look them up among those known, write their tokens."""

from model.fast.desk import (
    AHEAD,
    AT,
    CALLS,
    DONE,
    FULL_OUT,
    FULL_SCRATCH,
    FULL_TABLE,
    KEPT,
    NEED,
    OUT,
    OUT_SIZE,
    OUT_USED,
    POOL,
    SCRATCH,
    SCRATCH_SIZE,
    SPARE,
    TABLE,
    WIDE,
)
from model.fast.entries import find_or_make, inside, write, write_inside, write_kept
from model.fast.memory import bytes_at, ints_at, longs_at, part, seldom, stay_apart
from model.fast.merge_long import merge_long, scratch_for
from model.fast.table import SHORT, look_ahead

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
    ahead, room, within = longs_at(desk[AHEAD]), desk[OUT_SIZE], inside(wide)
    pieces = look_ahead(desk, text, at, size, size, KEPT)
    need = ahead[4 * pieces - 4] - at + SPARE
    if used + need > room:
        desk[NEED] = need
        return FULL_OUT, at, used
    for i in range(pieces):
        length, entry = ahead[4 * i] - at, 4 * ahead[4 * i + 3]
        low, high = ahead[4 * i + 1], ahead[4 * i + 2]
        if length > KEPT:
            many = _merge(desk, text, at, length)
            if many < 0:
                return FULL_SCRATCH, at, used
            used = write(out, wide, used, ints_at(desk[SCRATCH]), many)
            at += length
            continue
        if table[entry + 1] != high or table[entry] != low or length > SHORT:
            entry = find_or_make(desk, text, at, i, pieces)
            if entry < 0:
                return FULL_TABLE, at, used
        at += length
        packed, rest = table[entry + 2], table[entry + 3]
        many = packed & _MANY
        if length <= SHORT and many <= within:
            write_inside(out, wide, used, packed, rest, many)
        else:
            start = rest + ((length + 3) >> 2 if length > SHORT else 0)
            write_kept(out, wide, used, pool, start, many)
        used += many
    return DONE, at, used


@seldom
def _merge(desk, text, at, length):
    """A long piece's tokens in the scratch; how many, or -1: the scratch must be NEED long."""
    stay_apart()
    desk[NEED] = scratch_for(length)
    if desk[NEED] > desk[SCRATCH_SIZE]:
        return -1
    return merge_long(desk, text, at, length)
