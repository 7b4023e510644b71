"""What the events of a launch say together: its attempts, what each cost, and how it ended.

    creating   {attempt, offer, limit, time}  about to ask for a box, under a label of its own
    created    {attempt, id}                  the box that came of it
    left       {attempt, why, code, ...}      it is of no use any more: to be destroyed
    over       {outcome, why}                 nothing follows; finished, stopped, failed

``time`` is how many seconds the box has, and ``limit`` what they are up to: session, deadline or
budget. ``avoid`` names a machine that was to blame, ``trained`` says that the box came to train,
``unsure`` that one may yet appear, because an answer was lost. ``until`` is when the box was heard
last, if it was gone before anybody looked: it has billed no longer.

An attempt is in force from its ``creating`` to its ``left``. Whatever box of the launch is not that
of the attempt in force is to be destroyed, whoever made it: that one rule tidies up after creates
that were carried out twice, clients that died, and boxes that came back.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from launchers.judging import NOT_ALLOWED, UNHEALTHY
from launchers.launches import Event
from pipeline.cli.process import EXIT_INTERRUPTED

_NEARLY = 0.9  # of its time, from when a box ends by itself: it leaves some for saving
EXPLAINED = (None, 0, EXIT_INTERRUPTED, UNHEALTHY, NOT_ALLOWED)  # exit codes, None if it has none
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass
class Attempt:
    """One box that was asked for, and what became of it. Times are seconds since 1970."""

    number: int
    begun: float
    offer: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    ended: float | None = None
    limit: str | None = None
    time: float | None = None  # seconds that the box has
    code: int | None = None
    why: str = ""
    unsure: bool = False
    trained: bool = False

    @property
    def failed(self) -> bool:
        """Did it end by itself, in a way that nobody can explain?"""
        return self.ended is not None and self.code not in EXPLAINED

    @property
    def per_hour(self) -> float:
        return self.offer.get("per_hour", 0.0)

    def heard(self, word: dict[str, Any], now: float) -> float:
        """When its box was heard last: of one that is gone nobody knows more. Its clock may be
        another, so it is no time before the attempt or after ``now``."""
        try:
            said = datetime.fromisoformat(word["at"]).timestamp()
        except (KeyError, TypeError, ValueError):
            return now
        return min(now, max(self.begun, said))

    def used_up(self, ended: float) -> bool:
        """Was its time over? One that ends before was told to, by its host for one."""
        return self.time is not None and ended - self.begun >= _NEARLY * self.time

    def cost(self, now: float) -> float:
        """Dollars, as far as the price by the hour tells, until ``now`` or its end."""
        if self.id is None and self.ended is not None:
            return 0.0  # there never was a box
        return self.per_hour * max(0.0, (self.ended or now) - self.begun) / 3600


@dataclass
class History:
    """All attempts, oldest first; ``over`` is the event that ended the launch."""

    attempts: list[Attempt] = field(default_factory=list)
    over: Event | None = None
    avoid: set[str] = field(default_factory=set)  # machines that failed us

    @property
    def current(self) -> Attempt | None:
        """The attempt in force."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.ended is None and self.over is None else None

    @property
    def barren(self) -> int:
        """How many boxes in a row, up to the last, have not come to train."""
        fruitless = (not each.trained for each in reversed(self.attempts) if each.id is not None)
        return sum(1 for _ in itertools.takewhile(bool, fruitless))

    def cost(self, now: float) -> float:
        return sum(attempt.cost(now) for attempt in self.attempts)


def history(events: Iterable[Event]) -> History:
    """Read events, oldest first."""
    told = History()
    by_number: dict[int, Attempt] = {}
    for event in events:
        body, number = event.body, event.attempt
        if event.kind in ("creating", "created") and number not in by_number:
            attempt = Attempt(number, body["seconds"], body.get("offer", {}))
            attempt.limit, attempt.time = body.get("limit"), body.get("time")
            by_number[number] = attempt
            told.attempts.append(attempt)
        attempt = by_number.get(number)
        if event.kind == "created" and attempt is not None:
            attempt.id = str(body["id"])
        elif event.kind == "left" and attempt is not None:
            attempt.ended = body.get("until") or body["seconds"]
            attempt.code = body.get("code")
            attempt.why, attempt.unsure = body.get("why", ""), body.get("unsure", False)
            attempt.trained = body.get("trained", False)
            if body.get("avoid"):
                told.avoid.add(str(body["avoid"]))
        elif event.kind == "over" and told.over is None:
            told.over = event
    return told
