"""The log of a key: who worked on it, how far they came, and what came out.

    log/<key>/0000000000    {"kind": "claim", "owner": "...", "record": {...}, ...}
    log/<key>/0000000001    {"kind": "checkpoint", "step": 400, "files": {...}}
    log/<key>/0000000002    {"kind": "result", "files": {...}, "metrics": {...}}

The protocol, in full:

* An entry is one JSON object, created exclusively and never changed or deleted. Each holds a random
  nonce, so that no two are the same bytes by accident and a lost answer is told from a lost race.
* A *claim* names the process that works on the key from here on. Whoever wants to work appends one
  at the next free position; of any number of processes exactly one gets it. A claim without owner
  is a release: the work is up for taking.
* Only the owner appends other entries, always at the position after its own last one. The position
  is its fencing token: a process that was presumed dead finds that position taken by the claim of
  its successor, raises ``Lost`` and writes nothing more. It cannot do harm later, because every
  later position has been seen, and filled, by somebody who knew of the claim.
* A *checkpoint* is a state to go on from, instead of those behind ``back_to`` if it says that the
  stage went back there; an *adopt* is one that was made under another key. A
  *result* ends the work, as does a *same*, the result of another key that a person declared to be
  just as good; the first of them stands. A *retire* takes back the entries at the positions that it
  names (their bytes were damaged, say), with a reason.
* An entry that cannot be read as JSON holds its position and says nothing.

An owner that lives rewrites its beat; see beat.py for how others judge it dead.
"""

import contextlib
import json
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import Lost, StoreError
from pipeline.hashing import canonical
from pipeline.redact import redacted
from pipeline.store.store import Store

KEEP = 2
PARTIAL = ("checkpoint", "adopt")  # kinds of entries that name a state to go on from
_AT_ONCE = 256  # entries of one request to the store
_FIELDS = {  # without these an entry is damaged, whatever else it says
    "claim": ("owner",),
    "checkpoint": ("step", "files"),
    "adopt": ("step", "files"),
    "result": ("files",),
    "same": ("files",),
    "retire": ("positions",),
}


@dataclass(frozen=True)
class Entry:
    """One entry of a log; ``body`` is its JSON object."""

    position: int
    kind: str
    body: dict[str, Any]

    @property
    def digests(self) -> dict[str, int]:
        """Blob -> size, of the files that this entry names."""
        return {item["digest"]: item["size"] for item in self.body.get("files", {}).values()}


@dataclass(frozen=True)
class State:
    """What a log says as a whole."""

    entries: tuple[Entry, ...]
    owner: Entry | None  # the claim in force; it says nothing about whether its process lives
    checkpoints: tuple[Entry, ...]  # those to go on from, oldest first: what keep leaves of them
    result: Entry | None
    record: dict[str, Any] | None  # what the key is the hash of

    @property
    def stage(self) -> str:
        """Whose log it is, as far as its first claim can be read."""
        return (self.record or {}).get("stage", "a stage")

    @property
    def failure(self) -> str | None:
        """Why the last one to work on it has failed; None if nobody has, or somebody works now."""
        last = next((e for e in reversed(self.entries) if e.kind == "claim"), None)
        failed = self.owner is None and last is not None and last.body.get("failed")
        return last.body["why"] if failed else None

    @property
    def needed(self) -> set[str]:
        """The blobs that must stay: the result's or, before there is one, those to go on from.

        Two checkpoints at least, so that a damaged one costs an interval and not the run. The best
        weights so far are a file of every checkpoint.
        """
        if self.result is not None:
            return set(self.result.digests)
        return {blob for entry in self.checkpoints for blob in entry.digests}


def fold(entries: list[Entry]) -> State:
    """Read entries, oldest first, into a state.

    A checkpoint that newer ones have replaced does not come back when those are retired: its bytes
    went when it was replaced.
    """
    retired = {
        position
        for entry in entries
        if entry.kind == "retire"
        for position in entry.body["positions"]
    }
    owner = result = record = None
    checkpoints, keep = list[Entry](), KEEP
    for entry in entries:
        if entry.kind == "claim":
            owner = entry if entry.body["owner"] else None
            record = record or entry.body.get("record")
            keep = entry.body.get("machine", {}).get("keep", keep)
        elif entry.kind in PARTIAL:
            checkpoints = [*still_good(checkpoints, entry.body), entry][-keep:]
        elif entry.kind == "retire":
            gone = entry.body["positions"]
            checkpoints = [each for each in checkpoints if each.position not in gone]
        elif entry.kind in ("result", "same") and not (result or entry.position in retired):
            result, owner = entry, None
    return State(tuple(entries), owner, tuple(checkpoints), result, record)


