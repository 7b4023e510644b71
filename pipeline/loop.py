"""The training loop with what makes it survive: looks, shows, saves, goes on from what is saved.

A checkpoint holds the trainer's whole state, the history and the best weights. The data position is
not in it: batches are a function of the step. That makes a killed and resumed run end with the same
bytes as an uninterrupted one, on the same kind of device. It is written tensor by tensor, and the
best weights are a file from the moment they were found: memory never holds a second copy.

A run that diverges goes back to a checkpoint (divergence.py: when, and to which) and takes half
the learning rate from there on; three times at most. The factor is part of every checkpoint after
that. Which checkpoints there are is a matter of time, so such a run is resumed to the same bytes
from what it saved, but two such runs may differ.

If several processes train, this one leads, and the others are told of all that they are needed for
(team.py): nothing here depends on how many they are.

What a step has measured is read one step late, so that the device need not wait for the host; at
once where anything depends on it.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.evaluate import score
from model.trainer import StepReport, Trainer
from pipeline.checkpoint import Stored, write
from pipeline.divergence import Diverged, WayBack, judge
from pipeline.errors import Interrupted
from pipeline.journal import Journal
from pipeline.machine import type_name
from pipeline.metrics import Meter, Segment, number
from pipeline.stage import Context
from pipeline.store.disk import link
from pipeline.team import Leader, Nobody

# a look at the validation split while training reads at most this many tokens of it
GLANCE = 1 << 16
# the least share of the learning rate that a run may go back with: three halvings
_LEAST = 1 / 8


class Loop:
    """Steps until the recipe's number of steps; looks, shows and saves on the way.

    ``rebuild`` makes the trainer anew as it was before the first step; without it a run that
    diverges before its first checkpoint ends.
    """

    def __init__(
        self,
        context: Context,
        trainer: Trainer,
        validation: np.ndarray,
        tokens: dict[str, int],
        rebuild: Callable[[], Trainer] | None = None,
        leader: Leader | Nobody | None = None,
    ) -> None:
        self.context, self.trainer, self.validation = context, trainer, validation
        self.rebuild, self.leader = rebuild, leader or Nobody()
        self.train = context.recipe.train
        # the first token is not scored
        self.bytes_per_token = tokens["validation_bytes"] / max(1, tokens["validation_tokens"] - 1)
        self.losses: list[float] = []
        self.looks: list[dict[str, float]] = []
        self.segments: list[dict[str, Any]] = []  # before this one
        self.late: StepReport | None = None  # of the last step, not read yet
        self.read: StepReport | None = None  # of the last one that was
        self.told = 0  # events of the trainer
        # under another name than in a checkpoint, which takes its files away
        self.best = context.out / "best.kept"
        self.way_back = WayBack(context.out / "back", context.earlier)
        self.saved_at = time.monotonic()
        self.journal = Journal(context.out / "metrics.kept", context.restored or {})
        if context.restored:
            self._restore(context.restored)
            self.way_back.here(trainer.step, context.restored)
        self.meter = Meter(trainer, self.train.batch * trainer.model.config.context)
        self.segment = Segment(trainer, self.meter)

    def run(self) -> dict[str, object]:
        while self.trainer.step < self.train.steps:
            try:
                self._step()
            except Diverged as diverged:
                self._go_back(diverged)
        return self._finish()

    def _step(self) -> None:
        began = time.monotonic()
        with self.leader.all("step", self.trainer.lr_factor):
            report = self.trainer.run_step()
        self._settle()
        self.late, step = report, report.step
        self._tell_events()
        self.meter.lap(step)  # before anything waits for this step
        if step % self.train.eval_every == 0 or step == self.train.steps:
            self._settle()
            self._look(step)
        if self.read is None:  # something must be shown
            self._settle()
        self._show(step)
        self.context.needs("step", time.monotonic() - began)
        stopping = self.context.stopping()
        if stopping or self._checkpoint_due(step):
            self._settle()
            self._checkpoint()
        if stopping:
            raise Interrupted(f"checkpoint written at step {step}")

    def _settle(self) -> None:
        """Read what the last step has measured. Raises Diverged before anything is saved."""
        report, self.late = self.late, None
        if report is None:
            return
        with self.leader.waiting():  # read here, and kept: it waits for a sum over all
            _ = report.loss, report.gradient_norm
        judge(report, self.trainer.model.vocab_size)
        self.losses.append(report.loss)
        self.read = report
        self.journal.add(
            {
                "step": report.step,
                "loss": number(report.loss),
                "gradient_norm": number(report.gradient_norm),
                "lr": number(report.lr),
                **self.meter.values(),
                "skipped": self.trainer.scaled and not math.isfinite(report.gradient_norm),
            }
        )

    def _look(self, step: int) -> None:
        """Score the start of the validation split; remember the weights if they are the best."""
        context = self.trainer.model.config.context
        with self.leader.all("look"), self.trainer.result() as model:
            measured = score(model, self.validation[:GLANCE], stride=context)
        if not math.isfinite(measured.loss):
            words = f"the loss on the validation split became {measured.loss:.4g}"
            raise Diverged(words, measured.loss, step)
        if not self.looks or measured.loss < min(look["loss"] for look in self.looks):
            self._write_weights(self.best)
        self.looks.append({"step": step, "loss": measured.loss})
        bits = self._bits_per_byte(measured.loss)
        line = {"validation_loss": number(measured.loss), "bits_per_byte": number(bits)}
        self.journal.add({"step": step, **line})

    def _bits_per_byte(self, loss: float) -> float:
        return loss / np.log(2) / self.bytes_per_token

    def _write_weights(self, path: Path) -> None:
        with self.leader.all("weights"):
            write(self.trainer.weights(), path)

    # what is shown

    def _show(self, step: int) -> None:
        assert self.read is not None
        shown = {"loss": f"{self.read.loss:.4f}", **self.meter.shown()}
        if self.looks:
            loss = self.looks[-1]["loss"]
            shown["validation perplexity"] = f"{np.exp(loss):.2f}"
            shown["bits per byte"] = f"{self._bits_per_byte(loss):.4f}"
        shown["next"] = self._next(step)
        self.context.show(step, self.train.steps, "steps", shown)

    def _next(self, step: int) -> str:
        if step == self.train.steps:
            return "evaluate"
        machine = self.context.machine
        wait = max(0.0, machine.checkpoint_seconds - (time.monotonic() - self.saved_at))
        saved = f"checkpoint in {wait:.0f} s"
        if (often := machine.checkpoint_steps) and (at := _next_of(step, often)) < self.train.steps:
            saved = f"checkpoint at step {at:,} or in {wait:.0f} s"
        look = _next_of(step, self.train.eval_every)
        then = f"validation at step {look:,}" if look < self.train.steps else "evaluate"
        return f"{saved}, {then}"

    def _tell_events(self) -> None:
        """Say what the trainer had to change on its way, each once."""
        for step, words in self.trainer.events[self.told :]:
            self.context.note(f"step {step:,}: {words}")
        self.told = len(self.trainer.events)

    # checkpoints

    def _checkpoint_due(self, step: int) -> bool:
        machine = self.context.machine
        by_step = machine.checkpoint_steps and step % machine.checkpoint_steps == 0
        by_time = time.monotonic() - self.saved_at >= machine.checkpoint_seconds
        return step < self.train.steps and bool(by_step or by_time)

    def _checkpoint(self) -> None:
        began, out = time.monotonic(), self.context.out
        with self.leader.all("state"):
            write(self._state(), out / "state.safetensors")
        self._write_history(out / "history.json")
        _write_segments(self._all_segments(), out / "segments.json")
        files = [out / name for name in ("state.safetensors", "history.json", "segments.json")]
        if self.looks:
            link(self.best, out / "best.safetensors")
            files.append(out / "best.safetensors")
        for part in self.journal.cut(self.trainer.step):
            link(part, out / part.name)
            files.append(out / part.name)
        self.way_back.here(self.trainer.step, {file.name: file for file in files})
        self.context.checkpoint(self.trainer.step, files)
        self.saved_at = time.monotonic()
        self.context.needs("checkpoint", self.saved_at - began)

    def _state(self) -> dict[str, Tensor]:
        """Everything that a run needs to go on; the learning rate's factor only if there is one."""
        factor = self.trainer.lr_factor
        if factor == 1:
            return self.trainer.state()
        told = {"peak": torch.tensor(factor), "peak_of": torch.tensor(self._rate())}
        return {**self.trainer.state(), **told}

    def _load(self, path: Path) -> None:
        state = Stored(path)
        with self.leader.all("load"):
            self.trainer.load(self.trainer.team.spread(state))
        self.trainer.lr_factor = self._factor(state)

    def _rate(self) -> float:
        return self.train.muon_lr if self.train.optimizer == "muon" else self.train.lr

    def _factor(self, state: Stored) -> float:
        """The share of our learning rate that is the rate with which the checkpoint was made.

        Not more than all of it: whoever adopted the checkpoint may have taken a lower one.
        """
        names = list(state)
        if "peak" not in names:
            return 1.0
        of = state["peak_of"] if "peak_of" in names else torch.tensor(self._rate())
        return min(1.0, (state["peak"] * (of / torch.tensor(self._rate()))).item())

    def _restore(self, files: dict[str, Path]) -> None:
        self._load(files["state.safetensors"])
        history = json.loads(files["history.json"].read_text(encoding="utf-8"))
        self.losses, self.looks = history["losses"], history["validation"]
        if "segments.json" in files:  # older checkpoints have none
            self.segments = json.loads(files["segments.json"].read_text(encoding="utf-8"))
        if self.looks:
            link(files["best.safetensors"], self.best)

    def _write_history(self, path: Path) -> None:
        history = {"losses": self.losses, "validation": self.looks}
        path.write_text(json.dumps(history) + "\n", encoding="utf-8")

    def _all_segments(self) -> list[dict[str, Any]]:
        return [*self.segments, *self.segment.told(self.trainer)]

    # going back

    def _go_back(self, diverged: Diverged) -> None:
        """Undo all steps since a checkpoint; half the learning rate from there on."""
        factor = self.trainer.lr_factor / 2
        if factor < _LEAST:
            raise self._gives_up(diverged) from None
        files = self.way_back.choose(diverged.step, self.train.steps)
        if files:
            self._restore(files)
        elif self.rebuild:
            self.trainer, self.told = self.rebuild(), 0
            self.losses, self.looks, self.segments = [], [], []
        else:
            raise self._gives_up(diverged) from None
        # others may have gone further down before they left what this one goes back to
        factor = min(factor, self.trainer.lr_factor)
        self.trainer.lr_factor, self.late, self.read = factor, None, None
        step = self.trainer.step
        self.context.went_back(step)
        line = {"step": step, "back_from": diverged.step, "loss": number(diverged.loss)}
        returns = self.journal.back(files, {**line, "peak": factor})
        self.meter.restart()
        self.segment = Segment(self.trainer, self.meter, returns)
        self.saved_at = time.monotonic()
        self.context.note(
            f"{diverged.words} at step {diverged.step:,}: back to step {step:,}, and on with "
            f"{factor:g} of the recipe's learning rate"
        )

    def _gives_up(self, diverged: Diverged) -> ValueError:
        share = self.trainer.lr_factor / 2
        lower = [f"--set train.lr={self.train.lr * share:g}"]
        if self.train.optimizer == "muon":
            lower.append(f"--set train.muon_lr={self.train.muon_lr * share:g}")
        tried = f", with {self.trainer.lr_factor:g} of its learning rate" if share < 0.5 else ""
        narrow = (
            "--precision fp32, because float16 may be too narrow here, or " * self.trainer.scaled
        )
        return ValueError(
            f"{diverged.words} at step {diverged.step:,}: the run has diverged{tried}. Take "
            f"{narrow}a lower learning rate, such as {' '.join(lower)}, or a longer train.warmup"
        )

    def _finish(self) -> dict[str, object]:
        out = self.context.out
        self._write_weights(out / "weights.safetensors")
        link(self.best, out / "best.safetensors")
        self._write_history(out / "history.json")
        segments = self._all_segments()
        _write_segments(segments, out / "segments.json")
        self.journal.finish(out / "metrics.jsonl")
        self.best.unlink()
        self.way_back.end()
        model = self.trainer.model
        best = min(self.looks, key=lambda look: look["loss"])
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": self.trainer.step,
            "train_loss": self.losses[-1],
            "validation_loss": self.looks[-1]["loss"],
            "best_step": best["step"],
            "best_validation_loss": best["loss"],
            "tokens_per_second": _mean_speed(segments),
            "device": str(self.trainer.device),
            "precision": type_name(model.compute_dtype),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "segments": segments,
        }


def _next_of(step: int, every: int) -> int:
    """The next step behind this one that is a multiple."""
    return (step // every + 1) * every


def _mean_speed(segments: list[dict[str, Any]]) -> int | None:
    """Tokens a second of a whole run, whoever computed its parts."""
    tokens = sum(each["tokens_per_second"] * each["seconds"] for each in segments)
    seconds = sum(each["seconds"] for each in segments)
    return round(tokens / seconds) if seconds else None


def _write_segments(segments: list[dict[str, Any]], path: Path) -> None:
    path.write_text(json.dumps(segments, indent=1) + "\n", encoding="utf-8")
