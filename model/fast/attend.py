"""Causal attention of one head at a time, with its rotation, forwards and back.

What: `attention` of model/attention.py on queries and keys turned by `rotate` of
model/embeddings.py, read from where the product of queries, keys and values has put them, and
written where the next product reads. Why: a head's numbers fit a core's cache, so nothing but the
input and the result passes through memory, and what is masked is not computed. No weight is kept
for the way back, which needs of each query the logarithm of its sum alone (Dao et al. 2022,
arXiv:2205.14135, section 3.1).

All is computed in float32; of bfloat16 the numbers are half as wide in memory.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.fast.memory import floats_at, part, shorts_at
from model.fast.tiles import (
    COLUMNS,
    LANES,
    LOWEST,
    ROWS,
    exponentials,
    largest,
    multiply,
    multiply_add,
    weigh,
)

# queries whose weights are there at once on the way back
_BLOCK = 4 * ROWS
_NOTHING, _LOWEST = np.float32(0), np.float32(LOWEST)


@part
def _padded(time, size):
    """Rows of a head, numbers of each of its columns and of each of its rows, in whole tiles."""
    across = (time + COLUMNS - 1) // COLUMNS * COLUMNS
    return across + _BLOCK + ROWS, across, (size + COLUMNS - 1) // COLUMNS * COLUMNS


def room(time, size):
    """Kernel: how many float32 the other two need to work in."""
    tall, across, wide = _padded(time, size)
    return 7 * tall * wide + 2 * size * across + 2 * (_BLOCK + ROWS) * across


@intrinsic
def _bits(typing, number):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def _float(typing, bits):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), build


@intrinsic
def _from(typing, pointer, at):
    """A pointer to the rest of a row."""

    def build(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), build


@part
def _read(address, narrow, at):
    if narrow:
        return _float(np.int32(shorts_at(address)[at]) << np.int32(16))
    return floats_at(address)[at]


@part
def _write(address, narrow, at, number):
    if narrow:  # to the nearest, and to an even one between two
        bits = _bits(number)
        bits += np.int32(0x7FFF) + (bits >> np.int32(16) & np.int32(1))
        shorts_at(address)[at] = np.uint16(bits >> np.int32(16))
    else:
        floats_at(address)[at] = number


@part
def _copy(source, narrow, begin, step, time, size, rows, wide):
    """A head's vectors as rows."""
    for t in range(time):
        for i in range(size):
            rows[t * wide + i] = _read(source, narrow, begin + t * step + i)


@part
def _turn(source, narrow, begin, step, time, size, turning, scale, rows, wide):
    """The same, turned and scaled; `turning` is the cosines [T, K], then the sines."""
    half, sines = size // 2, time * size
    for t in range(time):
        at = begin + t * step
        for i in range(half):
            one, other = _read(source, narrow, at + i), _read(source, narrow, at + half + i)
            cos = turning[t * size + i] * scale
            sin = turning[sines + t * size + i] * scale
            rows[t * wide + i] = one * cos - other * sin
            rows[t * wide + half + i] = other * cos + one * sin


@part
def _turn_back(rows, wide, time, size, turning, scale, target, narrow, begin, step):
    half, sines = size // 2, time * size
    for t in range(time):
        at = begin + t * step
        for i in range(half):
            one, other = rows[t * wide + i], rows[t * wide + half + i]
            cos = turning[t * size + i] * scale
            sin = turning[sines + t * size + i] * scale
            _write(target, narrow, at + i, one * cos + other * sin)
            _write(target, narrow, at + half + i, other * cos - one * sin)


@part
def _stand(rows, wide, time, size, columns, across):
    """Rows as columns."""
    for i in range(size):
        for t in range(time):
            columns[i * across + t] = rows[t * wide + i]


@part
def _fill(row, begin, end, number):
    for at in range(begin, end):
        row[at] = number


def attend(input, output, sums, turning, narrow, time, heads, size, first, last, room):
    """Kernel: heads first..last of a batch, counted on over its samples.

    `input` [B, T, 3 H, K] is queries, keys, values; `output` [B, T, H, K]; both bfloat16 if
    `narrow`, else float32. `sums` [B, H, T] become the logarithms. `turning` [2, T, K].
    """
    sums, turning, room = floats_at(sums), floats_at(turning), floats_at(room)
    tall, across, wide = _padded(time, size)
    q, k, v = room, _from(room, tall * wide), _from(room, 2 * tall * wide)
    mixed = _from(room, 3 * tall * wide)
    totals = _from(mixed, ROWS * wide)
    keys = _from(room, 4 * tall * wide)
    scores = _from(keys, size * across)
    step, scale = 3 * heads * size, np.float32(1 / math.sqrt(size))
    for head in range(first, last):
        sample, at = head // heads, head % heads * size
        begin = sample * time * step + at
        _turn(input, narrow, begin, step, time, size, turning, scale, q, wide)
        begin += heads * size
        _turn(input, narrow, begin, step, time, size, turning, np.float32(1), k, wide)
        _copy(input, narrow, begin + heads * size, step, time, size, v, wide)
        _stand(k, wide, time, size, keys, across)
        for query in range(0, time, ROWS):
            end = min(query + ROWS, time)
            _score(_from(q, query * wide), wide, keys, across, scores, end, size)
            for t in range(query, end):
                row = _from(scores, (t - query) * across)
                _fill(row, t + 1, min(t + LANES, across), _LOWEST)
                shift = largest(row, t + 1)
                total = exponentials(row, t + 1, shift)
                _fill(row, t + 1, end, _NOTHING)
                sums[head * time + t] = shift + np.float32(math.log(total))
                totals[t - query] = total
            for i in range(0, size, COLUMNS):
                multiply(scores, across, 1, _from(v, i), wide, _from(mixed, i), wide, end)
            for t in range(query, end):
                place = (sample * time + t) * heads * size + at
                part_of_sum, row = np.float32(1) / totals[t - query], (t - query) * wide
                for i in range(size):
                    _write(output, narrow, place + i, mixed[row + i] * part_of_sum)
    return 0