def still_good(checkpoints: Iterable[Entry], body: dict[str, Any]) -> list[Entry]:
    """Those that are to be gone on from beside a new one: so its steps are the highest always."""
    back_to = body.get("back_to", math.inf)
    return [each for each in checkpoints if each.body["step"] <= back_to]


def keys(store: Store) -> list[str]:
    """Every key that has a log."""
    return store.names("log")


def read(store: Store, key: str) -> State:
    """The state of a key's log; an absent log is an empty one.

    Entries never change, so each is read once a process, but for damaged ones. A listing only says
    how many to ask for at once: it may miss some, and the log ends where a position is empty.
    """
    entries = [
        entry if entry.kind != "damaged" else _parse(store, key, entry.position, None)
        for entry in store.known.get(key, ())
    ]
    listed = len(store.names(f"log/{key}"))
    while True:
        ahead = range(len(entries), max(min(listed, len(entries) + _AT_ONCE), len(entries)) + 1)
        for position, data in zip(ahead, store.read_many([entry_name(key, at) for at in ahead])):
            if data is None:
                store.known[key] = tuple(entries)
                return fold(entries)
            entries.append(_parse(store, key, position, data))
        store.known[key] = tuple(entries)


def _parse(store: Store, key: str, position: int, data: bytes | None) -> Entry:
    for again in (False, True):
        if again:  # the bytes may have been cut on their way only
            data = store.read(entry_name(key, position))
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(data or b"")
            if all(name in body for name in _FIELDS.get(body["kind"], ())):
                return Entry(position, body["kind"], body)
    return Entry(position, "damaged", {"at": "1970-01-01T00:00:00+00:00"})


def entry_name(key: str, position: int) -> str:
    """The name of a log entry in a store."""
    return f"log/{key}/{position:010d}"


def now() -> str:
    """The time for people to read; no decision rests on it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def stamp() -> dict[str, str]:
    """What makes an entry the only one of its kind. One that may be appended twice brings its own,
    so that the second time finds the first."""
    return {"at": now(), "nonce": secrets.token_hex(8)}


class Claim:
    """The right to work on a key, held by this process until another claim follows it."""

    def __init__(self, store: Store, key: str, position: int, owner: str) -> None:
        self.store, self.key, self.next, self.owner = store, key, position, owner
        self._unsettled: list[bytes] = []  # attempts of which we do not know the outcome

    @classmethod
    def take(cls, store: Store, key: str, seen: State, owner: str, body: dict[str, Any]) -> "Claim":
        """Claim the key at the position after what was seen. Raises Lost if others were faster."""
        claim = cls(store, key, len(seen.entries), owner)
        claim.append("claim", {"owner": owner, **body})
        return claim

    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Append one entry. Raises Lost if the position is taken: the key has a new owner.

        After a StoreError the entry may be there or not; the next call finds out.
        """
        words = {name: redacted(body[name]) for name in ("why", "because") if name in body}
        body = {"kind": kind, "by": self.owner, **stamp(), **body, **words}
        while not self._create(canonical(body)):
            if self.store.read(entry_name(self.key, self.next)) not in self._unsettled:
                raise Lost(f"{self.key[:12]}: position {self.next} was taken by another process")
            self.next += 1  # by an earlier attempt of ours that was reported as failed
        self.next += 1
        return Entry(self.next - 1, kind, body)

    def copy(self, data: bytes) -> None:
        """Append an entry of another store's log of this key as it stands there."""
        if not self._create(data):
            raise Lost(f"{self.key[:12]}: position {self.next} was taken by another process")
        self.next += 1

    def _create(self, data: bytes) -> bool:
        try:
            return self.store.create(entry_name(self.key, self.next), data)
        except StoreError:
            self._unsettled.append(data)
            raise

    def release(self, why: str, failed: bool = False) -> bool:
        """Give the work up for others to take. False if somebody has it already.

        A claim that is lost needs no release, and where it cannot be written others see that this
        process is gone.
        """
        with contextlib.suppress(StoreError):
            try:
                told = {"failed": True} if failed else {}
                self.append("claim", {"owner": None, "why": why, **told})
            except Lost:
                return False
        return True
