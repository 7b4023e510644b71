"""A hash table of pieces: what counting and encoding look each piece up in.

Open addressing, linear probing. An entry is four int64: two that are the key, two that belong to
the user. A piece of up to 15 bytes is its own key, its length in the last byte, so that comparing
two words is all it takes; that is 95 to 99 of 100 pieces. The key of a longer piece is a hash and
its length, and its bytes lie in a pool, where the entry's last word says.
"""

from model.fast.desk import (
    AHEAD,
    CLASSES,
    ENDINGS,
    LIMIT,
    MODE,
    PIECES_AHEAD,
    POOL,
    POOL_SIZE,
    POOL_USED,
    SHIFT,
    TABLE,
    USED,
)
from model.fast.memory import (
    bytes_at,
    fetch_early,
    load8,
    longs_at,
    part,
    product,
    seldom,
    stay_apart,
    topmost,
    value,
)
from model.fast.scan import piece_end
from model.fast.vectors import high8, low8, others64

SHORT = 15
_LONG = (SHORT + 1) << 56
_FACTOR, _OTHER_FACTOR = 0x1E3779B97F4A7C15, 0x42B2AE3D27D4EB4F


@part
def key_of(text, at, length, size):
    """The two words that stand for a piece in the table."""
    if length > SHORT:
        return _hash(text, at, length), _LONG | length
    low, high = 0, 0
    if at + 16 <= size:
        low, high = low8(text, at, length), high8(text, at, length)
    else:  # the text ends here: what lies beyond must not be read
        for i in range(min(length, 8)):
            low |= value(text, at + i) << 8 * i
        for i in range(8, length):
            high |= value(text, at + i) << 8 * (i - 8)
    return low, high | length << 56


@seldom
def _hash(text, at, length):
    mixed = length
    end = at + length
    while at + 8 <= end:
        mixed = product(mixed ^ load8(text, at), _FACTOR)
        mixed ^= topmost(mixed, 32)
        at += 8
    while at < end:
        mixed = product(mixed ^ value(text, at), _FACTOR)
        mixed ^= topmost(mixed, 32)
        at += 1
    return mixed


@part
def home(low, high, shift):
    """The slot where an entry should stand: the topmost bits, which depend on all others."""
    return topmost(product(low ^ product(high, _OTHER_FACTOR), _FACTOR), shift)


@part
def length_of(high):
    """The length of the piece in whose key this is the second word."""
    length = high >> 56
    return length if length <= SHORT else high & (_LONG - 1)


@part
def byte_of(table, pool, entry, length, i):
    """Byte i of the piece of an entry."""
    if length > SHORT:
        return value(pool, table[entry + 3] * 4 + i)
    return (table[entry + (i >> 3)] >> (8 * (i & 7))) & 0xFF


@seldom
def look_ahead(desk, text, at, stop, size, longest):
    """Cut off the next pieces and ask for the memory where their entries should stand.

    Entries lie anywhere: waiting for them one by one would take longer than all the rest. Returns
    how many pieces there are; the desk's AHEAD holds of each its end, its key and its slot. None
    begins at `stop` or later; `size` is where the text ends. A piece longer than `longest` has no
    key.
    """
    stay_apart()
    classes, mode, endings = bytes_at(desk[CLASSES]), desk[MODE], bytes_at(desk[ENDINGS])
    seen, others = at - 64, 0  # from where on `others` says what is no letter
    table, shift, ahead = longs_at(desk[TABLE]), desk[SHIFT], longs_at(desk[AHEAD])
    many = 0
    while many < PIECES_AHEAD and at < stop:
        if at - seen > 47:
            seen, others = at, others64(text, at) if at + 64 <= size else 0
        end = piece_end(text, at, size, classes, mode, endings, topmost(others, at - seen))
        low, high = 0, 0
        if end - at <= longest:
            low, high = key_of(text, at, end - at, size)
        slot = home(low, high, shift)
        fetch_early(table, slot * 4)
        ahead[4 * many], ahead[4 * many + 1] = end, low
        ahead[4 * many + 2], ahead[4 * many + 3] = high, slot
        many += 1
        at = end
    return many


@part
def find(table, shift, pool, text, at, length, low, high, slot):
    """Where the entry of a piece begins, or would begin: it is free if its second word is 0."""
    mask = (1 << (64 - shift)) - 1
    while True:
        entry = slot * 4
        if table[entry + 1] == high and table[entry] == low:
            if length <= SHORT or _same(pool, table[entry + 3] * 4, text, at, length):
                return entry
        elif table[entry + 1] == 0:
            return entry
        slot = (slot + 1) & mask


@seldom
def _same(pool, start, text, at, length):
    same = 0
    while same < length and pool[start + same] == text[at + same]:
        same += 1
    return same == length


@part
def keep_bytes(pool, start, text, at, length):
    """Copy a piece into the pool; returns where the next word of the pool begins."""
    for i in range(length):
        pool[start * 4 + i] = text[at + i]
    return start + ((length + 3) >> 2)


def move(desk_address, old_address, old_slots):
    """Kernel: put all entries of an old table into the desk's new and empty one."""
    desk, old = longs_at(desk_address), longs_at(old_address)
    table, shift = longs_at(desk[TABLE]), desk[SHIFT]
    mask = (1 << (64 - shift)) - 1
    for entry in range(0, old_slots * 4, 4):
        if old[entry + 1] != 0:
            slot = home(old[entry], old[entry + 1], shift)
            while table[slot * 4 + 1] != 0:
                slot = (slot + 1) & mask
            for i in range(4):
                table[slot * 4 + i] = old[entry + i]
    return 0


@part
def has_room(desk, entries, words):
    """Is there room for so many more entries and so many words of the pool?"""
    return desk[USED] + entries <= desk[LIMIT] and desk[POOL_USED] + words <= desk[POOL_SIZE]


@part
def table_of(desk):
    """(table, shift, pool as bytes) of a desk."""
    return longs_at(desk[TABLE]), desk[SHIFT], bytes_at(desk[POOL])
