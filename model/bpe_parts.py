"""Cut and join texts to parts of a size that is good to hand to a thread.

Small documents are copied side by side into one part. A large one is cut where that changes no
piece, and not copied.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from model.bpe_merges import to_bytes
from model.cut import next_cut

Text = str | bytes | memoryview

PART = 1 << 20  # bytes, or characters of a str that is larger than _WHOLE
_WHOLE = 1 << 24  # characters of a str that is turned into bytes as a whole
_DOCUMENTS = 1 << 16  # in a part
_SLOW = 0.2  # seconds


@dataclass(frozen=True)
class Part:
    """Documents side by side: number i is bytes bounds[i]..bounds[i + 1] from `address` on.

    `data` owns the memory.
    """

    data: np.ndarray
    address: int
    bounds: np.ndarray  # int64

    @property
    def bytes(self) -> int:
        return int(self.bounds[-1])


def parts(texts: Iterable[Text]) -> Iterator[Part]:
    """All documents as parts; only as much of `texts` is read as the next part needs.

    A part that fills slowly is given as it is, so that whoever counts them sees things go on.
    """
    documents: list[bytes | memoryview] = []
    size, due = 0, time.monotonic() + _SLOW
    for text in texts:
        if isinstance(text, memoryview):
            text = text if len(text) == text.nbytes else text.cast("B")
        elif not isinstance(text, str) or len(text) <= _WHOLE:
            text = to_bytes(text)
        if len(text) > PART:
            yield from _cut(text)
            continue
        documents.append(text)
        size += len(text)
        if size >= PART or len(documents) >= _DOCUMENTS or time.monotonic() >= due:
            yield _joined(documents)
            documents, size, due = [], 0, time.monotonic() + _SLOW
    if documents:
        yield _joined(documents)


def _joined(documents: list[bytes | memoryview]) -> Part:
    data = np.frombuffer(b"".join([*documents, b"\0"]), np.uint8)
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, documents), np.int64, len(documents)), out=bounds[1:])
    return Part(data, data.ctypes.data, bounds)


def _cut(text: Text) -> Iterator[Part]:
    begin = 0
    data = None if isinstance(text, str) else np.frombuffer(text, np.uint8)
    while begin < len(text):
        end = next_cut(text, begin + PART)
        if data is not None:
            bounds = np.array([0, end - begin], np.int64)
            yield Part(data, data.ctypes.data + begin, bounds)
        else:
            yield _joined([to_bytes(text[begin:end])])
        begin = end
