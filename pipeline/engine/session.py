"""What a process was told that works on stages, and by whom it is watched."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import Interrupted
from pipeline.machine import Machine
from pipeline.stage import Stage
from pipeline.ui import Ui


@dataclass(frozen=True)
class Session:
    """What this process was told: its machine, who watches, and whether somebody asked to stop."""

    machine: Machine
    ui: Ui
    stopping: Callable[[], bool]

    def counting(
        self, stage: Stage, show: Callable[..., None] | None = None
    ) -> Callable[[int], None]:
        """A report of bytes that arrive for a stage; it ends them if somebody asks to stop."""
        show = show or functools.partial(self.ui.progress, stage.name)
        have, turn = 0, threading.Lock()

        def report(count: int) -> None:  # several threads fetch
            nonlocal have
            if self.stopping():
                raise Interrupted("what was fetched is kept")
            with turn:
                have += count
                show(have, None, "B", {"doing": "fetching"})

        return report
