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
        self._take(restored)

    def _take(self, restored: Mapping[str, Path]) -> None:
        self.folder.mkdir()
        self.parts = [self.folder / name for name in sorted(filter(is_part, restored))]
        for part in self.parts:
            link(restored[part.name], part)
        self._open()

    def _open(self) -> None:
        self.file = (self.folder / "open").open("w", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")

    def cut(self, step: int) -> list[Path]:
        """Close the part that ends with ``step``; all parts in order. Link, and do not write."""
        self.file.close()
        if (self.folder / "open").stat().st_size:
            part = self.folder / f"metrics-{step:010}.jsonl"
            self.parts.append((self.folder / "open").rename(part))
        while len(self.parts) > 1 and self._alike(*self.parts[-2:]):
            self._merge()
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

    def back(self, restored: Mapping[str, Path], line: dict[str, Any]) -> int:
        """Hold what those files of a checkpoint hold, and of what is undone the lines that say so.

        Returns how many those are; ``line`` is the newest.
        """
        self.file.close()
        known = [*self._returns([*self.parts, self.folder / "open"]), json.dumps(line) + "\n"]
        shutil.rmtree(self.folder)
        self._take(restored)
        told = self._returns(self.parts)
        untold = [text for text in known if text not in told]
        self.file.writelines(untold)
        return len(untold)

    @staticmethod
    def _returns(parts: Iterable[Path]) -> list[str]:
        whole = "".join(part.read_text(encoding="utf-8") for part in parts)
        return [line for line in whole.splitlines(True) if '"back_from"' in line]

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
