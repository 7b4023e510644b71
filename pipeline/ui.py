"""What a person sees of a run: one line that lives on a terminal, plain lines anywhere else."""

import math
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.errors import Interrupted
from pipeline.redact import redacted

if TYPE_CHECKING:
    from rich.live import Live

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


def age(at: str) -> float:
    """Seconds since an entry's time; for people only, no decision rests on it."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()


class Ui:
    """Told by the engine what happens. This one prints plain lines; see ``LiveUi``."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.started = self.printed = time.monotonic()
        self.first: float | None = None  # units done when the rate begins; None: whatever is next
        self.unit: str | None = None  # what is counted; None: whatever is next

    def say(self, text: str) -> None:
        print(redacted(text), file=self.out, flush=True)

    note = say

    def stage_started(self, stage: Any, step: int | None) -> None:
        resumed = f", going on from step {step:,}" if step is not None else ""
        self.say(f"{stage.name}: {stage.summary}{resumed}")
        self._reset()

    def _reset(self) -> None:
        """The rate counts from the first report: what comes before, such as compiling, is no work
        of its kind."""
        self.started = self.printed = time.monotonic()
        self.first = self.unit = None

    def _rate(self, done: float, unit: str) -> float:
        """Units a second; counted anew when something else is counted, or some of it again."""
        now = time.monotonic()
        if self.first is None or unit != (self.unit or unit) or done < self.first:
            self.started, self.first = now, done
        self.unit = unit
        return max(0.0, done - self.first) / max(now - self.started, 1e-9)

    def progress(
        self, stage: str, done: float, total: float | None, unit: str, shown: dict[str, str]
    ) -> None:
        self._rate(done, unit)
        if time.monotonic() - self.printed >= _PLAIN_EVERY or (
            "bits per byte" in shown and done == total
        ):
            self.printed = time.monotonic()
            self.say(f"  {self.line(done, total, unit, shown)}")

    def line(self, done: float, total: float | None, unit: str, shown: dict[str, str]) -> str:
        """``400 of 1,200 steps, 5.1 steps/s, ETA 2:37, loss 3.1`` and so on."""
        rate = self._rate(done, unit)
        if unit == "B":
            amount = human_bytes(done) + (f" of {human_bytes(total)}" if total else "")
            parts = [amount, f"{human_bytes(rate)}/s"]
        else:
            parts = [f"{done:,.0f} of {total:,.0f} {unit}" if total else f"{done:,.0f} {unit}"]
            parts.append(f"{rate:,.1f} {unit}/s")
        if total and rate:
            parts.append(f"ETA {human_seconds((total - done) / rate)}")
        return ", ".join(parts + ([self.details(shown)] if shown else []))

    @staticmethod
    def details(shown: dict[str, str]) -> str:
        """``loss 3.1, 24,000 tokens/s, next: checkpoint in 12 s``."""
        forms = {"tokens/s": "{} tokens/s", "next": "next: {}"}
        return ", ".join(
            forms.get(name, f"{name} {{}}").format(value) for name, value in shown.items()
        )

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
    """A bar with rate and time left, and below it what the stage shows."""

    def __init__(self) -> None:
        super().__init__()
        self.live: Live | None = None

    def say(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(redacted(text), markup=False, highlight=False)
        else:
            super().say(text)

    note = say

    def progress(
        self, stage: str, done: float, total: float | None, unit: str, shown: dict[str, str]
    ) -> None:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        if self.live is None:
            self._open()
        assert self.live is not None
        self.bar.update(
            self.task,
            description=stage,
            completed=done,
            total=total,
            line=self.line(done, total, unit, {}),
        )
        upcoming = {"next": shown["next"]} if "next" in shown else {}
        now = {name: value for name, value in shown.items() if name not in upcoming}
        texts = [Text(self.details(part), style="dim") for part in (now, upcoming) if part]
        # what is too long for the terminal goes on below, as far in
        details = [Padding(text, (0, 0, 0, 2)) for text in texts]
        self.live.update(Group(self.bar, *details))

    def _open(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
        )
        self.task = self.bar.add_task("", line="")
        self.live = Live(self.bar, transient=True, refresh_per_second=8)
        self.live.start()

    def _reset(self) -> None:
        super()._reset()
        self.close()

    def stage_done(self, planned: Any, ran: bool) -> None:
        self.close()

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def while_away(ui: Ui, stopping: Callable[[], bool]) -> Callable[[str], None]:
    """What to do while the store is away: say so once in a while, and stop if asked to."""
    told = -60.0

    def waiting(why: str) -> None:
        nonlocal told
        if stopping():
            raise Interrupted(why)
        if time.monotonic() - told >= 60.0:
            told = time.monotonic()
            ui.note(f"{why}. Trying again (Ctrl-C to stop)")

    return waiting


def choose() -> Ui:
    """A live line on a terminal that can show one, plain lines elsewhere."""
    dumb = os.environ.get("TERM") in (None, "dumb")
    return LiveUi() if sys.stdout.isatty() and not dumb else Ui()
