"""Turn tokens into bytes: measure, then copy sixteen bytes at a time: most have fewer."""

from model.fast.desk import BYTES, STARTS, TOKENS
from model.fast.memory import bytes_at, ints_at, longs_at, part, shorts_at, value
from model.fast.vectors import copy16


@part
def _token(address, wide, i):
    """Token i of an array of uint32 or uint16."""
    if wide:
        return ints_at(address)[i] & 0xFFFFFFFF
    return value(shorts_at(address), i)


def measure(desk_address, tokens_address, many, wide):
    """Kernel: how many bytes the tokens stand for; -1 - i, if there is no token i."""
    desk = longs_at(desk_address)
    starts, known = longs_at(desk[STARTS]), desk[TOKENS]
    total = 0
    for i in range(many):
        token = _token(tokens_address, wide, i)
        if token >= known:
            return -1 - i
        total += starts[token + 1] - starts[token]
    return total


def decode(desk_address, tokens_address, many, wide, out_address):
    """Kernel: write the bytes of measured tokens; `out` must hold 16 more than that."""
    desk, out = longs_at(desk_address), bytes_at(out_address)
    starts, data = longs_at(desk[STARTS]), bytes_at(desk[BYTES])
    at = 0
    for i in range(many):
        token = _token(tokens_address, wide, i)
        start = starts[token]
        length = starts[token + 1] - start
        copy16(out, at, data, start)
        for copied in range(16, length, 16):
            copy16(out, at + copied, data, start + copied)
        at += length
    return at
