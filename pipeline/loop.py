"""The training loop with what makes it survive: looks, shows, saves, goes on from what is saved.

A checkpoint holds the trainer's whole state, the history and the best weights. The data position is
not in it: batches are a function of the step. That makes a killed and resumed run end with the same
bytes as an uninterrupted one, on the same kind of device. It is written tensor by tensor, and the
best weights are a file from the moment they were found: memory never holds a second copy.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.evaluate import score
from model.trainer import StepReport, Trainer
from pipeline.checkpoint import Stored, link, write
from pipeline.errors import Interrupted
from pipeline.stage import Context

# a look at the validation split while training reads at most this many tokens of it
_GLANCE = 1 << 16
# nats per token; a blind guess among a million tokens costs 14
_ABSURD = 100.0


class Loop:
    """Steps until the recipe's number of steps; looks, shows and saves on the way."""

    def __init__(
        self, context: Context, trainer: Trainer, validation: np.ndarray, tokens: dict[str, int]
    ) -> None:
        self.context, self.trainer, self.validation = context, trainer, validation
        self.train = context.recipe.train
        self.bytes_per_token = tokens["validation_bytes"] / tokens["validation_tokens"]
        self.losses: list[float] = []
        self.looks: list[dict[str, float]] = []
        # under another name than in a checkpoint, which takes its files away
        self.best = context.out / "best.kept"
        self.saved_at = self.started_at = time.monotonic()
        if context.restored:
            self._restore(context.restored)
        self.started_from = trainer.step

    def run(self) -> dict[str, object]:
        while self.trainer.step < self.train.steps:
            report = self.trainer.run_step()
            self._refuse_divergence(report.loss, report.step)
            self.losses.append(report.loss)
            if report.step % self.train.eval_every == 0 or report.step == self.train.steps:
                self._look(report.step)
            self._show(report)
            if self.context.stopping():
                self._checkpoint()
                raise Interrupted(f"checkpoint written at step {report.step}")
            if self._checkpoint_due(report.step):
                self._checkpoint()
        return self._finish()

    def _refuse_divergence(self, loss: float, step: int) -> None:
        """Stop before anything is saved: the newest checkpoint is from before."""
        if loss < _ABSURD:  # false for NaN as well
            return
        lower = [f"--set train.lr={self.train.lr / 2:g}"]
        if self.train.optimizer == "muon":
            lower.append(f"--set train.muon_lr={self.train.muon_lr / 2:g}")
        raise ValueError(
            f"the loss became {loss:.4g} at step {step:,}: the run has diverged. Take a lower "
            f"learning rate, such as {' '.join(lower)}, or a longer train.warmup"
        )

    def _look(self, step: int) -> None:
        """Score the start of the validation split; remember the weights if they are the best."""
        context = self.trainer.model.config.context
        measured = score(self.trainer.model, self.validation[:_GLANCE], stride=context)
        self._refuse_divergence(measured.loss, step)
        if not self.looks or measured.loss < min(look["loss"] for look in self.looks):
            write(self._weights(), self.best)
        self.looks.append({"step": step, "loss": measured.loss})

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.trainer.model.named_parameters())

    def _show(self, report: StepReport) -> None:
        elapsed = time.monotonic() - self.started_at
        tokens = self.train.batch * self.trainer.model.config.context
        shown = {
            "loss": f"{report.loss:.4f}",
            "tokens/s": f"{(report.step - self.started_from) * tokens / elapsed:,.0f}",
        }
        if self.looks:
            loss = self.looks[-1]["loss"]
            shown["validation perplexity"] = f"{np.exp(loss):.2f}"
            shown["bits per byte"] = f"{loss / np.log(2) / self.bytes_per_token:.4f}"
        shown["next"] = self._next(report.step)
        self.context.show(report.step, self.train.steps, "steps", shown)

    def _next(self, step: int) -> str:
        look = (step // self.train.eval_every + 1) * self.train.eval_every
        wait = self.context.machine.checkpoint_seconds - (time.monotonic() - self.saved_at)
        then = f"validation at step {look}" if look < self.train.steps else "evaluate"
        return f"checkpoint in {max(0, wait):.0f} s, {then}"

    def _checkpoint_due(self, step: int) -> bool:
        machine = self.context.machine
        by_step = machine.checkpoint_steps and step % machine.checkpoint_steps == 0
        by_time = time.monotonic() - self.saved_at >= machine.checkpoint_seconds
        return step < self.train.steps and bool(by_step or by_time)

    def _checkpoint(self) -> None:
        out = self.context.out
        write(self.trainer.state(), out / "state.safetensors")
        self._write_history(out / "history.json")
        files = [out / "state.safetensors", out / "history.json"]
        if self.looks:
            link(self.best, out / "best.safetensors")
            files.append(out / "best.safetensors")
        self.context.checkpoint(self.trainer.step, files)
        self.saved_at = time.monotonic()

    def _restore(self, files: dict[str, Path]) -> None:
        self.trainer.load(Stored(files["state.safetensors"]))
        history = json.loads(files["history.json"].read_text(encoding="utf-8"))
        self.losses, self.looks = history["losses"], history["validation"]
        if "best.safetensors" in files:
            link(files["best.safetensors"], self.best)

    def _write_history(self, path: Path) -> None:
        history = {"losses": self.losses, "validation": self.looks}
        path.write_text(json.dumps(history) + "\n", encoding="utf-8")

    def _finish(self) -> dict[str, object]:
        out = self.context.out
        write(self._weights(), out / "weights.safetensors")
        link(self.best, out / "best.safetensors")
        self.best.unlink()
        self._write_history(out / "history.json")
        model, elapsed = self.trainer.model, time.monotonic() - self.started_at
        steps = self.trainer.step - self.started_from
        tokens = self.train.batch * model.config.context
        best = min(self.looks, key=lambda look: look["loss"])
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": self.trainer.step,
            "train_loss": self.losses[-1],
            "validation_loss": self.looks[-1]["loss"],
            "best_step": best["step"],
            "best_validation_loss": best["loss"],
            "tokens_per_second": round(steps * tokens / elapsed) if steps else None,
            "device": str(self.trainer.device),
            "precision": str(model.compute_dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
