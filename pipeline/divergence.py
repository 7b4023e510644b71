"""When a run has diverged, and where it goes back to.

It has, as soon as

* the loss of a step is no number, or more than twice that of a blind guess, ln(vocabulary);
* the gradient's norm is no number. In float16 that costs its step alone as long as it was scaled;
* a look at the validation split gives no number. It may be as bad as it likes: a model that learns
  its text by heart can be worse there than a blind guess.

A rise that stays below is not judged: it may heal, and what a batch costs depends on what is in it.

Then the run goes back to its newest checkpoint. If it comes no further than before, or diverges in
the very first step from there, whose loss no learning rate can change, then that checkpoint is the
illness, and it goes back to the one before; to the beginning if there is none and no more than a
tenth of the steps is lost. What it saves before it has come further is nothing to go back to.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.trainer import StepReport
from pipeline.checkpoint import Stored
from pipeline.errors import StoreAway
from pipeline.store.disk import link

TOO_HIGH = 2.0  # times the loss of a blind guess
YOUNG = 0.1  # of a run's steps; what may be done again from the beginning

Files = Mapping[str, Path]


class Diverged(Exception):
    """What a step, or a look at that step, has shown; ``words`` say it to people."""

    def __init__(self, words: str, loss: float, step: int) -> None:
        super().__init__(words, step)
        self.words, self.loss, self.step = words, loss, step


def judge(report: StepReport, vocab_size: int) -> None:
    """Raises Diverged if what the step has shown is no use."""
    if not report.loss <= TOO_HIGH * math.log(vocab_size):  # true for NaN as well
        words = f"the loss became {report.loss:.4g}"
    elif not math.isfinite(report.gradient_norm) and report.loss_scale <= 1:
        words = f"the gradient became {report.gradient_norm:.4g}"
    else:
        return
    raise Diverged(words, report.loss, report.step)


@dataclass(frozen=True)
class _Place:
    step: int
    files: dict[str, Path]
    folder: Path


class WayBack:
    """The two newest checkpoints to go back to: links, whatever becomes of the store's files.

    ``earlier`` gives the files of the one before that which the run came from, if there is any; it
    raises StoreAway, soon if it is asked with False.
    """

    def __init__(self, folder: Path, earlier: Callable[[bool], Files | None]) -> None:
        self.folder, self.earlier, self.away = folder, earlier, False
        self.places: list[_Place] = []
        self.made = self.failed = 0  # folders; the furthest step at which the run diverged

    def here(self, step: int, files: Files) -> None:
        """A checkpoint was made, or come from."""
        if step > self.failed:
            self.places.append(self._held(step, files))
        while len(self.places) > 2:
            self._forget(0)

    def choose(self, diverged: int, steps: int) -> Files:
        """The files to go on from for a run that diverged at that step; none: the beginning."""
        if (self.away or not self.failed) and len(self.places) == 1:
            self._look_further_back(diverged)
        ill = self.places and (diverged <= self.failed or diverged == self.places[-1].step + 1)
        if ill and (len(self.places) > 1 or self.places[0].step <= YOUNG * steps):
            self._forget(-1)
        self.failed = max(self.failed, diverged)
        return self.places[-1].files if self.places else {}

    def _look_further_back(self, diverged: int) -> None:
        """Hold an earlier one, before others take its place in the store. It is worth waiting for
        only where there is nothing else to go back to."""
        needed = diverged == self.places[0].step + 1
        try:
            older, self.away = self.earlier(needed), False
        except StoreAway:
            if needed:
                raise
            older, self.away = None, True
        if older is not None:
            step = int(Stored(older["state.safetensors"])["step"])
            if step < self.places[0].step:
                self.places.insert(0, self._held(step, older))

    def _held(self, step: int, files: Files) -> _Place:
        folder = self.folder / str(self.made)
        folder.mkdir(parents=True)
        self.made += 1
        for name, path in files.items():
            link(path, folder / name)
        return _Place(step, {name: folder / name for name in files}, folder)

    def _forget(self, at: int) -> None:
        shutil.rmtree(self.places.pop(at).folder)

    def end(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
