"""A folder of Google Drive as a copy of the run, because Drive cannot be what the run works on.

A mounted Drive has no hard links, so two machines could take the same work, and what is written to
it arrives some time later, if at all. So the run works on the disk of its machine, which is gone
with it, and this is copied to Drive every few minutes, as `pipeline push` does it: results and the
newest checkpoints, bytes before the records that name them. The next machine takes all of it back.

What was copied is read again and held against its sha256. That proves what the mount holds, and not
what Google has: only unmounting waits for that, so the notebook ends with it. A copy that fails is
said and tried again; the run goes on meanwhile. One process at a time may write here.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from launchers.launches import Launch
from pipeline.engine import log
from pipeline.engine.beat import me
from pipeline.engine.needed import all_blobs, needed_by
from pipeline.engine.remembered import LATEST
from pipeline.engine.transfer import copy_records, deliver, obstacle, pack
from pipeline.errors import Damaged, StoreError
from pipeline.hashing import file_digest
from pipeline.store.places import guest, open_store
from pipeline.store.storage import blob_name
from pipeline.store.store import Store, silent
from pipeline.ui import human_bytes

_TRIES, _PAUSE = 5, 10.0  # of the last copy, and seconds between them


class Mirror:
    """The copy of one launch in a folder of Drive."""

    def __init__(self, launch: Launch, place: str) -> None:
        self.launch, self.store, self.place = launch, launch.store, place
        self.target = open_store(place, mirror=True)
        self.target.guest = True

    def pull(self) -> None:
        """Take what is there and is not on this machine. Raises StoreError if it cannot be read."""
        if carried := _carry(self.target, self.store):
            print(f"took the run so far from {self.place}: {carried}", flush=True)
        self._records(self.target, self.store, keep=True)

    def push(self) -> None:
        """Copy what is new. Raises StoreError or OSError if that fails."""
        source = guest(str(self.store.root))
        if carried := _carry(source, self.target):
            print(f"copied to {self.place}: {carried}", flush=True)
        if (flag := self.target.read(self._stop)) is not None:
            self.store.replace(self._stop, flag)  # somebody asks through Drive
        self._records(source, self.target, keep=False)
        self._prune()

    @property
    def _stop(self) -> str:
        return f"launch/{self.launch.name}/stop"

    def _records(self, source: Store, target: Store, keep: bool) -> None:
        """Copy what the launch says of itself; with ``keep`` no record that is there changes."""
        folder = source.root / "launch" / self.launch.name
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            name = path.relative_to(source.root).as_posix()
            data, there = source.read(name), target.read(name)
            if data is not None and data != there and (there is None or not keep):
                target.replace(name, data)

    def _prune(self) -> None:
        """Remove what newer checkpoints have replaced. Drive moves files to its bin, where they
        still take room, so they are emptied first."""
        kept = set().union(*needed_by(self.target).values())
        for blob in set(all_blobs(self.target)) - kept:
            path = self.target.blob_path(blob)
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o644)
                os.truncate(path, 0)
            self.target.remove_blob(blob)


def _carry(source: Store, target: Store) -> str:
    """Bring what there is to bring from one store to another, and read it again. Says what that
    was; nothing if it was nothing."""
    parcels = pack(source, target, log.keys(source))
    able = [each for each in parcels if obstacle(source, target, each, _unsaid) is None]
    left = deliver(source, target, able, me(), silent, _unsaid)
    sources = [f"ref/source/{name}" for name in source.names("ref/source")]
    copy_records(source, target, [*sources, LATEST])
    behind = {each.parcel.key for each in left}
    sizes = {
        blob: size for each in able if each.key not in behind for blob, size in each.blobs.items()
    }
    _read_back(target, sizes)
    return f"{len(sizes)} files, {human_bytes(sum(sizes.values()))}" if sizes else ""


def _read_back(target: Store, blobs: dict[str, int]) -> None:
    """Hold what was copied against its name; what differs is removed, so that it goes again."""
    for blob in blobs:
        found = file_digest(target.blob_path(blob))
        if found != blob:
            target.remove(blob_name(blob))
            raise Damaged(f"{target.place} gives blob {blob[:12]} back as {found[:12]}")


def _unsaid(line: str) -> None:
    """A note of a transfer: nobody works on the same key elsewhere, or they would be told."""


@contextlib.contextmanager
def copying(mirror: Mirror | None, every: float) -> Iterator[Callable[[], bool]]:
    """Copy every so many seconds while the block lasts, and once more after it. What is yielded
    says, after that, whether the last copy arrived; without a mirror there is nothing to copy."""
    if mirror is None:
        yield lambda: True
        return
    ended, arrived = threading.Event(), list[bool]()

    def run() -> None:
        while not ended.wait(every):
            _tried(mirror)

    thread = threading.Thread(target=run, name="mirror", daemon=True)
    thread.start()
    try:
        yield lambda: bool(arrived)
    finally:
        ended.set()
        thread.join()
        for _ in range(_TRIES):
            if _tried(mirror):
                arrived.append(True)
                break
            threading.Event().wait(_PAUSE)


def _tried(mirror: Mirror) -> bool:
    try:
        mirror.push()
    except (StoreError, OSError) as error:
        print(f"not copied to {mirror.place}, trying again: {error}", flush=True)
        return False
    return True
