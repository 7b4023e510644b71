"""Bring what one store knows of keys to another: blobs first, log entries after.

Brought of a key is its result or, before there is one, the newest checkpoints, if they are further
than the target's. Of all keys together each blob is carried once, several side by side.

Where the target's log has nothing of its own, the entries that it lacks are copied word for word,
so that the story of a key goes along. Left out are only checkpoints that newer ones have replaced:
their bytes are gone, and at no instant may an entry be needed whose bytes are not there. Where both
logs have gone their own ways (the key was worked on in both), what the source has more is appended
under a claim of its own: the first result of a log stands, and of checkpoints the one with more
steps is worth bringing. Nobody works on the key in the target then, and its log ends by saying so.

A transfer that is killed leaves blobs that nothing names yet, and the next one finds them there.
Cost: a look at every blob that is needed. The copies that get into this machine's directory in
front of a remote store on the way are removed again.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.engine import further, log
from pipeline.engine.beat import Watch
from pipeline.engine.log import Claim, Entry, State
from pipeline.errors import Damaged, Lost
from pipeline.hashing import canonical
from pipeline.store.locks import machine_id
from pipeline.store.storage import Report
from pipeline.store.store import Store, silent

_FINAL = ("result", "same")


@dataclass(frozen=True)
class Parcel:
    """What is to be brought of one key. Without entries: bytes that the target has lost, or no
    more than the word that nobody works on it there."""

    key: str
    theirs: State
    ours: State
    entries: tuple[Entry, ...]
    blobs: dict[str, int]  # blob -> size, of those that the target has not
    lost: tuple[str, ...]  # blobs that ought to be brought and that the source has not either
    deserted: bool  # the target's log has an owner that works elsewhere, if at all

    @property
    def stage(self) -> str:
        return self.theirs.stage

    @property
    def finishes(self) -> bool:
        """Is there a result in it?"""
        return any(entry.kind in _FINAL for entry in self.entries)


@dataclass(frozen=True)
class Skipped:
    """A parcel that is not brought, with the reason; ``lost`` if bytes are missing for good."""

    parcel: Parcel
    why: str
    lost: bool = False


# what to bring


def pack(
    source: Store,
    target: Store,
    keys: Iterable[str],
    report: Report = silent,
    damaged: Collection[str] = (),
) -> list[Parcel]:
    """What there is to bring of each key; keys of which there is nothing are left out.

    Blobs that proved ``damaged`` in the source count as missing there. ``report`` is told of no
    bytes, only called: it may raise to stop.
    """

    def read(key: str) -> tuple[str, State, State]:
        report(0)
        return key, log.read(source, key), log.read(target, key)

    states = _network(source, target).side_by_side(read, keys)
    found = [(key, theirs, ours, further.wanted(theirs, ours)) for key, theirs, ours in states]
    sizes = [
        _sizes(entries or _holding(ours), None if entries else ours.needed)
        for _, _, ours, entries in found
    ]
    every = {blob: size for each in sizes for blob, size in each.items()}
    gone = {blob: every[blob] for blob in target.missing(every)}
    lost = set(source.missing(gone)) | (gone.keys() & set(damaged))
    parcels = []
    for (key, theirs, ours, entries), each in zip(found, sizes):
        whole = tuple(entry for entry in entries if not lost & entry.digests.keys())
        carried = _sizes(whole) if entries else each
        blobs = {b: size for b, size in carried.items() if b in gone and b not in lost}
        deserted = ours.result is None and _is_deserted(target, key, ours)
        if entries or deserted or gone.keys() & each.keys():
            missing = tuple(sorted(lost & each.keys()))
            parcels.append(Parcel(key, theirs, ours, whole, blobs, missing, deserted))
    return parcels


def _is_deserted(store: Store, key: str, state: State) -> bool:
    """Is there an owner in force that shows no beat, as it would before it claims?"""
    return state.owner is not None and not Watch(store, key, state.owner).last()


def _holding(state: State) -> tuple[Entry, ...]:
    return (state.result,) if state.result is not None else state.checkpoints


def _sizes(entries: Iterable[Entry], only: set[str] | None = None) -> dict[str, int]:
    every = {blob: size for entry in entries for blob, size in entry.digests.items()}
    return every if only is None else {blob: every[blob] for blob in sorted(only)}


def _network(source: Store, target: Store) -> Store:
    """The one of the two in which calls side by side are faster than one after the other."""
    return target if target.remote is not None else source


def obstacle(
    source: Store, target: Store, parcel: Parcel, note: Callable[[str], None]
) -> Skipped | None:
    """Why a parcel should not be brought, if it should not."""
    if parcel.lost and not parcel.entries and not parcel.blobs:
        blob = f"blob {parcel.lost[0][:12]}"
        return Skipped(parcel, f"{blob} is missing from {source.place}", lost=True)
    if parcel.entries and not parcel.finishes and worked_on(target, parcel.key, parcel.ours, note):
        assert parcel.ours.owner is not None
        return Skipped(parcel, f"{parcel.ours.owner.body['owner']} works on it in {target.place}")
    return None


def worked_on(store: Store, key: str, state: State, note: Callable[[str], None]) -> bool:
    """Does a process work on the key in this very store? Watches until that is certain.

    An owner shows a beat before it claims. One that came along with a copied log never did.
    """
    if state.owner is None:
        return False
    watch = Watch(store, key, state.owner)
    first = watch.last()
    told = False
    while first and watch.alive():
        if watch.last() != first:
            return True
        if not told:
            note(f"{state.stage}: looking whether {state.owner.body['owner']} still works on it")
            told = True
        time.sleep(0.5)
    return False


# bringing it


def bring(source: Store, target: Store, key: str, who: str, report: Report = silent) -> bool:
    """Bring the result of a key or its newest checkpoints; False if there is nothing to bring.

    The caller has made sure that nobody works on the key in the target, or brings a result. Raises
    Lost if somebody began to meanwhile.
    """
    damaged: set[str] = set()
    while parcels := pack(source, target, [key], damaged=damaged):
        (parcel,) = parcels
        if not parcel.entries and not parcel.blobs:
            return False
        bad = carry(source, target, parcel.blobs, report)
        if not bad:
            append(parcel, source, target, who, report)
            return True
        damaged |= bad  # the next look leaves them out
    return False


def deliver(
    source: Store,
    target: Store,
    parcels: list[Parcel],
    who: str,
    report: Report,
    note: Callable[[str], None],
) -> list[Skipped]:
    """Bring parcels: all blobs, and then the entries, key by key. Returns what was left behind.

    A key that changed meanwhile, here or there, is looked at once more.
    """
    # of an unfinished key first: whoever works on it replaces its checkpoints soon
    order = sorted(parcels, key=lambda parcel: parcel.finishes)
    blobs = {blob: size for parcel in order for blob, size in parcel.blobs.items()}
    damaged = carry(source, target, blobs, report)

    def one(parcel: Parcel) -> Skipped | None:
        report(0)
        if not damaged & parcel.blobs.keys():
            with contextlib.suppress(Lost):
                append(parcel, source, target, who, report)
                return None
        for _ in range(2):
            packed = pack(source, target, [parcel.key], damaged=damaged)
            if not packed:
                return None
            if hindered := obstacle(source, target, packed[0], note):
                return hindered
            with contextlib.suppress(Lost):
                if bring(source, target, parcel.key, who, report):
                    return None
        return Skipped(parcel, "others go on with it faster than it can be copied")

    left = _network(source, target).side_by_side(one, order)
    return [skipped for skipped in left if skipped is not None]


def carry(source: Store, target: Store, blobs: dict[str, int], report: Report = silent) -> set[str]:
    """Carry blobs (name -> size); returns those that proved damaged in the source, or gone."""

    def one(item: tuple[str, int]) -> bool:
        return _carry(source, target, *item, report)

    arrived = _network(source, target).side_by_side(one, blobs.items())
    return {blob for blob, there in zip(blobs, arrived) if not there}


def _carry(source: Store, target: Store, name: str, size: int, report: Report) -> bool:
    told = 0

    def count(more: int) -> None:
        nonlocal told
        told += more
        report(more)

    # each byte counts once: when it is sent, or when it comes where nothing is to be sent
    fetched, sent = (count, silent) if target.remote is None else (lambda more: report(0), count)
    passing = [s for s in (source, target) if s.guest and not s.blob_path(name).exists()]
    try:
        path = source.blob(name, fetched)
        with target.scratch() as scratch:
            shutil.copyfile(path, scratch / name)
            found = target.put(scratch / name, sent)
        assert found == name, "the bytes were held against their name a moment ago"
    except Damaged:
        return False
    finally:
        for store in passing:
            store.forget(name)
    count(size - told)
    return True


def append(parcel: Parcel, source: Store, target: Store, who: str, report: Report = silent) -> None:
    """Append what is in a parcel to the target's log, which has its blobs by now.

    Raises Lost if the log has grown since the parcel was packed.
    """
    claim = Claim(target, parcel.key, len(parcel.ours.entries), who)
    following = _following(parcel)
    if following is None:
        body = {"owner": who, "machine_id": machine_id(), "record": parcel.theirs.record}
        claim.append("claim", {**body, "from": source.place})
        led_back = further.led_back(parcel.theirs, parcel.ours, parcel.entries)
        for entry in parcel.entries:
            claim.append(entry.kind, _said(entry) | led_back)
            led_back = {}
    else:
        for entry in following:
            claim.copy(canonical(entry.body))
    if (parcel.entries or parcel.deserted) and log.read(target, parcel.key).owner is not None:
        claim.append("claim", {"owner": None, "why": f"brought from {source.place}"})
    # gc keeps the blobs of an entry that is there; what it took just before goes again
    sizes = _sizes(parcel.entries)
    carry(source, target, {blob: sizes[blob] for blob in target.missing(sizes)}, report)


def _following(parcel: Parcel) -> list[Entry] | None:
    """The entries to copy word for word, or None if the target's log has entries of its own."""
    if not parcel.entries:
        return []
    rest = iter(parcel.theirs.entries)
    for ours in parcel.ours.entries:
        if not any(ours.body == theirs.body for theirs in rest):  # goes on behind the last match
            return None
    dead = (*_FINAL, *log.PARTIAL, "retire", "damaged")
    following = [entry for entry in rest if entry in parcel.entries or entry.kind not in dead]
    if further.led_back(parcel.theirs, parcel.ours, parcel.entries):
        return None  # what says so is left out
    return following if all(entry in following for entry in parcel.entries) else None


def _said(entry: Entry) -> dict[str, Any]:
    own = ("kind", "at", "nonce", "by")
    return {name: value for name, value in entry.body.items() if name not in own}


def copy_records(source: Store, target: Store, names: Iterable[str]) -> None:
    """Copy records that the source has and the target has not."""
    for name in names:
        data = source.read(name)
        if data is not None and target.read(name) is None:
            target.replace(name, data)
