"""What a store holds, and which of its blobs must stay.

Of every log those that log.py calls needed. A log that cannot be read whole (an entry is damaged or
gone, or of a later version) keeps every blob that it still names: what it would say is unknown. An
entry that cannot be read may name any blob that no other entry names, so while something hangs on
it (``Unreadable``) all of those stay.

Cost: three requests for each key, less what this process has read before.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from pipeline.engine import log
from pipeline.engine.log import Entry, State
from pipeline.store.store import Store

# entries of which we know what they do to those before them
KINDS = {"claim", "checkpoint", "adopt", "result", "same", "retire"}

Progress = Callable[[int, int, str], None]  # done, total, unit; told by several threads


@dataclass(frozen=True)
class Unreadable:
    """An entry that is damaged, or the first of a log that is gone though there are later ones."""

    key: str
    position: int
    stage: str
    gone: bool
    settled: bool  # nothing hangs on it: the key has a result, or an entry takes it back

    @property
    def name(self) -> str:
        return log.entry_name(self.key, self.position)


@dataclass(frozen=True)
class _Look:
    """What one log says; ``entries`` are all that there are, those behind a gap, too."""

    entries: tuple[Entry, ...]
    needed: set[str]
    unreadable: tuple[Unreadable, ...] = ()


def untold(done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def needed_by(store: Store, progress: Progress = untold) -> dict[str, set[str]]:
    """Key -> the blobs that must stay because of its log, from all logs as they are now.

    Likewise, of entries that cannot be read and on which something hangs: name -> the blobs that
    no log names.
    """
    keys, done = log.keys(store), itertools.count(1)

    def one(key: str) -> _Look:
        found = _look(store, key)
        progress(next(done), len(keys), "logs")
        return found

    looks = store.side_by_side(one, keys)
    kept = {key: look.needed for key, look in zip(keys, looks)}
    unsettled = [each for look in looks for each in look.unreadable if not each.settled]
    if unsettled:
        unnamed = set(all_blobs(store)).difference(*(_named(look.entries) for look in looks))
        kept |= {each.name: unnamed for each in unsettled}
    return kept


def unreadable(store: Store, keys: Iterable[str]) -> list[Unreadable]:
    """All entries that cannot be read, in the logs of these keys."""
    looks = store.side_by_side(lambda key: _look(store, key), keys)
    return [each for look in looks for each in look.unreadable]


def _look(store: Store, key: str) -> _Look:
    listed = positions(store, key)  # before the log is read, so that what it lacks is a gap
    state = log.read(store, key)
    behind = [_behind(store, key, at) for at in listed if at >= len(state.entries)]
    if not behind and readable(state):
        return _Look(state.entries, state.needed)
    entries = (*state.entries, *behind)
    return _Look(entries, _named(entries), tuple(_unreadable(key, state, entries)))


def _named(entries: tuple[Entry, ...]) -> set[str]:
    return {blob for entry in entries for blob in entry.digests}


def readable(state: State) -> bool:
    """Do we know what each entry says?"""
    return all(entry.kind in KINDS for entry in state.entries)


def _unreadable(key: str, state: State, entries: tuple[Entry, ...]) -> Iterator[Unreadable]:
    retired = {at for entry in entries if entry.kind == "retire" for at in entry.body["positions"]}
    ends = [entry.position for entry in entries if entry.kind in ("result", "same")]
    lost = [entry.position for entry in entries if entry.kind == "damaged"]
    gap = {len(state.entries)} if len(entries) > len(state.entries) else set[int]()
    for at in (*gap, *lost):
        settled = state.result is not None or at in retired or any(end > at for end in ends)
        yield Unreadable(key, at, state.stage, at in gap, settled)


def positions(store: Store, key: str) -> list[int]:
    """The positions that a listing of a log shows."""
    return [int(name) for name in store.names(f"log/{key}") if re.fullmatch(r"\d{10}", name)]


def _behind(store: Store, key: str, position: int) -> Entry:
    """An entry behind a gap, where no reader of the log arrives."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        body = json.loads(store.read(log.entry_name(key, position)) or b"")
        entry = Entry(position, body["kind"], body)
        if log.fold([entry]).entries and entry.digests is not None:  # both make sense of it
            return entry
    return Entry(position, "damaged", {})


def all_blobs(store: Store) -> list[str]:
    """The blobs that the store lists; what others put between them is not ours."""
    return [name for name in store.blobs() if re.fullmatch("[0-9a-f]{64}", name)]
