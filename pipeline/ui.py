"""What a person sees of a run: one line that lives on a terminal, plain lines anywhere else."""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.errors import Interrupted

if TYPE_CHECKING:
    from rich.progress import Progress

_PLAIN_EVERY = 10.0  # seconds between plain progress lines


def human_bytes(count: float) -> str:
    """A number of bytes as people read it: 12 B, 3.4 MiB."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(4, int(math.log2(count) // 10))
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def human_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _amount(count: float, unit: str) -> str:
    return human_bytes(count) if unit == "B" else f"{count:,.0f} {unit}"


class Ui:
    """Told by the engine what happens. This one prints plain lines; see ``LiveUi``."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self.out = out
        self.started = self.printed = time.monotonic()
        self.first = 0.0  # units that were done when this process began to count

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    note = say

    def stage_started(self, stage: Any, step: int | None) -> None:
        resumed = f", going on from step {step:,}" if step is not None else ""
        self.say(f"{stage.name}: {stage.summary}{resumed}")
        self._reset(step or 0)

    def _reset(self, first: float = 0.0) -> None:
        self.started = self.printed = time.monotonic()
        self.first = first

    def progress(
        self, stage: str, done: float, total: float | None, unit: str, shown: dict[str, str]
    ) -> None:
        if time.monotonic() - self.printed >= _PLAIN_EVERY or (
            "bits per byte" in shown and done == total
        ):
            self.printed = time.monotonic()
            self.say(f"  {self.line(done, total, unit, shown)}")

    def line(self, done: float, total: float | None, unit: str, shown: dict[str, str]) -> str:
        """``steps 400/1,200, 5.1 steps/s, ETA 2:37, loss 3.1`` and so on."""
        rate = (done - self.first) / max(time.monotonic() - self.started, 1e-9)
        parts = [_amount(done, unit) + (f" of {_amount(total, unit)}" if total else "")]
        parts.append(f"{human_bytes(rate)}/s" if unit == "B" else f"{rate:,.1f} {unit}/s")
        if total and rate:
            parts.append(f"ETA {human_seconds((total - done) / rate)}")
        parts += [
            f"{name} {value}" if name != "tokens/s" else f"{value} tokens/s"
            for name, value in shown.items()
        ]
        return ", ".join(parts)

    def stage_done(self, planned: Any, ran: bool) -> None:
        """A stage has a result; ``ran`` says whether it was made just now."""

    def following(self, stage: str, owner: Any) -> None:
        who = owner.body["owner"]
        self.say(
            f"{stage}: {who} works on it since {owner.body['at']}; following it "
            "(Ctrl-C leaves it running)"
        )
        self._reset()

    def other_progress(self, stage: str, progress: dict[str, Any]) -> None:
        if "done" in progress:
            shown = {k: v for k, v in progress.items() if k not in ("done", "total", "unit")}
            self.progress(stage, progress["done"], progress["total"], progress["unit"], shown)

    def fetching(
        self, stage: str, stopping: Callable[[], bool]
    ) -> Callable[[int, int | None, str], None]:
        """Progress of a download that comes before the stage."""

        def progress(done: int, total: int | None, unit: str) -> None:
            if stopping():
                raise Interrupted("the download goes on where it stopped")
            self.progress(stage, done, total, unit, {"doing": "downloading"})

        return progress

    def close(self) -> None:
        """Leave the terminal as it was."""


class LiveUi(Ui):
    """A bar with rate and time left, and a line below it with what the stage shows."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            super().say(text)

    note = say

    def progress(
        self, stage: str, done: float, total: float | None, unit: str, shown: dict[str, str]
    ) -> None:
        if self.bar is None:
            self._open()
        assert self.bar is not None
        line = self.line(done, total, unit, shown)
        self.bar.update(self.task, description=stage, completed=done, total=total, line=line)

    def _open(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
            transient=True,
        )
        self.task = self.bar.add_task("", line="")
        self.bar.start()

    def _reset(self, first: float = 0.0) -> None:
        super()._reset(first)
        self.close()

    def stage_done(self, planned: Any, ran: bool) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def choose(out: TextIO = sys.stdout) -> Ui:
    """A live line on a terminal that can show one, plain lines elsewhere."""
    dumb = os.environ.get("TERM") in (None, "dumb")
    return LiveUi() if out.isatty() and not dumb else Ui(out)
