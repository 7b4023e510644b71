"""What a run can go on from: the checkpoints of its log, and one that only this machine has.

Where the store lies elsewhere, each checkpoint is noted on this machine's disk when its files have
become blobs, and before it sets out. If it does not arrive, this machine still knows of it.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from pipeline.engine import log
from pipeline.hashing import canonical
from pipeline.store.store import Store

UNSENT = "unsent"  # folder on this machine's disk: key -> checkpoint that is not in the log yet


def note_unsent(store: Store, key: str, claim: log.Claim, body: dict[str, Any]) -> None:
    """Remember a checkpoint that only this machine has, whose it is, and where it may stand."""
    if store.remote is not None:
        data = canonical({**body, "by": claim.owner, "before": claim.next})
        store.disk.replace(f"{UNSENT}/{key}", data, flush=True)


def read_unsent(store: Store, key: str) -> dict[str, Any] | None:
    """The checkpoint of a key that only this machine has, if there is one."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        body = json.loads(store.disk.read(f"{UNSENT}/{key}") or b"")
        wanted = {name: body[name] for name in ("step", "seconds", "files")}
        return wanted | {name: body[name] for name in ("back_to", "before", "by") if name in body}
    return None


def candidates(
    store: Store, key: str, logged: tuple[log.Entry, ...]
) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Checkpoints to go on from, best first: (position in the log if it is there, body).

    ``logged`` are those of the log. One that was noted may have left some of them behind, but only
    of the log as it was then: others may have gone on from them since.
    """
    if body := read_unsent(store, key):
        others = any(
            entry.position >= body.get("before", 0) and entry.body.get("by") != body.get("by", "")
            for entry in logged
        )
        followed = logged if others else log.still_good(logged, body)
        if not followed or body["step"] > followed[-1].body["step"]:
            yield None, body
            logged = tuple(followed)
    for entry in reversed(logged):
        yield entry.position, entry.body
