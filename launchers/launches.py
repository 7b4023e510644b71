"""What a store knows of the launches on it, so that any machine can see to each of them.

    launch/<name>/order              what is to be run, on what, within which limits; never changed
    launch/<name>/event/0000000000   what those who see to it did, created exclusively
    launch/<name>/box/<attempt>      what the box of that attempt says of itself; only it writes it
    launch/<name>/output/<attempt>/0000000000    what it printed, in pieces
    launch/<name>/stop               somebody wants it to stop; the box looks, and so do those
    launch/<name>/watch              who sees to it now, for people
    bundle/<sha256>                  the sources that boxes run

The position of an event is a fencing token, as in the engine's logs: of two processes that see to
one launch only one gets to say ``creating``, the other finds the position taken and reads why.
Nothing in here is a secret.
"""

import contextlib
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.beat import person
from pipeline.engine.log import now, stamp
from pipeline.errors import StoreError
from pipeline.hashing import canonical
from pipeline.redact import redacted_tree
from pipeline.store.store import Store

FORMAT = 1


def new_name(size: str) -> str:
    """``ignite-small-3f9a2c``: short enough for every service's rules, and never twice."""
    return f"ignite-{size}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Order:
    """What was asked for. ``options`` are the target's own, such as its offers' filters."""

    name: str
    target: str
    recipe: dict[str, Any]  # Recipe.tree()
    machine: list[str]  # words for `pipeline run`, such as --micro-batch 8
    bundle: str
    options: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None  # dollars for everything together
    seconds: float | None = None  # from ``at`` until everything must be over
    at: float = field(default_factory=time.time)
    by: str = field(default_factory=person)

    def body(self) -> bytes:
        return canonical({"format": FORMAT, **self.__dict__})

    @classmethod
    def read(cls, data: bytes) -> "Order":
        """Raises ValueError for one of another version."""
        try:
            told = json.loads(data)
            if told.pop("format") == FORMAT:
                return cls(**told)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise ValueError("this launch was ordered by another version of ignite-llm, or is damaged")


@dataclass(frozen=True)
class Event:
    """Something that was done to a launch: see history.py for what may follow what."""

    position: int
    kind: str
    body: dict[str, Any]

    @property
    def attempt(self) -> int:
        return self.body.get("attempt", 0)


class Launch:
    """One launch as its store knows it."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._events: list[Event] = []

    def __repr__(self) -> str:
        return f"Launch({self.name!r})"

    def _at(self, *parts: object) -> str:
        return "/".join(["launch", self.name, *map(str, parts)])

    # the order

    def place(self, order: Order) -> None:
        """Write the order. Raises StoreError if there is another of that name, and ValueError if
        there is a secret in it: everybody who may read the store can read an order."""
        told = json.loads(order.body())
        for name, value in told.items():
            if redacted_tree(value) != value:
                raise ValueError(
                    f"the {name} of launch {self.name} would tell a secret, such as a password or "
                    "a signature in a URL, to whoever can read the store: bring the text into the "
                    "store first (`pipeline run prepare --store ...`), or give it another address"
                )
        if not self.store.create(self._at("order"), order.body()):
            raise StoreError(f"there is a launch {self.name} on {self.store.place} already")

    def order(self) -> Order:
        """Raises ValueError if there is none, or none that can be read."""
        data = self.store.read(self._at("order"))
        if data is None:
            raise ValueError(f"there is no launch {self.name} on {self.store.place}")
        return Order.read(data)

    # events

    def events(self) -> list[Event]:
        """All there are, the oldest first; each is read once."""
        while True:
            position = len(self._events)
            data = self.store.read(self._at("event", f"{position:010d}"))
            if data is None:
                return list(self._events)
            try:
                body = json.loads(data)
                self._events.append(Event(position, str(body["kind"]), body))
            except (ValueError, KeyError, TypeError):
                self._events.append(Event(position, "damaged", {}))

    def append(self, kind: str, **body: Any) -> bool:
        """Say what is done, or about to be, right after all that was read; False if somebody else
        said something first: read it, and think again."""
        position = len(self._events)
        told = {"kind": kind, "by": person(), **stamp(), "seconds": time.time(), **body}
        told = redacted_tree(told)  # errors are told here
        if not self.store.create(self._at("event", f"{position:010d}"), canonical(told)):
            return False
        self._events.append(Event(position, kind, told))
        return True

    # what the box says

    def box(self, attempt: int) -> dict[str, Any]:
        """``state`` (installing, checking, running, ended), ``code`` and ``why`` of the end,
        ``nonce``, which changes while it lives, ``at`` by its clock; empty if it said nothing."""
        try:
            told = json.loads(self.store.read(self._at("box", attempt)) or b"{}")
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    def tell(self, attempt: int, **told: Any) -> None:
        """For the box: what it says of itself now."""
        body = redacted_tree({**stamp(), **told})
        self.store.replace(self._at("box", attempt), canonical(body))

    def print(self, attempt: int, piece: int, data: bytes) -> None:
        """For the box: the next piece of what it printed. The last may be printed again, longer."""
        self.store.replace(self._at("output", attempt, f"{piece:010d}"), data)

    def printed(self, attempt: int, piece: int) -> bytes | None:
        return self.store.read(self._at("output", attempt, f"{piece:010d}"))

    # stopping

    def stop(self, why: str = "", *, limit: bool = False) -> None:
        """Ask for it to stop, wherever it runs; ``limit``: because it has come to one."""
        flag = redacted_tree({"at": now(), "by": person(), "why": why, "limit": limit})
        self.store.replace(self._at("stop"), canonical(flag))

    def stopping(self) -> str | None:
        """Why it is to stop, in words; None if nobody wants it. Any flag counts, also a cut one."""
        flag = self._flag()
        if flag is None or flag.get("limit"):
            return flag and str(flag["why"])
        why = flag.get("why")
        return f"{flag.get('by', 'somebody')} asked for it" + (f": {why}" if why else "")

    def limited(self) -> bool:
        """Is it to stop because a limit is reached?"""
        return bool((self._flag() or {}).get("limit"))

    def _flag(self) -> dict[str, Any] | None:
        data = self.store.read(self._at("stop"))
        if data is None:
            return None
        with contextlib.suppress(ValueError):
            if isinstance(told := json.loads(data), dict):
                return told
        return {}

    # who sees to it

    def watch(self) -> None:
        self.store.replace(self._at("watch"), canonical({"by": person(), "at": now()}))

    def watched(self) -> dict[str, Any]:
        """``by`` and ``at`` of whoever saw to it last; empty if nobody did."""
        with contextlib.suppress(ValueError):
            return json.loads(self.store.read(self._at("watch")) or b"{}")
        return {}


def launches(store: Store) -> list[Launch]:
    """All launches of a store."""
    return [Launch(store, name) for name in store.names("launch")]


def chosen(store: Store, name: str) -> Launch:
    """The launch of that name, or whose name begins so. Raises ValueError that lists them."""
    found = store.names("launch")
    fitting = [each for each in found if each == name] or [
        each for each in found if each.startswith(name) or re.sub(r"^ignite-", "", each) == name
    ]
    if len(fitting) == 1:
        return Launch(store, fitting[0])
    there = f"there are {', '.join(found)}" if found else "there is none"
    why = "several begin so" if fitting else "none is called so"
    raise ValueError(f"launch {name!r} on {store.place}: {why}; {there}")
