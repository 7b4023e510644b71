"""The removal of what nothing can need (needed.py says what is needed).

Log entries are never deleted: their positions are what keeps late processes out.
A blob reaches the store before the entry that names it. So no blob is deleted for being unneeded
once. One ``gc`` writes down which are (``gc/marks``); a later one, at least ``GRACE`` after, reads
all logs again and deletes those that were marked, are unneeded still, and were not sent again. The
time between is taken from the store's own clock: ``gc/now`` is written and its time compared with
that of the marks, so no machine's wrong clock can make it shorter.

Cost: three requests for each key, before the first deletion and again before every hundred, and two
for each blob that goes.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from pipeline.engine import leftovers, log
from pipeline.engine.clocks import Clocks
from pipeline.engine.leftovers import Item
from pipeline.engine.needed import Progress, all_blobs, needed_by, untold
from pipeline.errors import StoreError
from pipeline.hashing import canonical
from pipeline.store.storage import blob_name
from pipeline.store.store import Store

GRACE = 24 * 3600.0
MARKS = "gc/marks"
RECENT = 64  # entries whose blobs an owner may remove
BATCH = 100  # blobs deleted between two looks at all logs


def prune(store: Store, key: str, loose: set[str], pruned: set[str]) -> None:
    """Remove blobs that only replaced checkpoints of this log name, and those in ``loose``.

    Call it as the owner of the log. Other logs may name the same bytes, so all are looked at.
    ``loose`` are blobs of a checkpoint whose entry was never written; ``pruned`` remembers from
    call to call what is gone already. What earlier owners left further back is for ``gc``.
    Cost: as of ``needed_by``, if anything is to go.
    """
    state = log.read(store, key)
    pruned -= state.needed  # it may have been made again
    named = {blob for entry in state.entries[-RECENT:] for blob in entry.digests}
    replaced = (named | loose) - state.needed - pruned
    if replaced:
        replaced -= set().union(*needed_by(store).values())
    store.side_by_side(store.remove_blob, replaced)
    pruned |= replaced


# what would go


@dataclass(frozen=True)
class Survey:
    """What there is to do: what goes now, and the blobs that no log needs and that stay."""

    blobs: tuple[Item, ...]  # these go now,
    rest: tuple[Item, ...]  # and these
    later: tuple[Item, ...]  # marked, or to be marked now
    waiting: tuple[Item, ...]  # to be marked when the marks in force are old enough
    after: float  # seconds until ``later`` may go
    marked: float | None  # when the marks in force were written, by the store's clock
    marking: bool  # is it time for new ones?


def survey(
    store: Store,
    clocks: Clocks,
    grace: float = GRACE,
    without: Collection[str] = (),
    progress: Progress = untold,
) -> Survey:
    """Look at everything and change nothing; keys in ``without`` count as if they were retired.

    Raises StoreError if there are blobs and not one log: then something else is wrong.
    """
    by_key = needed_by(store, progress)
    needed = {blob for key, blobs in by_key.items() if key not in without for blob in blobs}
    there = all_blobs(store)
    if there and not by_key:
        raise StoreError(
            f"{store.place} holds blobs and not one log, so nobody can say what is needed, and "
            "nothing is removed. Is the place right, and may its folder log/ be read?"
        )
    if grace and not clocks.store:
        raise StoreError(
            f"{store.place} does not tell when something was written, so no time of grace can be "
            "kept. If nobody else uses it now: `pipeline gc --grace 0s`"
        )
    marks, marked = _read_marks(store)
    left = grace - (clocks.store - marked) if marks is not None else grace
    unneeded = sorted(set(there) - needed)
    stats = store.side_by_side(lambda blob: store.stat(blob_name(blob)), unneeded)
    marking = marks is None or left <= 0
    now, later, waiting = [], [], []
    for blob, found in zip(unneeded, stats):
        if found is not None:
            item, was_marked = Item("blob", blob, found[0]), marks is not None and blob in marks
            if marking:
                (now if was_marked and found[1] <= marked else later).append(item)
            else:
                (later if was_marked else waiting).append(item)
    return Survey(
        blobs=tuple(now),
        rest=(
            *leftovers.in_store(store, clocks.store - grace),
            *leftovers.on_disk(store, clocks.disk, grace, needed),
        ),
        later=tuple(later),
        waiting=tuple(waiting),
        after=grace if marking else left,
        marked=marked if marks is not None else None,
        marking=marking,
    )


def _read_marks(store: Store) -> tuple[set[str] | None, float]:
    """What was marked, and when by the store's clock; None if nothing was.

    The content is read first: if another ``gc`` replaces it in between, the old marks seem younger
    than they are. The other way round new ones would seem older.
    """
    marks = None
    with suppress(ValueError, TypeError):
        marks = set(json.loads(store.read(MARKS) or b""))
    found = store.stat(MARKS)
    return marks, found[1] if found else 0.0


# what is done about it


def collect(store: Store, found: Survey, progress: Progress = untold) -> list[Item]:
    """Delete what a survey found and mark what is unneeded; says what is gone."""
    gone: list[Item] = []
    for start in range(0, len(found.blobs), BATCH):
        progress(start, len(found.blobs), "blobs")
        needed = set().union(*needed_by(store).values())
        batch = [item for item in found.blobs[start : start + BATCH] if item.name not in needed]
        went = store.side_by_side(lambda item: _remove_blob(store, item.name, found.marked), batch)
        gone += [item for item, did in zip(batch, went) if did]
    gone += [item for item in found.rest if leftovers.remove(store, item)]
    if found.marking and found.later:
        store.replace(MARKS, canonical([item.name for item in found.later]))
    elif found.marking and found.marked is not None:
        store.remove(MARKS)
    return gone


def _remove_blob(store: Store, blob: str, marked: float | None) -> bool:
    """Remove a marked blob, unless somebody has sent it again since.

    This machine's copy stays: a checkpoint that waits here to be sent may be made of it.
    """
    found = store.stat(blob_name(blob))
    if marked is None or found is None or found[1] > marked:
        return False
    store.remove(blob_name(blob))
    return True