@part
def _score(rows, wide, columns, across, scores, end, size):
    """A tile's rows of products with the first `end` columns."""
    for at in range(0, end, COLUMNS):
        multiply(rows, wide, 1, _from(columns, at), across, _from(scores, at), across, size)


@part
def _dot(output, narrow, at, row, size):
    total = np.float32(0)
    for i in range(size):
        total += _read(output, narrow, at + i) * row[i]
    return total


def attend_back(
    input, output, given, sums, turning, narrow, time, heads, size, first, last, result, room
):
    """Kernel: the gradient for `input`, into `result`, of the one `given` for `output`.

    For weights P = softmax(S) and y = P v: dv = P^T dy and dS = P (dy v^T - sum(dy y)).
    """
    sums, turning, room = floats_at(sums), floats_at(turning), floats_at(room)
    tall, across, wide = _padded(time, size)
    head_size = tall * wide
    q, k, v = room, _from(room, head_size), _from(room, 2 * head_size)
    dy, dq = _from(room, 3 * head_size), _from(room, 4 * head_size)
    dk, dv = _from(room, 5 * head_size), _from(room, 6 * head_size)
    keys = _from(room, 7 * head_size)
    values = _from(keys, size * across)
    weights = _from(values, size * across)
    changes = _from(weights, (_BLOCK + ROWS) * across)
    step, scale = 3 * heads * size, np.float32(1 / math.sqrt(size))
    for head in range(first, last):
        sample, at = head // heads, head % heads * size
        begin = sample * time * step + at
        of_keys, of_values = begin + heads * size, begin + 2 * heads * size
        out = sample * time * heads * size + at
        _turn(input, narrow, begin, step, time, size, turning, scale, q, wide)
        _turn(input, narrow, of_keys, step, time, size, turning, np.float32(1), k, wide)
        _copy(input, narrow, of_values, step, time, size, v, wide)
        _copy(given, narrow, out, heads * size, time, size, dy, wide)
        _stand(k, wide, time, size, keys, across)
        _stand(v, wide, time, size, values, across)
        _fill(dk, 0, 2 * head_size, _NOTHING)
        for block in range(0, time, _BLOCK):
            block_end = min(block + _BLOCK, time)
            for query in range(block, block_end, ROWS):
                end = min(query + ROWS, time)
                these = _from(weights, (query - block) * across)
                those = _from(changes, (query - block) * across)
                _score(_from(q, query * wide), wide, keys, across, these, end, size)
                _score(_from(dy, query * wide), wide, values, across, those, end, size)
                for t in range(query, end):
                    one, other = (t - block) * across, out + t * heads * size
                    mean = _dot(output, narrow, other, _from(dy, t * wide), size)
                    logarithm = sums[head * time + t]
                    weigh(_from(weights, one), _from(changes, one), t + 1, logarithm, mean)
                    _fill(_from(weights, one), t + 1, block_end, _NOTHING)
                    _fill(_from(changes, one), t + 1, block_end, _NOTHING)
                for i in range(0, size, COLUMNS):
                    place = _from(dq, query * wide + i)
                    multiply(those, across, 1, _from(k, i), wide, place, wide, end)
            _add_across(changes, across, _from(q, block * wide), wide, dk, block_end, size, block)
            _add_across(weights, across, _from(dy, block * wide), wide, dv, block_end, size, block)
        _turn_back(dq, wide, time, size, turning, scale, result, narrow, begin, step)
        _turn_back(dk, wide, time, size, turning, np.float32(1), result, narrow, of_keys, step)
        for t in range(time):
            for i in range(size):
                _write(result, narrow, of_values + t * step + i, dv[t * wide + i])
    return 0


@part
def _add_across(weights, across, rows, wide, sums, end, size, begin):
    """Add to each key's sum what its column of weights makes of a block's rows."""
    for key in range(0, end, ROWS):
        for i in range(0, size, COLUMNS):
            place = _from(sums, key * wide + i)
            column, row = _from(weights, key), _from(rows, i)
            multiply_add(column, 1, across, row, wide, place, wide, end - begin)
