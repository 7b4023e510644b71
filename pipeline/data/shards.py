"""Shards: stretches of a split that are encoded on their own, by whomever, in any order.

    NAME-000007.shard    the tokens of a shard, whole, until they are joined to those before
    NAME-000007.json     of which text and tokenizer they are, their number of bytes and sha256

The tokens of a split's shards, one after the other, are those of the split: every document is
preceded by end-of-text, and one that lies in several shards is cut where that changes no token
(model/cut.py). Where the shards end depends on the text alone, so a later process finds the same.

A shard gets its name when it is whole, its description after it. Both are checked before they are
believed, so nothing is flushed to the disk: what a power cut takes is encoded again. Whoever
encodes holds one shard in memory, a document that cannot be cut as a whole.
"""

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.bpe import Tokenizer
from model.cut import next_cut
from pipeline.data.splits import mapped
from pipeline.hashing import canonical, file_digest
from pipeline.tokens import token_type
from pipeline.workers import serve

SIZE = 4 << 20  # bytes of text in a shard, more or less
_CHUNK = 1 << 18  # tokens written at once


@dataclass(frozen=True)
class Shard:
    """Bytes ``start`` to ``stop`` of a split's text.

    The documents ``first`` to ``last``, without the last, begin in it; a document before them may
    go on in it.
    """

    split: str
    number: int
    start: int
    stop: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06}"

    @property
    def bytes(self) -> int:
        return self.stop - self.start


def shards(split: str, text: Path, ends: Path, size: int) -> Iterator[Shard]:
    """A split's shards, of some ``size`` bytes: they end with a document or at a safe cut."""
    documents = _ends(ends)
    start = first = number = 0
    with mapped(text) as data:
        while first < len(documents) or start < documents[-1]:
            stop, last = int(documents[-1]), len(documents)
            if start + size < stop:
                document = int(np.searchsorted(documents, np.uint64(start + size)))
                stop, last = int(documents[document]), document + 1
                if stop - start > size + size // 8:
                    stop = min(stop, next_cut(data, start + size))
            yield Shard(split, number, start, stop, first, last)
            start, first, number = stop, last, number + 1


def _ends(path: Path) -> np.ndarray:
    return np.memmap(path, "<u8", "r")


class Encoder:
    """Encodes shards of the files that it was told, into a folder.

    ``files`` are paths: "tokenizer", and for each split NAME "NAME.text" and "NAME.ends".
    """

    def __init__(self, files: Mapping[str, str | Path], folder: Path) -> None:
        self.files, self.folder = {name: Path(path) for name, path in files.items()}, folder
        self.tokenizer = Tokenizer.load(self.files["tokenizer"])
        self.type = token_type(self.tokenizer.vocab_size)
        self._of = file_digest(self.files["tokenizer"])

    def encode(self, shard: Shard) -> None:
        """Write the shard and its description, whole or not at all."""
        text, sums, size = self._text(shard), hashlib.sha256(), 0
        part = self.folder / f"{shard.name}.{os.getpid()}.part"
        with part.open("wb") as file:
            for tokens in self._tokens(shard, text):
                sums.update(tokens)
                size += file.write(tokens)
        part.replace(self.path(shard))
        described = {"of": self._source(shard, text), "bytes": size, "sha256": sums.hexdigest()}
        part.write_bytes(canonical(described))
        part.replace(self._description(shard))

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Encode the shard that has these fields; the job is the answer as well."""
        self.encode(Shard(**job))
        return job

    def path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.shard"

    def described(self, shard: Shard) -> tuple[int, str] | None:
        """Bytes and sha256 of the shard's tokens, if somebody has encoded just this text."""
        try:
            told = json.loads(self._description(shard).read_bytes())
            if told["of"] == self._source(shard, self._text(shard)):
                return int(told["bytes"]), str(told["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def _description(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.json"

    def _text(self, shard: Shard) -> bytes:
        with self.files[f"{shard.split}.text"].open("rb") as file:
            file.seek(shard.start)
            return file.read(shard.bytes)

    def _source(self, shard: Shard, text: bytes) -> list[Any]:
        """What the tokens are made of; the folder is one key's, so this need not be more."""
        ends = _ends(self.files[f"{shard.split}.ends"])[shard.first : shard.last]
        sums = zlib.crc32(ends, zlib.crc32(text))
        return [self._of, shard.start, shard.stop, shard.first, shard.last, sums]

    def _tokens(self, shard: Shard, text: bytes) -> Iterator[np.ndarray]:
        """The shard's tokens, many at a time."""
        waiting: list[np.ndarray] = []
        count, end_of_text = 0, np.array([self.tokenizer.end_of_text], self.type)
        for begins, start, stop in self._stretches(shard):
            whole = stop - start == len(text)
            ids = self.tokenizer.encode_array(text if whole else text[start:stop])
            waiting += [end_of_text, ids] if begins else [ids]
            count += begins + len(ids)
            if count >= _CHUNK:
                yield _together(waiting, self.type)
                waiting, count = [], 0
        yield _together(waiting, self.type)

    def _stretches(self, shard: Shard) -> Iterator[tuple[bool, int, int]]:
        """Does a document begin here? And where its text in the shard begins and ends."""
        low = max(shard.first - 1, 0)
        ends = _ends(self.files[f"{shard.split}.ends"])[low : shard.last].tolist()
        begin = ends.pop(0) if shard.first else 0
        if begin > shard.start:
            yield False, 0, min(begin, shard.stop) - shard.start
        for end in ends:
            yield True, begin - shard.start, min(end, shard.stop) - shard.start
            begin = end


def main() -> None:
    """A worker: argv holds what Encoder is told; jobs are shards, and so are the answers."""
    serve(Encoder(json.loads(sys.argv[1]), Path(sys.argv[2])).answer)


def _together(arrays: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays, dtype=dtype, casting="equiv") if arrays else np.empty(0, dtype)
