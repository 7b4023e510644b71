"""When a run must stop, and why: a signal, a request from elsewhere, or the end of its time.

A process whose time is given (``--stop-after``) must be gone when it is over, so it stops as much
earlier as ending takes: the longest step so far, after which it looks again, the longest
checkpoint, and the longest time in which one reached the store. None of it is known before it was
measured once.
"""

import math
import time
from collections.abc import Callable


class Stopping:
    """Asked by the work, again and again, whether to stop; ``why`` is said behind "stopped"."""

    def __init__(
        self, signalled: Callable[[], bool], seconds: float = math.inf, over: str = ""
    ) -> None:
        """``seconds`` from now on are all the time there is; ``over`` is why when they are over."""
        self.signalled, self.end = signalled, time.monotonic() + seconds
        self.over, self.why = over, ""
        self.longest: dict[str, float] = {}  # seconds that each part of ending took

    @classmethod
    def of(cls, stopping: Callable[[], bool]) -> "Stopping":
        """The same, if it is one, or else one that knows of nothing but ``stopping``."""
        return stopping if isinstance(stopping, cls) else cls(stopping)

    def __call__(self) -> bool:
        if not self.why and time.monotonic() + sum(self.longest.values()) >= self.end:
            self.why = self.over
        return bool(self.why) or self.signalled()

    def ask(self, why: str) -> None:
        """Stop for a reason that comes from elsewhere; the first reason stands."""
        self.why = self.why or why

    def needs(self, part: str, seconds: float) -> None:
        """Ending takes this long, in addition to its other parts."""
        self.longest[part] = max(self.longest.get(part, 0.0), seconds)
