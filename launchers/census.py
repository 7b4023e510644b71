"""What there is of launches and of boxes, and what each costs: for `launch ps` and `launch reap`.

A box bills for nothing if no run lives on it: it belongs to an attempt that is no longer in force,
or has been silent for longer than a box may be. One look must decide, so here, and only here, the
age of a box's last word is taken by two clocks that may differ; a few minutes do not matter to a
person who looks. Of a box whose launch is on another store nothing can be told, unless this machine
has started it and so remembers where that is:

    <cache>/launch/NAME.place    the store of the launch NAME
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from launchers.history import History, history
from launchers.judging import Pace
from launchers.launches import Launch, Order, launches
from launchers.target import Box
from pipeline.errors import StoreError
from pipeline.store.disk import Disk
from pipeline.store.places import caches, open_store
from pipeline.store.store import Store
from pipeline.ui import age

_FORGIVEN = 7 * 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Known:
    """A launch of this store, with what it says of itself."""

    launch: Launch
    order: Order
    told: History
    word: dict[str, Any]  # the last of the attempt in force; empty if it said none

    @classmethod
    def of(cls, launch: Launch) -> "Known":
        told = history(launch.events())
        current = told.current
        word = launch.box(current.number) if current is not None else {}
        return cls(launch, launch.order(), told, word)

    def entry(self, boxes: list[Box], now: float) -> dict[str, Any]:
        """As JSON values, with its boxes."""
        attempt = self.told.attempts[-1] if self.told.attempts else None
        over, until = self.told.over, now
        if self.told.current is not None and self.word.get("state") == "ended":
            until = self.told.current.heard(self.word, now)  # nobody has looked since
        idle = "waiting" if attempt and self.told.current is None else "starting"
        return {
            "launch": self.launch.name,
            "target": self.order.target,
            "state": over.body["outcome"] if over else self.word.get("state", idle),
            "attempts": len(self.told.attempts),
            "on": attempt.offer.get("gpu", "") if attempt else "",
            "spent": round(self.told.cost(until), 4),
            "per_hour": sum(box.per_hour for box in boxes),
            "watched": self.launch.watched(),
            "to_stop": self.launch.stopping() if not over else None,
            "boxes": [box_entry(box, self.lives_on(box, now)) for box in boxes],
        }

    def lives_on(self, box: Box, now: float) -> bool:
        """Does the run live on that box, or is it about to?"""
        current, pace = self.told.current, Pace()
        if current is None or box.attempt != current.number or current.id not in (None, box.id):
            return False
        if box.state in ("stopped", "ended") or box.hopeless or self.word.get("state") == "ended":
            return False
        return now - current.begun < pace.boot if not self.word else self.speaks()

    def speaks(self) -> bool:
        """Has its box said something lately, if its clock and this one are right?"""
        try:
            return age(self.word["at"]) < Pace().silent
        except (KeyError, ValueError, TypeError):
            return False


def box_entry(box: Box, lives: bool) -> dict[str, Any]:
    """A box as JSON values."""
    names = ("id", "label", "state", "gpu", "per_hour", "machine", "since", "why")
    return {**{name: getattr(box, name) for name in names}, "live": lives}


def named(box: Box) -> str:
    """A box with what it costs, for people."""
    price = f"${box.per_hour:.3f} an hour" if box.per_hour or box.free else "at an unknown price"
    return f"{box.label or box.id} ({box.id}, {box.gpu} {box.state}), {price}"


def known(store: Store) -> list[Known]:
    """All launches that this version can read, the oldest first."""
    found = []
    for launch in launches(store):
        try:
            found.append(Known.of(launch))
        except ValueError:
            continue
    return sorted(found, key=lambda each: each.order.at)


def blamed(launches_: Iterable[Known], target: str, now: float) -> set[str]:
    """Machines of a target that have failed a launch within a week: hosts are mended, too."""
    recent = (each for each in launches_ if each.order.target == target)
    recent = (each for each in recent if now - each.order.at < _FORGIVEN)
    return set().union(*(each.told.avoid for each in recent))


def remember(launch: Launch) -> None:
    """Note on this machine where a launch keeps its state, so that its boxes are known for its."""
    with contextlib.suppress(StoreError, OSError):
        Disk(caches() / "launch").replace(f"{launch.name}.place", launch.store.place.encode())


def _remembered(name: str) -> Known | None:
    with contextlib.suppress(StoreError, OSError, ValueError):
        if place := Disk(caches() / "launch").read(f"{name}.place"):
            return Known.of(Launch(open_store(place.decode()), name))
    return None


def owners(launched: Iterable[Known], boxes: Iterable[Box]) -> dict[str, Known]:
    """The launches of a store by name, and those on other stores, started here, that have boxes.

    ``launched`` must have been read after the boxes were, or one just begun has boxes too early.
    """
    found = {each.launch.name: each for each in launched}
    for name in {box.launch for box in boxes} - found.keys():
        if re.fullmatch(r"[\w-]+", name) and (other := _remembered(name)) is not None:
            found[name] = other
    return found


class Sorted(NamedTuple):
    """Boxes by what is known of them."""

    live: list[Box]  # a run lives on it
    idle: list[Box]  # it is a launch's that we know, and bills for nothing
    strange: list[Box]  # it is a launch's that we know nothing of


def alive(store: Store, boxes: Iterable[Box], pause: Callable[[], None]) -> set[str]:
    """Ids of boxes that say something during a ``pause``, whatever the clocks tell."""
    before = owners(known(store), boxes)
    hushed = {box.launch for box in boxes} & before.keys()
    hushed = {name for name in hushed if before[name].word and not before[name].speaks()}
    if not hushed:
        return set()
    pause()
    after = owners(known(store), boxes)
    spoke = {name for name in hushed if after[name].word != before[name].word}
    current = {name: after[name].told.current for name in spoke}
    return {
        box.id
        for box in boxes
        if (at := current.get(box.launch)) is not None and at.id == box.id
        if box.state != "stopped"
    }


def sorted_out(by_name: Mapping[str, Known], boxes: Iterable[Box]) -> Sorted:
    """Which boxes bill for nothing, as far as these launches tell."""
    found, now = Sorted([], [], []), time.time()
    for box in boxes:
        owner = by_name.get(box.launch)
        if owner is None:
            found.strange.append(box)
        elif owner.lives_on(box, now):
            found.live.append(box)
        else:
            found.idle.append(box)
    return found
