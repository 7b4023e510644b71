"""When a run has diverged, and where it goes back to.

It has, as soon as

* the loss of a step is no number, or more than twice that of a blind guess, ln(vocabulary);
* the mean loss of 50 steps is more than 1 nat above the least such mean before: a rise that stays;
* the gradient's norm is no number. In float16 that costs its step alone, until the scaler's factor
  has come down to 1 and there is nothing left to scale;
* a look at the validation split gives no number. It may be as bad as it likes: a model that learns
  its text by heart can be worse there than a blind guess.

Then it goes back to its newest checkpoint. If it has done so before without getting as far as
another one, or diverges in the very first step from there, whose loss no learning rate can change,
then that one is the illness, and it goes back to the one before; to the beginning if there is none
and no more than a tenth of the steps is lost.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.checkpoint import Stored
from pipeline.store.disk import link

TOO_HIGH = 2.0  # times the loss of a blind guess
WINDOW, RISE = 50, 1.0  # steps whose mean counts; nats per token
YOUNG = 0.1  # of a run's steps; what may be done again from the beginning


class Diverged(Exception):
    """What a step, or a look at that step, has shown; ``words`` say it to people."""

    def __init__(self, words: str, loss: float, step: int) -> None:
        super().__init__(words, step)
        self.words, self.loss, self.step = words, loss, step


class Guard:
    """Judges the losses of a run, one by one."""

    def __init__(self, vocab_size: int) -> None:
        self.limit = TOO_HIGH * math.log(vocab_size)
        self.start([])

    def start(self, losses: list[float]) -> None:
        """What comes next follows these."""
        self.recent, self.least = losses[-WINDOW:], math.inf
        if len(losses) >= WINDOW:
            windows = np.lib.stride_tricks.sliding_window_view(losses, WINDOW)
            self.least = float(windows.mean(axis=1).min())

    def step(self, loss: float, step: int) -> None:
        """Raises Diverged, and then does not count it."""
        if not loss <= self.limit:  # true for NaN as well
            raise Diverged(f"the loss became {loss:.4g}", loss, step)
        recent = [*self.recent, loss][-WINDOW:]
        if len(recent) == WINDOW:
            mean = float(np.mean(recent))
            if mean > self.least + RISE:
                words = f"the mean loss rose from {self.least:.4g} to {mean:.4g} and stayed there"
                raise Diverged(words, loss, step)
            self.least = min(self.least, mean)
        self.recent = recent


class WayBack:
    """The checkpoint that a run goes back to: links to its files, whatever becomes of the store's.

    ``earlier`` finds the files of the newest one before some step, if there is any.
    """

    def __init__(self, folder: Path, earlier: Callable[[int], dict[str, Path] | None]) -> None:
        self.folder, self.earlier = folder, earlier
        self.step, self.files, self.used = 0, dict[str, Path](), False

    def here(self, step: int, files: Mapping[str, Path]) -> None:
        """From now on it is this one; without files, the beginning."""
        self.end()
        self.folder.mkdir()
        self.step, self.used = step, False
        self.files = {name: self.folder / name for name in files}
        for name, path in files.items():
            link(path, self.files[name])

    def choose(self, diverged: int, steps: int) -> dict[str, Path]:
        """The files to go on from for a run that diverged at that step; none: the beginning."""
        if self.step and (self.used or diverged == self.step + 1):
            older = self.earlier(self.step)
            if older is not None:
                self.here(int(Stored(older["state.safetensors"])["step"]), older)
            elif self.step <= YOUNG * steps:
                self.here(0, {})
        self.used = True
        return self.files

    def end(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
