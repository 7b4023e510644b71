"""Where results live: named records created once, and blobs named by their content.

    blob/ab/<sha256>     bytes, written once, verified whenever they are read
    log/..., beat/..., ref/...    small records; what they mean is said in log.py
    tmp/, part/          files that are not whole yet; nobody reads them

A store is a directory of this machine, or a place elsewhere (a bucket, a server) with a directory
of this machine in front of it. Records are read and written where the store is. Blobs are kept on
this machine as well and fetched when they are first asked for: a piece at a time, going on where a
fetch was cut, held against their name when whole.

Two rules make it safe over any network. A record that was to be created exclusively is read back
after *every* error: if it holds our bytes we won and only the answer was lost. And what is away may
come back: calls are repeated for ``patience`` seconds before they fail.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import Damaged, StoreAway, StoreError
from pipeline.hashing import file_digest
from pipeline.store.disk import Disk
from pipeline.store.fetch import REMAKE, fetch
from pipeline.store.storage import Report, Storage, blob_name

Result = TypeVar("Result")
PATIENCE = 900.0  # seconds; a store that is away for ten minutes costs nothing but a warning
_AT_ONCE = 8  # requests side by side


def silent(count: int) -> None:
    """A report of progress that nobody reads."""


class Store:
    """Records and blobs; see the module docstring. One may be used by several threads.

    ``exclusive`` is False for a mirror: one process at a time writes it, by push. A ``guest`` is
    only read from, or copied to: nothing of it is removed, not even what is damaged.
    """

    guest = False

    def __init__(self, disk: Disk, remote: Storage | None = None, exclusive: bool = True) -> None:
        self.disk, self.remote, self.exclusive = disk, remote, exclusive
        self.records: Storage = remote or disk
        self.known: dict[str, tuple[Any, ...]] = {}  # log entries by key: see log.read
        self.patience = 20.0
        self.waiting: Callable[[str], None] = lambda why: None  # called while it is away; may raise

    @property
    def root(self) -> Path:
        """The directory of this machine that belongs to the store: itself, or in front of it."""
        return self.disk.root

    @property
    def place(self) -> str:
        """Where the store is, for people."""
        return self.records.place

    def patient(self, seconds: float, waiting: Callable[[str], None]) -> "Store":
        """The same store for a caller that waits longer, or less long, when it is away."""
        other = copy.copy(self)
        other.patience, other.waiting = seconds, waiting
        return other

    def insist(self, call: Callable[[], Result]) -> Result:
        """Repeat a call while the store is away, for as long as ``patience`` lasts."""
        start, pause = time.monotonic(), 0.1
        while True:
            try:
                return call()
            except StoreAway as error:
                again = time.monotonic() + pause
                if again - start > self.patience:
                    raise
                while (left := again - time.monotonic()) > 0:
                    self.waiting(str(error))
                    time.sleep(min(left, 0.5))
                pause = min(2 * pause, 10.0)

    def side_by_side(self, call: Callable[[Any], Result], items: Iterable[Any]) -> list[Result]:
        """The call's answer for each item, several at once where each waits for a network."""
        items = list(items)
        if self.remote is None or len(items) < 2:
            return [call(item) for item in items]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(call, items))

    # records

    def create(self, name: str, data: bytes) -> bool:
        """Create ``name`` with ``data``; False if it already holds something else."""
        if not self.exclusive:
            if self.read(name) is None:
                self.replace(name, data)
            return self.read(name) == data
        return self.insist(lambda: self._create(name, data))

    def _create(self, name: str, data: bytes) -> bool:
        failed = None
        try:
            self.records.create(name, data)
            return True
        except FileExistsError:
            pass
        except StoreError as error:
            failed = error
        found = self.records.read(name)  # carried out or not? only the place knows
        if found is None:
            raise failed or StoreAway(f"{self.place} holds {name} and does not show it")
        return found == data

    def replace(self, name: str, data: bytes) -> None:
        """Give ``name`` new content; the last writer wins, readers see the old or the new."""
        self.insist(lambda: self.records.replace(name, data))

    def read(self, name: str) -> bytes | None:
        """The content of a record, or None where there is none."""
        return self.insist(lambda: self.records.read(name))

    def read_many(self, names: list[str]) -> list[bytes | None]:
        return self.insist(lambda: self.records.read_many(names))

    def names(self, folder: str) -> list[str]:
        """The names directly inside a folder, sorted; none where there is no such folder."""
        return self.insist(lambda: self.records.names(folder))

    def stat(self, name: str) -> tuple[int, float] | None:
        """(bytes, time by the store's own clock) of a record or blob; None if there is none."""
        return self.insist(lambda: self.records.stat(name))

    def remove(self, name: str) -> None:
        self.insist(lambda: self.records.remove(name))

    # blobs

    def put(self, file: Path, report: Report = silent) -> str:
        """Move a file of the scratch space in as a blob; returns its sha256."""
        name = self.keep(file)
        self.send(name, report)
        return name

    def keep(self, file: Path) -> str:
        """The half of ``put`` that needs no network: the blob is whole on this machine."""
        name = file_digest(file)
        # also over one that is there: that may be rotten, and gc may have found it unneeded
        self.disk.move_in(file, blob_name(name))
        return name

    def send(self, name: str, report: Report = silent) -> None:
        """The other half: bring a blob of this machine to where the store is, if it is not there.

        It counts as there when the place shows all its bytes, and not before. Raises Damaged if it
        is not on this machine, because somebody has removed it.
        """
        try:
            self._send(name, self.blob_path(name).stat().st_size, report)
        except FileNotFoundError as error:
            raise Damaged(f"blob {name[:12]} is gone from {self.root}: {REMAKE}") from error

    def _send(self, name: str, size: int, report: Report) -> None:
        if self.remote is None or self.has(name, size):
            report(size)
            return

        def carry() -> None:
            told = 0

            def count(more: int) -> None:
                nonlocal told
                told += more
                report(more)

            try:
                self.records.upload(self.blob_path(name), blob_name(name), count)
                if not self._has(name, size):
                    raise StoreAway(f"{self.place} took blob {name[:12]} and shows only a part")
            except StoreAway:
                report(-told)  # it is counted again when it goes again
                raise

        self.insist(carry)

    def has(self, name: str, size: int) -> bool:
        """Is the blob there, as far as its size tells? (``blob`` looks at every byte.)"""
        return self.insist(lambda: self._has(name, size))

    def _has(self, name: str, size: int) -> bool:
        found = self.records.stat(blob_name(name))
        return found is not None and found[0] == size

    def missing(self, sizes: dict[str, int]) -> tuple[str, ...]:
        """Those of the blobs (name -> size) that are not there."""
        there = self.side_by_side(lambda item: self.has(*item), sizes.items())
        return tuple(name for name, found in zip(sizes, there) if not found)

    def blob(self, name: str, report: Report = silent) -> Path:
        """The path of a blob on this machine, after its bytes were held against its name.

        Raises Damaged if it is missing or not whole; a damaged one is moved out of the way first,
        so that the stage that made it makes it again.
        """
        path = self.blob_path(name)
        if self.disk.stat(blob_name(name)) is not None:
            if (found := file_digest(path)) == name:
                return path
            if self.guest and self.remote is None:
                raise Damaged(f"blob {name[:12]} of {self.place} is damaged: verify that store")
            aside = self.disk.move_aside(blob_name(name))
            if self.remote is None:
                raise Damaged(
                    f"blob {name[:12]} is damaged: its bytes hash to {found[:12]}. It was moved to "
                    f"{aside}; {REMAKE}. If this happens twice, check the disk"
                )
        if self.remote is None:
            raise Damaged(f"blob {name[:12]} is missing from {self.place}: {REMAKE}")
        fetch(self, name, report)
        return path

    def blobs(self) -> list[str]:
        """The names of all blobs where the store is."""
        folders = self.side_by_side(lambda one: self.names(f"blob/{one}"), self.names("blob"))
        return [name for names in folders for name in names]

    def blob_chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a blob where the store is, nothing kept. Raises FileNotFoundError."""
        return self.records.chunks(blob_name(name))

    def remove_blob(self, name: str) -> None:
        self.forget(name)
        self.remove(blob_name(name))

    def forget(self, name: str) -> None:
        """Remove this machine's copy of a blob; the store's own stays."""
        if self.remote is not None:
            self.disk.remove(blob_name(name))

    def blob_path(self, name: str) -> Path:
        """Where a blob lies on this machine, unverified, if it is there."""
        return self.disk.path(blob_name(name))

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A directory on this machine for files on their way in; gone afterwards."""
        return self.disk.scratch()
