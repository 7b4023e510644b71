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
* Only the owner appends ``checkpoint`` and ``result``, always at the position after its own last
  entry. The position is its fencing token: a process that was presumed dead finds that position
  taken by the claim of its successor, raises ``Lost`` and writes nothing more. It cannot do harm
  later, because every later position has been seen, and filled, by somebody who knew of the claim.
* A *result* ends the work; the first one stands. A ``retire`` takes back the entries at the
  positions that it names (their bytes were found damaged), saying why.

An owner that lives rewrites its beat; see beat.py for how others judge it dead.
"""

import contextlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import Lost, StoreError
from pipeline.keys import canonical
from pipeline.store import Store


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
    checkpoints: tuple[Entry, ...]  # oldest first
    result: Entry | None
    record: dict[str, Any] | None  # what the key is the hash of


def fold(entries: list[Entry]) -> State:
    """Read entries, oldest first, into a state."""
    retired = {
        position
        for entry in entries
        if entry.kind == "retire"
        for position in entry.body["positions"]
    }
    owner = result = record = None
    checkpoints = []
    for entry in entries:
        if entry.kind == "claim":
            owner = entry if entry.body["owner"] else None
            record = record or entry.body.get("record")
        elif entry.position in retired:
            continue
        elif entry.kind == "checkpoint":
            checkpoints.append(entry)
        elif entry.kind == "result" and result is None:
            result, owner = entry, None
    return State(tuple(entries), owner, tuple(checkpoints), result, record)


def keys(store: Store) -> list[str]:
    """Every key that has a log."""
    return store.names("log")


def read(store: Store, key: str) -> State:
    """The state of a key's log; an absent log is an empty one.

    Raises StoreError for an entry that is not valid JSON: entries appear whole or not at all, so
    somebody or some disk has changed it.
    """
    entries: list[Entry] = []
    # position by position, because a listing may show a new name and miss an older one
    while (data := store.read(entry_name(key, len(entries)))) is not None:
        try:
            body = json.loads(data)
            entries.append(Entry(len(entries), body["kind"], body))
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"log entry {store.root}/{entry_name(key, len(entries))} is damaged: move the "
                f"folder log/{key} away, and the stage starts anew"
            ) from None
    return fold(entries)


def entry_name(key: str, position: int) -> str:
    """The name of a log entry in a store."""
    return f"log/{key}/{position:010d}"


class Claim:
    """The right to work on a key, held by this process until another claim follows it."""

    def __init__(self, store: Store, key: str, position: int, owner: str) -> None:
        self.store, self.key, self.next, self.owner = store, key, position, owner

    @classmethod
    def take(cls, store: Store, key: str, seen: State, owner: str, body: dict[str, Any]) -> "Claim":
        """Claim the key at the position after what was seen. Raises Lost if others were faster."""
        claim = cls(store, key, len(seen.entries), owner)
        claim.append("claim", {"owner": owner, **body})
        return claim

    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Append one entry. Raises Lost if the position is taken: the key has a new owner."""
        body = {
            "kind": kind,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "nonce": secrets.token_hex(8),
            **body,
        }
        if not self.store.create(entry_name(self.key, self.next), canonical(body)):
            raise Lost(f"{self.key[:12]}: position {self.next} was taken by another process")
        self.next += 1
        return Entry(self.next - 1, kind, body)

    def release(self, why: str) -> None:
        """Give the work up for others to take.

        A claim that is already lost needs no release, and where it cannot be written others see
        that this process is gone.
        """
        with contextlib.suppress(Lost, StoreError):
            self.append("claim", {"owner": None, "why": why})
