"""Stores that are filled by hand, and time that passes for them."""

import os
import time
from pathlib import Path

from pipeline.engine import log
from pipeline.engine.clocks import read_clocks
from pipeline.engine.gc import GRACE, MARKS, collect, survey
from pipeline.engine.log import Claim
from pipeline.engine.needed import all_blobs
from pipeline.store.disk import Disk
from pipeline.store.storage import blob_name
from pipeline.store.store import Store

KEY, OTHER = "a" * 64, "b" * 64
DAY = 24 * 3600.0


def store_at(where: str, folder: Path) -> Store:
    """In a directory, or ``elsewhere`` with a directory of this machine in front of it."""
    if where == "local":
        return Store(Disk(folder / "store"))
    return Store(Disk(folder / "cache"), Disk(folder / "store"))


def put(store: Store, data: bytes) -> str:
    with store.scratch() as scratch:
        (scratch / "file").write_bytes(data)
        return store.put(scratch / "file")


def claim(store: Store, key: str = KEY, owner: str = "host-1-ab", stage: str = "train") -> Claim:
    body = {"record": {"stage": stage}, "machine_id": "another"}
    return Claim.take(store, key, log.read(store, key), owner, body)


def files(*blobs: str) -> dict:
    return {"files": {blob[:8]: {"digest": blob, "size": 5} for blob in blobs}}


def finish(owner: Claim, *blobs: str) -> None:
    owner.append("result", {**files(*blobs), "metrics": {}, "seconds": 1.0})


def checkpoint(owner: Claim, step: int, *blobs: str) -> None:
    owner.append("checkpoint", {"step": step, "seconds": 1.0, **files(*blobs)})


def age(place: Disk, seconds: float, *names: str) -> None:
    """Let time pass: by the clock of the place these were last written so much earlier."""
    for name in names:
        then = time.time() - seconds
        os.utime(place.path(name), (then, then))


def sweep(store: Store, grace: float = GRACE) -> list[str]:
    """A whole gc; the names of the blobs that went."""
    gone = collect(store, survey(store, read_clocks(store), grace))
    return [item.name for item in gone if item.what == "blob"]


def later(store: Store, seconds: float = DAY + 60) -> None:
    """Age the marks, and all blobs with them."""
    assert isinstance(store.records, Disk)
    age(store.records, seconds, MARKS)
    age(store.records, 2 * seconds, *map(blob_name, all_blobs(store)))
