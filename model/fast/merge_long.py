"""Apply learned merges to a long piece: the smallest token that can be made, leftmost first.

The candidates are in a tree of minima, a leaf for each place, so that finding one and changing one
both take log2 n steps: n log n for any piece, and some 28 bytes for each of its bytes, whatever it
holds.
"""

from numba import types

from model.fast.desk import BYTE_PAIRS, BYTE_TOKENS, NONE, PAIRS, PAIRS_SHIFT, SCRATCH
from model.fast.memory import ints_at, longs_at, part, seldom, value
from model.fast.rules import made_of


@part
def leaves_for(length):
    leaves = 1
    while leaves < length:
        leaves *= 2
    return leaves


@part
def scratch_for(length):
    """How many int32 merge_long works with."""
    return 3 * length + 2 * leaves_for(length)


@seldom
def merge_long(desk, text, at, length):
    """Leave a piece's tokens at the beginning of the scratch; returns how many there are.

    The scratch must hold scratch_for(length).
    """
    bytes_, pairs, shift = ints_at(desk[BYTE_TOKENS]), longs_at(desk[PAIRS]), desk[PAIRS_SHIFT]
    scratch, of_bytes = desk[SCRATCH], ints_at(desk[BYTE_PAIRS])
    tokens, after = ints_at(scratch), ints_at(scratch + 4 * length)
    before, tree = ints_at(scratch + 8 * length), ints_at(scratch + 12 * length)
    leaves = leaves_for(length)
    for i in range(length):
        tokens[i] = bytes_[value(text, at + i)]
        after[i], before[i] = i + 1, i - 1
    for i in range(leaves):
        tree[leaves + i] = NONE
        if i + 1 < length:
            tree[leaves + i] = of_bytes[value(text, at + i) << 8 | value(text, at + i + 1)]
    for node in range(leaves - 1, 0, -1):
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
    while tree[1] != NONE:
        least, node = value(tree, 1), 1
        while node < leaves:
            node = 2 * node + (0 if tree[2 * node] == least else 1)
        place = node - leaves
        gone = value(after, place)
        following, left = value(after, gone), value(before, place)
        tokens[place], after[place] = least, following
        right_made = left_made = types.int64(NONE)
        _set(tree, leaves + gone, right_made)
        if following < length:
            before[following] = place
            right_made = made_of(pairs, shift, least, value(tokens, following))
        _set(tree, node, right_made)
        if left >= 0:
            left_made = made_of(pairs, shift, value(tokens, left), least)
            _set(tree, leaves + left, left_made)
    return _gather(tokens, after, length)


@seldom
def _set(tree, node, value):
    """Change a leaf, and the minima above it as far as they change."""
    tree[node] = value
    node >>= 1
    while node > 0:
        least = min(tree[2 * node], tree[2 * node + 1])
        if tree[node] == least:
            return
        tree[node] = least
        node >>= 1


@part
def _gather(tokens, after, length):
    """Move the tokens that are left together; returns how many there are."""
    many = place = 0
    while place < length:
        tokens[many] = tokens[place]
        many += 1
        place = value(after, place)
    return many
