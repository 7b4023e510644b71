"""The learned merges as a table: which token does a pair make?

One word holds all of a merge, the pair and what it makes: three tokens of 21 bits, and never 0, as
what is made is no byte. Eight words are a line of memory, and in all of a line the pair is looked
for at once. So a look-up takes the same steps whether there is something to be found or not: a
processor that guesses wrong loses more time than the look-up takes.
"""

from model.fast.desk import LINE, NONE, PAIRS, PAIRS_SHIFT, TOKEN_BITS
from model.fast.memory import ints_at, longs_at, part, seldom, value
from model.fast.pairs import slot_of
from model.fast.vectors import among8


@part
def _key(left, right):
    return left << TOKEN_BITS | right


@part
def _line(key, shift):
    """The first word of the line where a pair is looked for first; there are 2 ** (64 - shift)."""
    return slot_of(key, shift) * LINE


@part
def made_of(pairs, shift, left, right):
    """The token that a pair makes, or NONE."""
    key = _key(left, right)
    line = _line(key, shift)
    made = among8(pairs, line, TOKEN_BITS, key)
    if made < 0:
        made = _beyond(pairs, shift, line, key)
    return made if made != 0 else NONE


@seldom
def _beyond(pairs, shift, line, key):
    """What a pair makes whose line is full, or 0."""
    mask, made = (LINE << (64 - shift)) - 1, -1
    while made < 0:
        line = (line + LINE) & mask
        made = among8(pairs, line, TOKEN_BITS, key)
    return made


def know_merges(desk_address, merges_address, many, first_made):
    """Kernel: fill the empty table of pairs; merge i makes token first_made + i."""
    desk, merges = longs_at(desk_address), ints_at(merges_address)
    pairs, shift = longs_at(desk[PAIRS]), desk[PAIRS_SHIFT]
    mask = (LINE << (64 - shift)) - 1
    for i in range(many):
        key = _key(value(merges, 2 * i), value(merges, 2 * i + 1))
        place = _line(key, shift)
        while pairs[place] != 0 and pairs[place] >> TOKEN_BITS != key:
            place = (place + 1) & mask
        pairs[place] = key << TOKEN_BITS | first_made + i
    return 0
