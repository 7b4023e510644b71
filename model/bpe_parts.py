"""Cut and join texts to parts of a size that is good to hand to a thread.

Small documents are copied side by side into one part. A large one is not copied but cut, where a
piece ends whatever else stands in the text:

    between an ASCII letter or digit and an ASCII character that is neither: a piece that has
    letters or digits ends with them;
    behind a line end, before a visible ASCII character or one of U+4000..U+9FFF, where scripts
    without spaces have theirs: no piece goes on behind a line end but with white space.

That holds for all patterns of `split`. How the piece before the cut ends may depend on what comes
behind it, as white space does, so a part knows that its text goes on.
"""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from model.bpe_merges import to_bytes

Text = str | bytes | memoryview

PART = 1 << 20  # bytes, or characters of a str that is larger than _WHOLE
_WHOLE = 1 << 24  # characters of a str that is turned into bytes as a whole
_DOCUMENTS = 1 << 16  # in a part
_SLOW = 0.2  # seconds
_WINDOW = 1 << 16  # bytes searched for a place to cut in one go
_VISIBLE = r"!-~"
_NO_WORD = r"\x00-/:-@\[-`{-\x7f"  # ASCII that is neither letter nor digit
_CUT_BYTES = re.compile(
    rf"[0-9A-Za-z](?=[{_NO_WORD}])|\n(?=[{_VISIBLE}\xe4-\xe9])".encode("latin-1")
)
_CUT_STR = re.compile(rf"[0-9A-Za-z](?=[{_NO_WORD}])|\n(?=[{_VISIBLE}\u4000-\u9fff])")


@dataclass(frozen=True)
class Part:
    """Documents side by side: number i is bytes bounds[i]..bounds[i + 1] from `address` on.

    The last one goes on for `beyond` bytes, which belong to other parts. `data` owns the memory.
    """

    data: np.ndarray
    address: int
    bounds: np.ndarray  # int64
    beyond: int = 0

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
        if isinstance(text, memoryview) and len(text) != text.nbytes:
            text = text.cast("B")
        elif isinstance(text, str) and len(text) <= _WHOLE:
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
            yield Part(data, data.ctypes.data + begin, bounds, len(text) - end)
        else:
            beyond = len(to_bytes(text[end : end + 1]))
            own = np.frombuffer(to_bytes(text[begin : end + 1]), np.uint8)
            bounds = np.array([0, len(own) - beyond], np.int64)
            yield Part(own, own.ctypes.data, bounds, beyond)
        begin = end


def next_cut(text: Text, at: int) -> int:
    """The first place behind `at` where a piece ends for certain: the text's end, if no other."""
    search = (_CUT_STR if isinstance(text, str) else _CUT_BYTES).search
    while at < len(text):
        if found := search(text, at, at + _WINDOW):
            return found.end()
        at += _WINDOW - 1
    return len(text)
