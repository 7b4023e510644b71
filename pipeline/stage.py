"""What a stage is to the engine, and what the engine is to a stage.

A stage is a plain function ``run(context) -> metrics`` in ``pipeline/stages/``. It reads the files
in ``context.inputs``, writes files into ``context.out`` and returns numbers for people. It knows
nothing of keys, logs or stores, and imports nothing of the engine.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted
from pipeline.machine import Machine
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """The declaration of a stage: all that its key is made of."""

    name: str
    summary: str
    reads: tuple[str, ...] = ()  # sections of the recipe
    inputs: tuple[str, ...] = ()  # files of earlier stages, as "stage/file"
    source: bool = False  # does it read the data source itself?
    version: int = 1  # raise it to re-run a stage for a reason that the code does not show

    @property
    def module(self) -> str:
        return f"pipeline.stages.{self.name}"

    @property
    def upstream(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.split("/")[0] for name in self.inputs))


@dataclass
class Context:
    """Handed to a stage while it runs."""

    recipe: Recipe
    machine: Machine
    inputs: dict[str, Path]  # "stage/file" -> verified file: read only, fit for memory maps
    out: Path  # an empty directory; what is in it at the end is the result
    source: Any = None  # for a stage that reads the data source: see sources.py
    restored: dict[str, Path] | None = None  # files of the newest whole checkpoint, if any
    # files of the one before it, if any; to be asked for before a checkpoint is saved. Raises
    # StoreAway, soon if it is asked with False
    earlier: Callable[[bool], dict[str, Path] | None] = field(default=lambda _: None)
    stopping: Callable[[], bool] = field(default=lambda: False)
    show: Callable[..., None] = field(default=lambda *_, **__: None)
    save: Callable[..., None] = field(default=lambda *_, **__: None)
    # say that checkpoints behind a step, saved before now, are nothing to go on from
    went_back: Callable[[int], None] = field(default=lambda _: None)
    note: Callable[[str], None] = field(default=lambda _: None)  # say something to people once
    # a folder of this machine in which a process finds what one that was killed had done; it may
    # lack anything, or hold it damaged, and is gone when there is a result
    kept: Callable[[], Path] = field(default=lambda: Path(tempfile.mkdtemp(prefix="ignite-")))
    # say how many seconds a part of ending in order took, such as writing a checkpoint
    needs: Callable[[str, float], None] = field(default=lambda *_: None)

    def progress(self, done: int, total: int | None, unit: str, **shown: str) -> None:
        """Say how far the work is. Raises Interrupted if somebody asked to stop."""
        self.show(done, total, unit, shown)
        if self.stopping():
            raise Interrupted("nothing of this stage is kept: it starts anew")

    def checkpoint(self, step: int, files: list[Path]) -> None:
        """Publish files from ``out`` to go on from; they are moved out of it.

        Raises Lost if another process has taken the work over.
        """
        self.save(step, files)
