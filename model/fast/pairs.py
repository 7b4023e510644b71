"""The records of pairs: a hash table of (key, count, where its list begins, how long it is)."""

from model.fast.desk import PAIRS, PAIRS_SHIFT, PAIRS_USED
from model.fast.memory import longs_at, part, product, topmost

_FACTOR = 0x1E3779B97F4A7C15


@part
def key_of_pair(left, right):
    """Keys are ordered as pairs are: by the left token, then the right. 0 is no key."""
    return (left << 32 | right) + 1


@part
def slot_of(key, shift):
    """The slot where a key should stand, of 2 ** (64 - shift)."""
    return topmost(product(key, _FACTOR), shift)


@part
def find_pair(pairs, shift, key):
    """Where the record of a pair begins, or would begin: it is free if its key is 0."""
    slot, mask = slot_of(key, shift), (1 << (64 - shift)) - 1
    while pairs[slot * 4] != key and pairs[slot * 4] != 0:
        slot = (slot + 1) & mask
    return slot * 4


@part
def new_pair(desk, pairs, key, count, start, length):
    """Write a record down; there must be room."""
    record = find_pair(pairs, desk[PAIRS_SHIFT], key)
    pairs[record], pairs[record + 1] = key, count
    pairs[record + 2], pairs[record + 3] = start, length
    desk[PAIRS_USED] += 1


def move_pairs(desk_address, old_address, old_slots):
    """Kernel: put all records of an old table into the desk's new and empty one."""
    desk, old = longs_at(desk_address), longs_at(old_address)
    pairs = longs_at(desk[PAIRS])
    for record in range(0, old_slots * 4, 4):
        if old[record] != 0:
            target = find_pair(pairs, desk[PAIRS_SHIFT], old[record])
            for i in range(4):
                pairs[target + i] = old[record + i]
    return 0
