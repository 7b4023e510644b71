"""Count the distinct pieces of texts, then lay them out as words for learning."""

from model.fast.desk import (
    AHEAD,
    AT,
    BYTE_TOKENS,
    DONE,
    FULL_TABLE,
    POOL_USED,
    ROOM,
    USED,
    WORDS,
    WORDS_SIZE,
)
from model.fast.memory import bytes_at, ints_at, longs_at, part, store8, value
from model.fast.table import SHORT, find, has_room, keep_bytes, look_ahead, table_of

# A word of the text: its count (two int32), its length, its tokens.
HEAD = 3


def count(desk_address, text_address, size):
    """Kernel: count the pieces of a text from the desk's place on. FULL_TABLE: grow, call again.

    An entry's third word is the count.
    """
    desk, text = longs_at(desk_address), bytes_at(text_address)
    table, shift, pool = table_of(desk)
    at, ahead = desk[AT], longs_at(desk[AHEAD])
    while at < size:
        for i in range(look_ahead(desk, text, at, size, size)):
            length = ahead[4 * i] - at
            low, high, slot = ahead[4 * i + 1], ahead[4 * i + 2], ahead[4 * i + 3]
            entry = find(table, shift, pool, text, at, length, low, high, slot)
            if table[entry + 1] == 0:
                if not has_room(desk, (length + 3) >> 2):
                    desk[AT] = at
                    return FULL_TABLE
                _enter(desk, table, pool, entry, text, at, length, low, high)
            table[entry + 2] += 1
            at += length
    desk[AT] = 0
    return DONE


@part
def _enter(desk, table, pool, entry, text, at, length, low, high):
    """Make an entry for a piece; there must be room."""
    table[entry], table[entry + 1] = low, high
    desk[USED] += 1
    desk[ROOM] += length + HEAD
    if length > SHORT:
        table[entry + 3] = desk[POOL_USED]
        desk[POOL_USED] = keep_bytes(pool, desk[POOL_USED], text, at, length)


def lay_words(desk_address):
    """Kernel: write each counted piece of two bytes or more as a word of tokens."""
    desk = longs_at(desk_address)
    table, shift, pool = table_of(desk)
    tokens, words = ints_at(desk[BYTE_TOKENS]), ints_at(desk[WORDS])
    at = 0
    for entry in range(0, 4 << (64 - shift), 4):
        high = table[entry + 1]
        length = high >> 56
        if length > SHORT:
            length = high & ((1 << 56) - 1)
        if length < 2:
            continue
        store8(words, at, table[entry + 2])
        words[at + 2] = length
        at += HEAD
        for i in range(length):
            if length > SHORT:
                symbol = value(pool, table[entry + 3] * 4 + i)
            else:
                symbol = (table[entry + (i >> 3)] >> (8 * (i & 7))) & 0xFF
            words[at + i] = tokens[symbol]
        at += length
    desk[WORDS_SIZE] = at
    return DONE
