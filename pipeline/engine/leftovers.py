"""What processes that are gone left behind, apart from blobs: beats, files that are not whole.

On this machine's disk also what a store elsewhere does without: copies of its blobs, and records of
checkpoints that waited to be sent until somebody else had the result.

All of it is judged by age: each thing by the clock of the place where it lies, which the caller has
read (gc.py), so that no two clocks are compared. Temporary files are in use for as long as a stage
takes: those of a process that lives stay, whatever their age, those of a dead one of this machine
go after a minute, and those of which nobody can tell must be a day old.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine import log
from pipeline.engine.log import Entry
from pipeline.engine.needed import all_blobs
from pipeline.engine.unsent import UNSENT, read_unsent
from pipeline.store.locks import alone, patience, take
from pipeline.store.storage import Storage, blob_name
from pipeline.store.store import Store

_PART, _TEMPORARY, _KEPT = "partial blob", "temporary file", "part of a result"


@dataclass(frozen=True)
class Item:
    """Something that can go: in the store or, with ``here``, on this machine's disk."""

    what: str
    name: str
    size: int
    here: bool = False


def in_store(store: Store, before: float) -> Iterator[Item]:
    """Records last written before a time by the store's clock that nobody needs any more."""
    yield from _beats(store, store.records, before, here=False)
    for name in store.insist(lambda: store.names("stop")):  # whoever lives heeds it in seconds
        found = store.stat(f"stop/{name}")
        if found is not None and found[1] <= before:
            yield Item("request to stop", f"stop/{name}", found[0])
    if store.remote is not None:  # a directory's own temporary files are this machine's
        for folder, what in (("probe", "probe"), ("tmp", _TEMPORARY)):
            for name in store.names(folder):
                found = store.stat(f"{folder}/{name}")
                if found is not None and found[1] <= before:
                    yield Item(what, f"{folder}/{name}", found[0])


def _beats(store: Store, place: Storage, before: float, here: bool) -> Iterator[Item]:
    """Beats and their locks, of owners whose claim is no longer in force."""
    for key in store.insist(lambda: place.names("beat")):
        names = store.insist(lambda key=key: place.names(f"beat/{key}"))
        owner = log.read(store, key).owner if names else None
        for name in names:
            if owner is not None and owner.body["owner"] == name.removesuffix(".lock"):
                continue
            path = f"beat/{key}/{name}"
            found = store.insist(lambda path=path: place.stat(path))
            if found is not None and found[1] <= before:
                yield Item("beat", path, found[0], here)


def on_disk(store: Store, now: float, grace: float, needed: set[str]) -> Iterator[Item]:
    """What has been on this machine's disk for so long, and is of no use any more."""
    disk, before = store.disk, now - grace
    for name in disk.names("tmp"):
        newest, size = _age_and_size(disk.path(f"tmp/{name}"))
        if newest <= now - patience(disk.path(f"tmp/{name}"), grace):
            yield Item(_TEMPORARY, f"tmp/{name}", size, here=True)
    for folder, what in (("part", _PART), ("damaged", "damaged blob"), ("work", _KEPT)):
        for name in disk.names(folder):
            if folder == "part" and name.endswith(".lock"):
                continue  # a lock that is removed while somebody waits for it keeps nobody out
            newest, size = _age_and_size(disk.path(f"{folder}/{name}"))
            if newest <= before:
                yield Item(what, f"{folder}/{name}", size, here=True)
    if store.remote is None:
        return
    yield from _beats(store, disk, before, here=True)
    kept = set(needed)
    for key in disk.names(UNSENT):
        data = disk.read(f"{UNSENT}/{key}") or b""
        if log.read(store, key).result is not None:
            yield Item("unsent checkpoint", f"{UNSENT}/{key}", len(data), here=True)
        else:
            kept |= set(Entry(0, "checkpoint", read_unsent(store, key) or {}).digests)
    for blob in all_blobs(Store(disk)):
        newest, size = _age_and_size(disk.path(blob_name(blob)))
        if blob not in kept and newest <= before:
            yield Item("cached blob", blob_name(blob), size, here=True)


def _age_and_size(path: Path) -> tuple[float, int]:
    """When a file, or the newest file of a folder, came to be here, and the bytes of all.

    A file that was moved here keeps the time of its content; its inode's says when it arrived.
    """
    stats = []
    with suppress(OSError):  # it may vanish while we look; then it is not ours to remove
        stats = [each.stat() for each in (path, *path.rglob("*"))]
    newest = max((max(each.st_mtime, each.st_ctime) for each in stats), default=float("inf"))
    return newest, sum(each.st_size for each in stats)


def remove(store: Store, item: Item) -> bool:
    """Remove it; False if it is still there, because somebody works on it."""
    path = store.disk.path(item.name)
    if not item.here:
        store.remove(item.name)
        return True
    if item.what == _KEPT:
        if (held := take(path)) is not None:
            with held:
                shutil.rmtree(path, ignore_errors=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif item.what == _PART:
        with suppress(_Busy), alone(path, _busy):
            path.unlink(missing_ok=True)
    else:
        store.disk.remove(item.name)
    return not path.exists()


class _Busy(Exception):
    """Another process holds the lock."""


def _busy() -> None:
    raise _Busy
