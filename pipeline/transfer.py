"""Bring what one store knows of a key to another: blobs first, log entries after.

Where the target's log is the beginning of the source's, the rest of it is copied word for word, so
that the story of a key goes along. Where the two have gone different ways (the key was worked on in
both), what the source has more is appended under a claim of its own: the first result of a log
stands, and of checkpoints the one with more steps is worth bringing.
"""

from typing import Any

from pipeline import log
from pipeline.keys import canonical
from pipeline.log import Claim, Entry, State
from pipeline.storage import Report
from pipeline.store import Store, silent


def wanted(theirs: State, ours: State) -> list[Entry]:
    """The entries of another log of the same key that would bring ours further."""
    if ours.result is not None:
        return []
    if theirs.result is not None:
        return [theirs.result]
    reached = ours.checkpoints[-1].body["step"] if ours.checkpoints else -1
    newest = theirs.checkpoints[-theirs.keep :]
    return [entry for entry in newest if entry.body["step"] > reached]


def bring(source: Store, target: Store, key: str, who: str, report: Report = silent) -> bool:
    """Bring the result of a key or its newest checkpoints; False if there is nothing to bring.

    The caller has made sure that nobody works on the key in the target, or brings a result. Raises
    Lost if somebody began to meanwhile; StoreError for bytes that are missing or damaged.
    """
    theirs, ours = log.read(source, key), log.read(target, key)
    entries = wanted(theirs, ours)
    if not entries:
        return _mend(source, target, theirs, ours, report)
    for blob, size in {k: v for entry in entries for k, v in entry.digests.items()}.items():
        if not target.has(blob, size):
            target.take(blob, source, report)
    claim = Claim(target, key, len(ours.entries), who)
    if all(a.body == b.body for a, b in zip(ours.entries, theirs.entries)) and len(
        ours.entries
    ) < len(theirs.entries):
        for entry in theirs.entries[len(ours.entries) :]:
            claim.copy(canonical(entry.body))
        return True
    claim.append("claim", {"owner": who, "record": theirs.record, "from": source.place})
    for entry in entries:
        claim.append(entry.kind, {**_said(entry), "from": source.place})
    if theirs.result is None:
        claim.release(f"brought from {source.place}")
    return True


def _said(entry: Entry) -> dict[str, Any]:
    own = ("kind", "at", "nonce")
    return {name: value for name, value in entry.body.items() if name not in own}


def _mend(source: Store, target: Store, theirs: State, ours: State, report: Report) -> bool:
    """Bring blobs that a result of the target's has lost and the source has."""
    if ours.result is None or theirs.result is None:
        return False
    gone = set(target.missing(ours.result.digests)) & set(theirs.result.digests)
    for blob in gone:
        target.take(blob, source, report)
    return bool(gone)
