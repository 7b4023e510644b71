"""What is heard of a box that does not speak through the store: not yet, or never.

The last line that it prints, and how long it has been as it is, are signs of life for whoever
waits. The last few lines may say why it is gone, when it is, and then nobody can ask any more.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from launchers.judging import Judge
from launchers.target import Away, Box, Refused
from pipeline.ui import human_seconds

_TAIL = 4  # lines
_OFTEN, _SELDOM = 60.0, 1800.0  # seconds between signs of life, of a box that will or cannot speak


class Ear:
    """Listens for a keeper. ``output`` is the target's; ``once`` says a line if it is a new one."""

    def __init__(
        self, output: Callable[[Box], str], judge: Judge, once: Callable[[str], None]
    ) -> None:
        self.output, self.judge, self.once = output, judge, once
        self._label, self._lines = "", list[str]()  # of a box, and what it printed last

    def listen(self, seen: Box, word: dict[str, Any]) -> None:
        """Say what there is to be said of a box, unless it has said a ``word`` itself."""
        if word:
            return
        if seen.state == "running" and self.judge.due("listen", seldom=seen.mute):
            with contextlib.suppress(Away, Refused):
                lines = self.output(seen).strip().splitlines()[-_TAIL:]
                self._label, self._lines = seen.label, lines
                if lines:
                    self.once(f"attempt {seen.attempt} prints: {lines[-1]}")
        every = _SELDOM if seen.mute else _OFTEN
        if times := int(self.judge.lasted("wait", seen.id) / every):
            why = f" ({seen.why[:100]})" if seen.why else ""
            lasts = human_seconds(times * every)
            self.once(f"attempt {seen.attempt}: {seen.state} for {lasts}{why}")

    def last(self, label: str) -> str:
        """What the box of that label printed last, to go behind why it is gone."""
        if label != self._label or not self._lines:
            return ""
        return ". The last that it printed: " + " | ".join(self._lines)
