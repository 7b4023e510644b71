"""Which blobs are still needed, and the removal of those that are not.

Needed are all files of every result, and of every unfinished log the newest checkpoints (log.py).
Log entries are never deleted: their positions are what keeps late processes out.
"""

from pipeline import log
from pipeline.store import Store


def prune(store: Store, key: str, loose: set[str], pruned: set[str]) -> None:
    """Remove blobs that only replaced checkpoints of this log name, and those in ``loose``.

    Call it as the owner of the log. Other logs may name the same bytes, so all are looked at.
    ``loose`` are blobs of a checkpoint whose entry was never written; ``pruned`` remembers from
    call to call what is gone already.
    """
    state = log.read(store, key)
    named = {blob for entry in state.checkpoints for blob in entry.digests}
    replaced = (named | loose) - state.needed - pruned
    if not replaced:
        return
    for other in log.keys(store):
        replaced -= log.read(store, other).needed
    store.side_by_side(store.remove_blob, replaced)
    pruned |= replaced
