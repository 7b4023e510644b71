"""A split's token file, which grows by one shard after the other, in their order.

A shard is removed as soon as its tokens stand in the file, so the disk holds nothing twice but the
one that is being joined; its description stays. Killed at any moment, the file is some whole shards
and perhaps a part of the next, which is still there by itself: the sums in the descriptions tell
how many are whole, and the rest of the file is cut off.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from typing import BinaryIO

from pipeline.data.shards import Encoder, Shard

_PIECE = 1 << 20


class Joined:
    """The file ``NAME.tokens`` beside the shards of a split."""

    def __init__(self, encoder: Encoder, shards: Sequence[Shard]) -> None:
        self.encoder, self.shards = encoder, shards
        self.path = encoder.folder / f"{shards[0].split}.tokens"
        self._next = 0  # number of the shard that is to be joined next
        self._ready: set[int] = set()  # those behind it that are there

    @property
    def whole(self) -> bool:
        return self._next == len(self.shards)

    def look(self, looked: Callable[[Shard], None]) -> list[Shard]:
        """Which shards are still to be encoded? What is there is checked; ``looked`` hears of each.

        What is of no use is removed.
        """
        missing, size = [], 0
        with self._opened() as file:
            for shard in self.shards:
                told = self.encoder.described(shard)
                looked(shard)
                if told is None:
                    missing.append(shard)
                elif self._next == shard.number and _holds(file, *told):
                    self._next, size = shard.number + 1, size + told[0]
                    self.encoder.path(shard).unlink(missing_ok=True)
                elif self._is_there(shard, *told):
                    self._ready.add(shard.number)
                else:
                    missing.append(shard)
        self._cut_off(size)
        self._join()
        return missing

    def add(self, shard: Shard) -> None:
        """The shard has been encoded: join what can be joined by now."""
        self._ready.add(shard.number)
        self._join()

    def _join(self) -> None:
        while self._next in self._ready:
            shard = self.encoder.path(self.shards[self._next])
            with shard.open("rb") as source, self.path.open("ab") as target:
                shutil.copyfileobj(source, target, _PIECE)
            shard.unlink()
            self._ready.remove(self._next)
            self._next += 1

    def _opened(self) -> BinaryIO:
        self.path.touch()
        return self.path.open("rb")

    def _is_there(self, shard: Shard, size: int, digest: str) -> bool:
        try:
            with self.encoder.path(shard).open("rb") as file:
                return _holds(file, size, digest) and not file.read(1)
        except FileNotFoundError:
            return False

    def _cut_off(self, size: int) -> None:
        """Leave but so many bytes of the file; one that was published is not ours to change."""
        found = self.path.stat()
        if found.st_size == size:
            return
        if found.st_nlink == 1 and os.access(self.path, os.W_OK):
            os.truncate(self.path, size)
        else:
            whole = self.path.with_suffix(".part")
            with self.path.open("rb") as source, whole.open("wb") as target:
                while size and (piece := source.read(min(size, _PIECE))):
                    size -= target.write(piece)
            whole.replace(self.path)


def _holds(file: BinaryIO, size: int, digest: str) -> bool:
    """Are the next bytes of the file, so many, those of the digest?"""
    sums = hashlib.sha256()
    while size and (piece := file.read(min(size, _PIECE))):
        size -= len(piece)
        sums.update(piece)
    return not size and sums.hexdigest() == digest
