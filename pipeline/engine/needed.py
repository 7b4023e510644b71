"""What a store holds, and which of its blobs must stay.

Of every log those that log.py calls needed. A log that cannot be read whole (an entry is damaged or
gone, or of a later version) keeps every blob that it still names: what it would say is unknown.

Cost: three requests for each key, less what this process has read before.
"""

import itertools
import json
import re
from collections.abc import Callable
from contextlib import suppress

from pipeline.engine import log
from pipeline.engine.log import Entry, State
from pipeline.store.store import Store

# entries of which we know what they do to those before them
KINDS = {"claim", "checkpoint", "adopt", "result", "same", "retire"}

Progress = Callable[[int, int, str], None]  # done, total, unit; told by several threads


def untold(done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def needed_by(store: Store, progress: Progress = untold) -> dict[str, set[str]]:
    """Key -> the blobs that must stay because of its log, from all logs as they are now."""
    keys, done = log.keys(store), itertools.count(1)

    def one(key: str) -> set[str]:
        found = _needed(store, key)
        progress(next(done), len(keys), "logs")
        return found

    return dict(zip(keys, store.side_by_side(one, keys)))


def _needed(store: Store, key: str) -> set[str]:
    listed = positions(store, key)  # before the log is read, so that what it lacks is a gap
    state = log.read(store, key)
    behind = [position for position in listed if position >= len(state.entries)]
    if not behind and readable(state):
        return state.needed
    named = {blob for entry in state.entries for blob in entry.digests}
    return named | {blob for position in behind for blob in _named(store, key, position)}


def readable(state: State) -> bool:
    """Do we know what each entry says?"""
    return all(entry.kind in KINDS for entry in state.entries)


def positions(store: Store, key: str) -> list[int]:
    """The positions that a listing of a log shows."""
    return [int(name) for name in store.names(f"log/{key}") if re.fullmatch(r"\d{10}", name)]


def _named(store: Store, key: str, position: int) -> dict[str, int]:
    """The blobs of an entry behind a gap, where no reader of the log arrives."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        body = json.loads(store.read(log.entry_name(key, position)) or b"")
        return Entry(position, body["kind"], body).digests
    return {}


def all_blobs(store: Store) -> list[str]:
    """The blobs that the store lists; what others put between them is not ours."""
    return [name for name in store.blobs() if re.fullmatch("[0-9a-f]{64}", name)]
