"""Is a box worth waiting for? Judged by how long something has been so, by this process's clock.

No two clocks are compared: what counts is since when this process has seen a thing unchanged. A
keeper that starts anew is patient anew, which costs minutes at most.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from launchers.target import Box
from pipeline.ui import human_seconds

UNHEALTHY = 69  # sysexits.h EX_UNAVAILABLE: a box that is not worth training on ends with it
NOT_ALLOWED = 77  # EX_NOPERM: a person must allow something first, and nothing is wrong


@dataclass(frozen=True)
class Pace:
    """Seconds, but for ``failures`` and ``barren``."""

    look: float = 15.0  # between two looks
    settle: float = 60.0  # until a box that was asked for shows in the service's list, if at all
    boot: float = 900.0  # from when it is made until it says its first word
    silent: float = 300.0  # of a box that has said something
    away: float = 300.0  # that a service may call a box offline
    leaving: float = 900.0  # from being asked to stop until it is destroyed anyway
    dry: float = 60.0  # between two looks at a market that has nothing
    answer: float = 60.0  # until a service's answer is no longer waited for
    failures: int = 3  # boxes that may end in a way that nobody can explain
    barren: int = 5  # boxes in a row that may go before they train: it may not be their fault


def pace() -> Pace:
    """As above, or that share of it which IGNITE_PACE says: tests have less time than services."""
    share = float(os.environ.get("IGNITE_PACE", 1.0))
    times = {item.name: share * item.default for item in fields(Pace) if item.type is float}
    return Pace(**times)


class Judge:
    """Remembers since when things have been as they are."""

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self.pace, self.clock = pace, clock
        self._since: dict[tuple[Any, ...], float] = {}
        self._heard: dict[int, str] = {}

    def lasted(self, *what: Any) -> float:
        """Seconds since this was first asked of it; 0 the first time, or after ``forget``."""
        return self.clock() - self._since.setdefault(what, self.clock())

    def began(self, *what: Any) -> bool:
        return what in self._since

    def forget(self, *what: Any) -> None:
        self._since.pop(what, None)

    def due(self, what: str, *, seldom: bool) -> bool:
        """Now, or, of what costs a service much, if a while has passed since the last time."""
        if seldom and self.began(what) and self.lasted(what) < self.pace.dry:
            return False
        self.forget(what)
        self.lasted(what)
        return True

    def unfit(self, number: int, seen: Box, word: dict[str, Any]) -> str | None:
        """Why nothing is to be hoped any more of the box of an attempt; None if it is all right.

        ``seen`` is what the service says of it, ``word`` what it says itself.
        """
        if seen.hopeless:
            return f"it cannot start: {seen.why}"
        if seen.state == "stopped":
            return "it was taken away: " + (seen.why or "somebody bids more")
        if seen.state != "away":
            self.forget("away", number)
        elif self.lasted("away", number) > self.pace.away:
            return f"it is offline: {seen.why or 'the service cannot reach it'}"
        if seen.mute:
            return None
        if not word:
            if self.lasted("boot", number) > self.pace.boot:
                within = human_seconds(self.pace.boot)
                return f"it has not booted within {within} ({seen.why or seen.state})"
            return None
        if self._heard.get(number) != word.get("nonce"):
            self._heard[number] = word.get("nonce", "")
            self.forget("silent", number)
        if self.lasted("silent", number) > self.pace.silent:
            return f"it has said nothing for {human_seconds(self.pace.silent)}"
        return None
