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
from pipeline.engine.needed import needed_by
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
        self._read = set[str]()  # blobs that it has shown to be right
        self._gone = set[str]()  # and those that were removed from it

    def pull(self) -> None:
        """Take what is there and is not on this machine. Raises StoreError if it cannot be read."""
        taken = _carry(self.target, self.store)
        self._records(self.target, self.store, keep=True)
        self._read |= taken.keys()
        if taken:
            print(f"took the run so far from {self.place}: {_amount(taken)}", flush=True)

    def push(self) -> None:
        """Copy what is new, and read it again. Raises StoreError or OSError if that fails."""
        source = guest(str(self.store.root))
        _carry(source, self.target)
        needed = set().union(*needed_by(self.target).values())
        new = {blob: self._read_back(blob) for blob in needed - self._read}
        self._gone -= needed  # the same bytes may have been made again
        if (flag := self.target.read(self._stop)) is not None:
            self.store.replace(self._stop, flag)  # somebody asks through Drive
        self._records(source, self.target, keep=False)
        self._prune(source, needed)
        if new:
            print(f"copied to {self.place}: {_amount(new)}", flush=True)

    def _read_back(self, blob: str) -> int:
        """Hold a copied blob against its name; its size. One that differs is removed, so that the
        next copy brings it again."""
        path = self.target.blob_path(blob)
        found = file_digest(path)
        if found != blob:
            self.target.remove(blob_name(blob))
            raise Damaged(f"{self.place} gives blob {blob[:12]} back as {found[:12]}")
        self._read.add(blob)
        return path.stat().st_size

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

    def _prune(self, source: Store, needed: set[str]) -> None:
        """Remove what newer checkpoints have replaced, and nothing of which we do not know why it
        is there: what a mounted Drive lists may be old. Drive moves files to its bin, where they
        still take room, so they are emptied first."""
        logs = [log.read(each, key) for key in log.keys(source) for each in (source, self.target)]
        named = {blob for state in logs for entry in state.entries for blob in entry.digests}
        for state in logs:
            named -= state.needed
        for blob in named - needed - self._gone:
            path = self.target.blob_path(blob)
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o644)
                os.truncate(path, 0)
            self.target.remove_blob(blob)
            self._gone.add(blob)


def _carry(source: Store, target: Store) -> dict[str, int]:
    """Bring what there is to bring from one store to another: the blobs (name -> size)."""
    parcels = pack(source, target, log.keys(source))
    able = [each for each in parcels if obstacle(source, target, each, _unsaid) is None]
    left = deliver(source, target, able, me(), silent, _unsaid)
    sources = [f"ref/source/{name}" for name in source.names("ref/source")]
    copy_records(source, target, [*sources, LATEST])
    behind = {each.parcel.key for each in left}
    brought = (each.blobs for each in able if each.key not in behind)
    return {blob: size for blobs in brought for blob, size in blobs.items()}


def _amount(blobs: dict[str, int]) -> str:
    return f"{len(blobs)} files, {human_bytes(sum(blobs.values()))}"


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
