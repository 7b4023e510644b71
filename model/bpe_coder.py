"""Encode and decode at full speed: what `bpe_plain.Coder` does, by the kernels in `model/fast/`.

Kernels allocate nothing: what they lack, a larger table or array, they are given here, and they go
on where they were.
"""

import contextlib
import ctypes
import functools
import itertools
import operator
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np

from model.bpe_count import desk_for
from model.bpe_merges import Pair, to_bytes
from model.bpe_plain import id_type
from model.fast import desk
from model.fast.build import kernels
from model.fast.desk import Desk

_OUT = 1 << 15  # tokens for which there is always room
_MOST_OUT = 1 << 25  # tokens for which room is made at once
_MOST_KEPT = 1 << 24  # characters of a text whose UTF-8 may be kept as long as the text is
_MOST_ENTRIES = 1 << 20  # known pieces: some 100 MB, then it forgets and begins anew
_MOST_POOL = 1 << 23  # int32 for what does not stand in an entry itself
_FIRST_POOL = 1 << 15
_SCRATCH = 16 * desk.KEPT  # int32: 7 are enough for each byte of a piece that is merged


class Coder:
    """Encodes and decodes with given merges; see `bpe_plain.Coder`.

    Threads may share one: it works for one after the other. The desk is BUSY from the beginning of
    a call to its end; one that is found so was left by a call that an interrupt or a fork has cut
    short, in whatever state, and is set up anew.
    """

    def __init__(
        self,
        merges: Sequence[Pair],
        byte_tokens: Sequence[int],
        token_bytes: Sequence[bytes],
        pattern: str,
    ) -> None:
        self._made_of = (merges, byte_tokens, token_bytes, pattern)
        self._lock, self._inside, self._kernels = threading.RLock(), 0, kernels()
        self._desk = work = desk_for(pattern)
        work.lend(desk.BYTE_TOKENS, np.array(byte_tokens, np.int32))
        self._encode, self._address = self._kernels.encode, work.address
        self._token_bytes, self._type = token_bytes, id_type(len(token_bytes))
        work[desk.WIDE] = self._type.itemsize == 4
        flat = np.fromiter(itertools.chain.from_iterable(merges), np.int32, 2 * len(merges))
        # 2**bits lines of eight, at most half full: a search that goes on from line to line ends
        bits = max(1, (2 * len(merges)).bit_length() - 3)
        work.lend(desk.PAIRS, desk.lines(desk.LINE << bits))
        work[desk.PAIRS_SHIFT] = 64 - bits
        first_made = len(token_bytes) - len(merges)
        self._kernels.know_merges(work.address, flat.ctypes.data, len(merges), first_made)
        work.lend(desk.BYTE_PAIRS, _of_bytes(flat.reshape(-1, 2), byte_tokens, first_made))
        self._short = self._kernels.encoder(work.address)  # not while the desk is busy
        self._busy = memoryview(work.fields)[desk.BUSY : desk.BUSY + 1]
        self._set_up()
        _coders.add(self)

    def _set_up(self) -> None:
        """Know no piece, and have room for ordinary texts."""
        self._scratch, self._out = np.zeros(_SCRATCH, np.int32), np.zeros(_OUT, self._type)
        self._desk.new_table()
        self._desk.lend(desk.POOL, np.zeros(_FIRST_POOL, np.int32))
        self._desk[desk.POOL_SIZE], self._desk[desk.POOL_USED] = _FIRST_POOL, 0
        self._lanes = desk.lines(desk.MANY_LANES * desk.LANE)
        begin = self._lanes.ctypes.data + 8 * desk.LANE * np.arange(desk.MANY_LANES)
        self._desk.lend(desk.LANES, begin.astype(np.int64))
        self._lend_own()

    def _lend_own(self) -> None:
        self._desk.lend(desk.OUT, self._out)
        self._desk.lend(desk.SCRATCH, self._scratch)
        self._desk[desk.OUT_SIZE], self._desk[desk.SCRATCH_SIZE] = _OUT, _SCRATCH

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text."""
        if type(text) is str and (ids := self._short(text)):
            return ids
        array = self.encode_array(text)
        ids = [0] * len(array)
        if not self._desk[desk.NUMBERS]:
            self._lend_numbers()
        address, width = array.ctypes.data, array.itemsize
        for i in range(0, len(ids), _OUT):
            many = min(_OUT, len(ids) - i)
            self._kernels.fill_list(self._address, ids, i, address + i * width, many)
        return ids

    def encode_array(self, text: str | bytes) -> np.ndarray:
        """The ids of a text as an array of uint16 or uint32."""
        data, size = _utf8(text)
        with self._lock:
            if self._inside:  # a signal's handler or a finaliser, in the midst of a call
                return Coder(*self._made_of).encode_array(text)
            try:
                self._inside = threading.get_ident()
                if self._busy[0]:
                    self._set_up()
                self._busy[0] = 1
                ids = self._encoded(data, size)
                self._busy[0] = 0
                return ids
            finally:
                self._inside = 0

    def _encoded(self, data: bytes | int, size: int) -> np.ndarray:
        """The ids of a text, which is given itself or by its address."""
        work, fits = self._desk, size <= _OUT - desk.SPARE
        if not fits:  # room for all tokens there could be, of which most is never touched
            self._lend_out(min(size, _MOST_OUT) + desk.SPARE)
        many = self._encode(self._address, data, size, 0)
        if fits and many >= 0:
            return self._out[:many].copy()
        parts = []
        while many < 0:
            if many == -desk.FULL_OUT:
                parts.append(self._taken())
            self._give(-many)
            many = self._encode(self._address, data, size, work[desk.AT])
        last = work.arrays[desk.OUT]
        self._lend_own()
        if parts or last is self._out:
            return np.concatenate([*parts, last[:many]])
        last.resize(many, refcheck=False)  # gives back what was not written
        return last

    def _lend_out(self, size: int) -> None:
        self._desk.lend(desk.OUT, np.empty(size, self._type))
        self._desk[desk.OUT_SIZE] = size

    def _lend_numbers(self) -> None:
        """Each id as a Python number: it is faster to look one up than to make one."""
        numbers = np.arange(len(self._token_bytes)).astype(object)
        with self._lock:
            if not self._desk[desk.NUMBERS]:
                self._desk.lend(desk.NUMBERS, numbers)

    def _begin_in_child(self) -> None:
        """A fork has left us what another thread was at; a call of our own goes on here."""
        if self._inside == threading.get_ident():
            return
        self._lock = threading.RLock()
        if self._inside:
            self._inside, self._busy[0] = 0, 1

    def _taken(self) -> np.ndarray:
        """Take away what has been encoded so far."""
        ids = self._desk.arrays[desk.OUT][: self._desk[desk.OUT_USED]].copy()
        self._desk[desk.OUT_USED] = 0
        return ids

    def _give(self, lacking: int) -> None:
        """What the kernel `encode` has too little of."""
        work, need = self._desk, self._desk[desk.NEED]
        if lacking == desk.FULL_OUT and need > work[desk.OUT_SIZE]:
            self._lend_out(need)
        elif lacking == desk.FULL_SCRATCH:
            work.lend(desk.SCRATCH, np.empty(need, np.int32))
            work[desk.SCRATCH_SIZE] = need
        elif lacking == desk.FULL_TABLE:
            _make_room(work)

    def decode(self, ids: Iterable[SupportsIndex]) -> memoryview:
        """The bytes of `ids`. ValueError: an id outside the vocabulary."""
        tokens = self._as_tokens(ids)
        wide, address = tokens.itemsize == 4, tokens.ctypes.data
        known = self._decoding
        total = self._kernels.measure(known.address, address, len(tokens), wide)
        if total < 0:
            raise self._stranger(tokens[-1 - total])
        out = np.empty(total + 16, np.uint8)
        self._kernels.decode(known.address, address, len(tokens), wide, out.ctypes.data)
        return memoryview(out)[:total]

    @functools.cached_property
    def _decoding(self) -> Desk:
        """A desk with the bytes of all tokens."""
        known = Desk()
        lengths = np.fromiter(map(len, self._token_bytes), np.int64, len(self._token_bytes))
        known.lend(desk.STARTS, np.concatenate([[0], np.cumsum(lengths)]))
        flat = b"".join([*self._token_bytes, bytes(16)])  # the last may be read beyond its end
        known.lend(desk.BYTES, np.frombuffer(flat, np.uint8))
        known[desk.TOKENS] = len(self._token_bytes)
        return known

    def _as_tokens(self, ids: Iterable[SupportsIndex]) -> np.ndarray:
        """The ids as unsigned numbers of 16 or 32 bits."""
        if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and ids.ndim == 1:
            if ids.dtype in (np.uint16, np.uint32):
                return ids.copy()  # nobody may change what has been measured
            outside = ids[(ids < 0) | (ids >= len(self._token_bytes))]
            if len(outside):
                raise self._stranger(outside[0])
            return ids.astype(np.uint32)
        ids = ids if isinstance(ids, list) else list(ids)
        known, tokens = self._decoding, np.empty(len(ids), np.uint32)
        if self._kernels.read_list(known.address, ids, tokens.ctypes.data, len(ids)):
            return tokens
        numbers = [operator.index(i) for i in ids]
        for i in numbers:
            if not 0 <= i < len(self._token_bytes):
                raise self._stranger(i)
        return np.array(numbers, np.uint32)

    def _stranger(self, token: int) -> ValueError:
        last = len(self._token_bytes) - 1
        return ValueError(f"token id {token}: this vocabulary has 0..{last}")


_coders: "weakref.WeakSet[Coder]" = weakref.WeakSet()


def _forked() -> None:
    for coder in list(_coders):
        coder._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _make_room(work: Desk) -> None:
    """Room for the next pieces in the table, and for NEED words in its pool; or forget all."""
    used = work[desk.USED] + desk.PIECES_AHEAD
    if used > _MOST_ENTRIES or work[desk.POOL_USED] >= _MOST_POOL:
        work.new_table()
        work[desk.POOL_USED] = 0
    elif used > work[desk.LIMIT]:
        work.grow_table(kernels().move, times=2 if used < 1 << 18 else 1)
    else:
        work.grow(desk.POOL, desk.POOL_SIZE, work[desk.POOL_USED] + work[desk.NEED])


def _of_bytes(pairs: np.ndarray, byte_tokens: Sequence[int], first_made: int) -> np.ndarray:
    """What each pair of bytes makes: element 256 x left + right is a token, or NONE."""
    byte_of = np.full(first_made, -1)
    byte_of[np.asarray(byte_tokens)] = np.arange(256)
    known = np.flatnonzero((pairs < first_made).all(axis=1))
    known = known[(byte_of[pairs[known]] >= 0).all(axis=1)]
    left, right = byte_of[pairs[known]].T
    table = np.full(1 << 16, desk.NONE, np.int32)
    table[left << 8 | right] = first_made + known
    return table


_utf8_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t))(
    ("PyUnicode_AsUTF8AndSize", ctypes.pythonapi)
)


def _utf8(text: str | bytes) -> tuple[bytes | int, int]:
    """The UTF-8 of a text or its address, and how long it is.

    A str has its UTF-8 with it, if it is ASCII or has once been asked; the str must live on.
    """
    if isinstance(text, str) and (text.isascii() or len(text) <= _MOST_KEPT):
        size = ctypes.c_ssize_t()
        with contextlib.suppress(UnicodeEncodeError):  # lone surrogates
            return _utf8_of(text, size), size.value
    data = to_bytes(text)
    return data, len(data)
