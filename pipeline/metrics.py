"""What a training run says of itself: how fast it is, in how much memory, and who computed what.

``segments.json`` says which machine did which steps: one entry for each process that trained, and
another from where it went back to after it had diverged. The
lines of ``metrics.jsonl``, one a step, are kept by journal.py. No later stage reads either file,
and their bytes differ however equal two runs are. Cost: next to nothing in a step, and once a
process up to two seconds for a peak that must be measured (peaks.py).
"""

import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from model.trainer import Trainer
from pipeline import peaks
from pipeline.cards import flops_per_token
from pipeline.machine import type_name

_SETTLED = 10.0  # seconds of training after which a peak that must be measured is measured
_WINDOW = 1.0  # seconds over which a speed is the mean


def number(value: float, digits: int = 6) -> float | None:
    """A number as JSON can say it: so many significant digits, None for what is no number."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


class Meter:
    """How fast, in how much memory, and how well the device is used. ``lap`` is for each step."""

    def __init__(self, trainer: Trainer, tokens: int) -> None:
        """``tokens`` are those of one step."""
        self.device, self.tokens = trainer.device, tokens
        self.dtype = trainer.model.compute_dtype
        self.devices = trainer.team.size
        model = trainer.model
        self.flops = flops_per_token(model.config, model.vocab_size)
        self.peak = peaks.known(self.device, self.dtype)
        self.started = time.monotonic()
        self.restart()
        self.speed: float | None = None
        self.early = True  # no second has passed yet
        self.memory = memory(self.device)

    def lap(self, step: int) -> None:
        """A step was asked for and the one before is done: measure anew if a second has passed."""
        now = time.monotonic()
        if self.first is None:
            self.laps += 1
            if self.laps == 2:  # the first may have been compiled, and is waited for
                self.first, self.marked = step, now
        elif (whole := now - self.marked >= _WINDOW) or self.early:
            self.speed = (step - self.first) * self.tokens / max(now - self.marked, 1e-9)
            self.memory = memory(self.device)
            if whole:
                self.first, self.marked, self.early = step, now, False
        if self.peak is None and now - self.started >= _SETTLED:
            self.peak = peaks.measured(self.device, self.dtype)
            self.restart()  # that was no training

    def restart(self) -> None:
        """Begin to measure anew: the run goes on from another step, or has done something else."""
        self.first: int | None = None  # the step at the last mark, and when that was
        self.marked, self.laps = math.nan, 0

    def utilisation(self, speed: float | None) -> float | None:
        """The share of the peak that a speed is; None while there is no peak."""
        if self.peak is None or speed is None:
            return None
        return speed * self.flops / (self.peak.flops * self.devices)

    def values(self) -> dict[str, Any]:
        """What a line of the metrics says."""
        utilisation = self.utilisation(self.speed)
        return {
            "tokens_per_second": self.speed and round(self.speed),
            "memory": self.memory,
            "mfu": utilisation and number(utilisation, 4),
        }

    def shown(self) -> dict[str, str]:
        """What the line of progress says."""
        told = {} if self.speed is None else {"tokens/s": f"{self.speed:,.0f}"}
        utilisation = self.utilisation(self.speed)
        if utilisation is None or self.peak is None:
            return told
        measured = " of a measured peak" if self.peak.measured else ""
        return told | {"MFU": f"{utilisation:.1%}{measured}"}


def memory(device: torch.device) -> int | None:
    """Bytes: the most that tensors took on a CUDA device, else what this process takes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return _most_ever()


def _most_ever() -> int | None:
    """The most that this process took, where the system does not tell what it takes now."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


class Segment:
    """The part of a run that this process computes; one that goes back begins another.

    ``rollbacks`` are the returns that led to where it begins.
    """

    def __init__(self, trainer: Trainer, meter: Meter, rollbacks: int = 0) -> None:
        self.meter, self.start, self.rollbacks = meter, trainer.step, rollbacks
        self.skipped = trainer.scaler.skipped
        self.began = time.monotonic()

    def told(self, trainer: Trainer) -> list[dict[str, Any]]:
        """As ``segments.json`` says it; nothing if no step was done."""
        steps = trainer.step - self.start
        if steps <= 0:
            return []
        seconds = time.monotonic() - self.began
        speed = steps * self.meter.tokens / seconds
        peak, utilisation = self.meter.peak, self.meter.utilisation(speed)
        return [
            {
                "from": self.start + 1,
                "to": trainer.step,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(speed),
                "machine": platform.node() or "host",
                "device": peaks.device_name(trainer.device),
                "precision": type_name(trainer.model.compute_dtype),
                "compiled": trainer.model.compiled or trainer.model.attends_in_one,
                "micro_batch": trainer.micro_batch,
                "activation_checkpointing": trainer.model.recompute,
                "sharded": trainer.team.sharded,
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "world_size": self.meter.devices,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "skipped": trainer.scaler.skipped - self.skipped,
                "rollbacks": self.rollbacks,
                "mfu": utilisation and number(utilisation, 4),
                "peak_tflops": peak and number(peak.flops / 1e12, 4),
                "peak_measured": peak and peak.measured,
            }
        ]
