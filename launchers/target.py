"""What the lifecycle asks of a place that lends machines: six calls, and three kinds of failure.

Everything that is hard (retries that must not rent twice, replacing what is lost, limits of money
and time, tidying up) is built on these calls in lifecycle.py and not inside them, so that a new
place is a short file. Each call is one try: it is the lifecycle that repeats.

A *box* is a machine that was lent to us. Its *label* is ``NAME/ATTEMPT``: the name of the launch
and the number of the attempt, which no two attempts share, so that boxes can be told apart, and
found, by whoever knows the name.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol


class Away(ValueError):
    """The service cannot be reached or is too busy; the same call may succeed later.

    After a call that makes or destroys something, nobody knows whether it was carried out.
    """


class Refused(ValueError):
    """The service said no, and nothing was made; the message says what a person can do.

    ``offer_gone``: only this offer is no longer to be had; another one may be.
    """

    def __init__(self, message: str, *, offer_gone: bool = False) -> None:
        super().__init__(message)
        self.offer_gone = offer_gone


class Spoiled(ValueError):
    """The service said no, and yet made a box (``id``), which bills: it must be destroyed."""

    def __init__(self, message: str, id: str) -> None:
        super().__init__(message)
        self.id = id


@dataclass(frozen=True)
class Offer:
    """A machine that could be had, and what it would cost."""

    id: str
    machine: str  # the hardware behind it: two offers may be of one machine that failed us
    gpu: str  # as the service names it: "RTX 4090"
    gpus: int
    per_hour: float  # dollars while it runs, with its disk
    idle_per_hour: float = 0.0  # dollars while it is stopped and not destroyed
    hours: float | None = None  # that the run is estimated to take there; None: nobody can tell
    total: float | None = None  # dollars for all of it: GPU, disk and traffic
    facts: dict[str, Any] = field(default_factory=dict)  # what else is worth a column or a record

    @property
    def price(self) -> str:
        """``$0.312 an hour, about $1.90 in all``, or that it is free."""
        if not self.per_hour:
            return "free of charge"
        total = f", about ${self.total:.2f} in all" if self.total is not None else ""
        return f"${self.per_hour:.3f} an hour{total}"


@dataclass(frozen=True)
class Box:
    """A machine of ours as the service sees it now."""

    id: str
    label: str  # NAME/ATTEMPT; of others' boxes whatever it is
    state: str  # starting, running, stopped, ended, away
    per_hour: float  # dollars that it costs now, in this state
    machine: str = ""
    gpu: str = ""
    since: float | None = None  # seconds since 1970 by the service's clock
    why: str = ""  # what the service says of it
    hopeless: bool = False  # it will not get any further by itself: do not wait
    free: bool = False  # whatever it does; else what has no price counts as billed
    mute: bool = False  # nothing is heard of it, and it hears nothing, before its state changes

    @property
    def launch(self) -> str:
        return self.label.rpartition("/")[0]

    @property
    def attempt(self) -> int | None:
        number = self.label.rpartition("/")[2]
        return int(number) if number.isdigit() else None


@dataclass(frozen=True)
class Errand:
    """What one box is told. It holds no secret: those go with ``Target.create`` alone."""

    name: str  # of the launch
    attempt: int
    store: str  # place of the store; nothing if it must be the box's own disk
    bundle: str  # sha256
    seconds: float | None  # the box must have ended and be gone after so many; None: no limit

    @property
    def label(self) -> str:
        return f"{self.name}/{self.attempt}"


class Target(Protocol):
    """A place that lends machines."""

    name: str  # vast, kaggle
    session: float | None  # seconds that a box may live at most, whatever is paid

    def offers(self, avoid: Collection[str]) -> list[Offer]:
        """What could be had now, the best first; none on the machines in ``avoid``.

        Raises Refused if there is nothing, which says what the nearest miss was.
        """

    def create(self, errand: Errand, offer: Offer) -> str:
        """Ask for a box that does the errand; its id. Raises Refused, Spoiled, or Away."""

    def boxes(self) -> list[Box]:
        """All boxes of ours, of whatever launch. Raises Away."""

    def destroy(self, id: str) -> None:
        """Ask for a box to be destroyed; one that is gone is no error. Raises Away, Refused.

        What the service says may not be so: it is ``boxes`` that tells whether it is gone.
        """

    def output(self, box: Box) -> str:
        """The end of what the box printed, as far as the service tells. Raises Away."""

    def collect(self, box: Box) -> None:
        """Bring what lies with the service alone into the store, after the box has ended."""
