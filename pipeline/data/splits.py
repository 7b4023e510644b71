"""The form in which the two splits lie on disk: all bytes in one file, the ends in another.

    NAME.text    the documents' UTF-8 bytes, one after the other, nothing between them
    NAME.ends    for each document the offset at which it ends, little-endian uint64

Writing and reading hold one document at a time, however large the split; `views` and `let_go`
together not even that.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

END = struct.Struct("<Q")


class SplitWriter:
    """Writes ``<folder>/<name>.text`` and ``.ends``, over what may be there."""

    def __init__(self, folder: Path, name: str) -> None:
        self._text = (folder / f"{name}.text").open("wb")
        self._ends = (folder / f"{name}.ends").open("wb")
        self.documents = self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()
        self._ends.close()

    def add(self, document: bytes | memoryview) -> None:
        self.bytes += self._text.write(document)
        self._ends.write(END.pack(self.bytes))
        self.documents += 1


class Split:
    """A written split, memory-mapped: a sequence of documents, ``bytes`` long in all.

    Raises ValueError if the two files do not fit each other.
    """

    def __init__(self, text: Path, ends: Path) -> None:
        self._text, self._ends = mapped(text), mapped(ends)
        self.bytes = len(self._text)
        whole = len(self._ends) % END.size == 0
        if not whole or END.unpack_from(self._ends, len(self._ends) - END.size)[0] != self.bytes:
            raise ValueError(f"{ends} does not belong to {text}: run the stage prepare again")

    def __len__(self) -> int:
        return len(self._ends) // END.size

    def __iter__(self) -> Iterator[bytes]:
        return map(bytes, self.views())

    def views(self) -> Iterator[memoryview]:
        """The documents where they are, without a copy."""
        whole, start = memoryview(self._text), 0
        for (end,) in END.iter_unpack(self._ends):
            yield whole[start:end]
            start = end

    def let_go(self) -> None:
        """Let this process hold none of what was read of the text: it is read again if need be.

        The system would take it back only when memory is short.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._text.madvise(mmap.MADV_DONTNEED)


def mapped(path: Path) -> mmap.mmap:
    """A file that is not empty, to be read where it is."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
