"""Count the distinct pieces of texts, and lay them out as the words that learning works on.

Two levels. Each thread counts into a table of its own (see table.py), which is small, so that it
stays near the processor. A full table is emptied into the words, of which there is one array for
all threads: a word is there once, with its count, and is found by an index of 8 bytes for each
slot. So the distinct pieces of all texts are in memory once, in the form in which they are needed
in the end, and it does not matter which thread has met what.
"""

from model.fast.desk import (
    AHEAD,
    AT,
    BYTE_TOKENS,
    DOCUMENT,
    DONE,
    ENOUGH,
    FULL_TABLE,
    FULL_WORDS,
    INDEX,
    INDEX_SHIFT,
    INDEX_USED,
    NEED,
    PAUSE,
    POOL_USED,
    TAG_BITS,
    USED,
    WORDS,
    WORDS_ROOM,
    WORDS_SIZE,
)
from model.fast.memory import (
    bytes_at,
    fetch_early,
    ints_at,
    load8,
    longs_at,
    part,
    seldom,
    store8,
    value,
)
from model.fast.table import (
    SHORT,
    byte_of,
    find,
    has_room,
    home,
    keep_bytes,
    length_of,
    look_ahead,
    table_of,
)

# A word of the text: its count (two int32), its length, its tokens.
HEAD = 3
# A slot of the index: the topmost bits of a hash, then where in `words` the word is, plus 1; or 0.
_PLACE = 0xFFFFFFFF
_FETCH = 64  # entries are 4 long: the words of those 16 slots ahead are asked for


def count(desk_address, text_address, bounds_address, documents):
    """Kernel: count the pieces of documents, from where the desk's AT and DOCUMENT say.

    Document i is text[bounds[i] : bounds[i + 1]]. FULL_TABLE: make room, call again. PAUSE: call
    again. An entry's third word is the count.
    """
    desk, text, bounds = longs_at(desk_address), bytes_at(text_address), longs_at(bounds_address)
    at, document = desk[AT], desk[DOCUMENT]
    pause = at + desk[ENOUGH]
    while document < documents:
        stop = bounds[document + 1]
        at = _count_some(desk, text, at, min(stop, pause), stop)
        if at < stop:
            desk[AT], desk[DOCUMENT] = at, document
            return PAUSE if at >= pause else FULL_TABLE
        document += 1
    desk[AT] = desk[DOCUMENT] = 0
    return DONE


@seldom
def _count_some(desk, text, at, stop, size):
    """Count the pieces that begin before `stop`; returns how far it came."""
    table, shift, pool = table_of(desk)
    ahead = longs_at(desk[AHEAD])
    while at < stop:
        for i in range(look_ahead(desk, text, at, stop, size, size)):
            length = ahead[4 * i] - at
            low, high, slot = ahead[4 * i + 1], ahead[4 * i + 2], ahead[4 * i + 3]
            entry = find(table, shift, pool, text, at, length, low, high, slot)
            if table[entry + 1] == 0:
                if not has_room(desk, 1, (length + 3) >> 2):
                    desk[NEED] = length
                    return at
                _enter(desk, table, pool, entry, text, at, length, low, high)
            table[entry + 2] += 1
            at += length
    return at


@part
def _enter(desk, table, pool, entry, text, at, length, low, high):
    """Make an entry for a piece; there must be room."""
    table[entry], table[entry + 1] = low, high
    desk[USED] += 1
    if length > SHORT:
        table[entry + 3] = desk[POOL_USED]
        desk[POOL_USED] = keep_bytes(pool, desk[POOL_USED], text, at, length)


def absorb(desk_address, shared_address, only):
    """Kernel: empty a thread's table into the words. FULL_WORDS: give room, call again.

    A piece of one byte is left out: there is nothing to merge in it. The table and the index, which
    must have room, are in the order of the hash, so both are walked through once. The `only` table
    that there is (1, or 0) needs no index.
    """
    desk, shared = longs_at(desk_address), longs_at(shared_address)
    table, shift, pool = table_of(desk)
    index, words, index_shift = longs_at(shared[INDEX]), ints_at(shared[WORDS]), shared[INDEX_SHIFT]
    last = 4 << (64 - shift)
    for entry in range(0, last, 4):
        later = entry + _FETCH
        if not only and later < last and table[later + 1] != 0:
            slot = _tag(table[later], table[later + 1]) >> index_shift
            fetch_early(words, (index[slot] & _PLACE) - 1)
        if table[entry + 1] == 0:
            continue
        length = length_of(table[entry + 1])
        if length > 1:
            if only:
                full = _new_word(shared, words, table, pool, entry, length)
            else:
                full = _add(shared, index, words, table, pool, entry, length)
            if full != DONE:
                return full
        for i in range(4):
            table[entry + i] = 0
    desk[USED] = desk[POOL_USED] = 0
    return DONE


@part
def _tag(low, high):
    return home(low, high, 64 - TAG_BITS)


@part
def _add(shared, index, words, table, pool, entry, length):
    """Add an entry's count to its word."""
    tag = _tag(table[entry], table[entry + 1])
    slot = tag >> shared[INDEX_SHIFT]
    mask = (1 << (TAG_BITS - shared[INDEX_SHIFT])) - 1
    tokens = ints_at(shared[BYTE_TOKENS])
    while index[slot] != 0:
        if index[slot] >> 32 == tag:
            word = (index[slot] & _PLACE) - 1
            if words[word + 2] == length and _is_word(words, word, tokens, table, pool, entry):
                store8(words, word, load8(words, word) + table[entry + 2])
                return DONE
        slot = (slot + 1) & mask
    new = shared[WORDS_SIZE]
    full = _new_word(shared, words, table, pool, entry, length)
    if full == DONE:
        index[slot] = tag << 32 | (new + 1)
    return full


@part
def _is_word(words, word, tokens, table, pool, entry):
    length, i = value(words, word + 2), 0
    while i < length:
        if words[word + HEAD + i] != tokens[byte_of(table, pool, entry, length, i)]:
            return False
        i += 1
    return True


@seldom
def _new_word(shared, words, table, pool, entry, length):
    """Append an entry as a word."""
    word = shared[WORDS_SIZE]
    if word + HEAD + length > shared[WORDS_ROOM]:
        shared[NEED] = word + HEAD + length
        return FULL_WORDS
    tokens = ints_at(shared[BYTE_TOKENS])
    store8(words, word, table[entry + 2])
    words[word + 2] = length
    for i in range(length):
        words[word + HEAD + i] = tokens[byte_of(table, pool, entry, length, i)]
    shared[INDEX_USED] += 1
    shared[WORDS_SIZE] = word + HEAD + length
    return DONE


def move_index(shared_address, old_address, old_slots):
    """Kernel: put what is in an old index into the new and empty one."""
    shared, old = longs_at(shared_address), longs_at(old_address)
    index, shift = longs_at(shared[INDEX]), shared[INDEX_SHIFT]
    mask = (1 << (TAG_BITS - shift)) - 1
    for i in range(old_slots):
        if old[i] != 0:
            slot = old[i] >> (32 + shift)
            while index[slot] != 0:
                slot = (slot + 1) & mask
            index[slot] = old[i]
    return 0
