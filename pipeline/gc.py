"""Which blobs are still needed, and the removal of checkpoints that newer ones have replaced.

Needed are all files of every result, and of every unfinished log the newest two checkpoints: two,
so that a damaged one costs an interval and not the run. Log entries are never deleted: their
positions are what keeps late processes out.
"""

from pipeline import log
from pipeline.log import State
from pipeline.store import Store

KEEP = 2


def needed(state: State) -> set[str]:
    """The blobs of one log that must stay."""
    if state.result is not None:
        return set(state.result.digests)
    return {blob for entry in state.checkpoints[-KEEP:] for blob in entry.digests}


def prune(store: Store, key: str) -> int:
    """Remove blobs that only replaced checkpoints of this log name; returns how many.

    Call it as the owner of the log. Other logs may name the same bytes, so all are read.
    """
    states = {name: log.read(store, name) for name in log.keys(store)}
    named = {blob for entry in states[key].checkpoints for blob in entry.digests}
    replaced = named.difference(*(needed(state) for state in states.values()))
    for blob in replaced:
        store.remove_blob(blob)
    return len(replaced)
