"""``metrics.jsonl``: a line for each step of a run, each look, each return to a checkpoint.

While a run is under way every checkpoint needs all lines so far, and copying them each time would
cost more the longer it lasts. So the lines lie in parts, each named by its last step. A checkpoint
closes the part that is being written; two neighbours become one as long as the older is at most
twice as large, and one that has reached ``_WHOLE`` stays. There are few parts then, a line is
copied a few times in its life, no pause is longer than it takes to copy ``_WHOLE`` twice, and what
a checkpoint gets are links. Cost: 200 bytes of disk a step.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.store.disk import link

_WHOLE = 64 << 20  # bytes


def is_part(name: str) -> bool:
    """Is it the name of a part of the lines in a checkpoint?"""
    return name.startswith("metrics-") and name.endswith(".jsonl")


def last_step(name: str) -> int:
    """The step that a part ends with, by its name."""
    return int(name.removeprefix("metrics-").removesuffix(".jsonl"))


class Journal:
    """The lines of a run, in a folder of their own until they are whole."""

    def __init__(self, folder: Path, restored: Mapping[str, Path]) -> None:
        """``restored`` are the files of the checkpoint that the run goes on from."""
        self.folder = folder
        folder.mkdir()
        self.parts = [folder / name for name in sorted(filter(is_part, restored))]
        for part in self.parts:
            link(restored[part.name], part)
        self.kept: list[str] = []  # lines of the open part that stay when the run goes back
        self._open()

    def _open(self) -> None:
        self.file = (self.folder / "open").open("w", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")

    def cut(self, step: int) -> list[Path]:
        """Close the part that ends with ``step``; all parts in order. Link them, write into none.

        What is in them is what ``back`` goes back to.
        """
        self.file.close()
        if (self.folder / "open").stat().st_size:
            part = self.folder / f"metrics-{step:010}.jsonl"
            self.parts.append((self.folder / "open").rename(part))
        while len(self.parts) > 1 and self._alike(*self.parts[-2:]):
            self._merge()
        self.kept = []
        self._open()
        return list(self.parts)

    @staticmethod
    def _alike(older: Path, younger: Path) -> bool:
        size = older.stat().st_size
        return size <= 2 * younger.stat().st_size and size < _WHOLE

    def _merge(self) -> None:
        older, younger = self.parts[-2:]
        merged = self.folder / "merged"
        _concatenate((older, younger), merged)
        os.replace(merged, younger)  # a new file: the checkpoint's own has another name
        older.unlink()
        del self.parts[-2]

    def back(self, line: dict[str, Any]) -> None:
        """Forget what was added since the last cut, but for the lines that say so."""
        self.kept.append(json.dumps(line) + "\n")
        self.file.close()
        self._open()
        self.file.writelines(self.kept)

    def finish(self, path: Path) -> None:
        """Write all lines to one file and leave nothing else."""
        self.file.close()
        _concatenate((*self.parts, self.folder / "open"), path)
        shutil.rmtree(self.folder)


def _concatenate(parts: Iterable[Path], whole: Path) -> None:
    with whole.open("xb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
