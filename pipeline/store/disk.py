"""A directory of this machine as a place for named bytes.

No step is ever half done. A file is written under ``tmp/`` in the same tree, flushed to the disk,
and then given its name by one atomic call: ``link`` where the name must be new (it fails if the
name exists, so of any number of processes exactly one wins), ``replace`` where the last writer may
win. A process that dies leaves at most a temporary file, which ``sweep`` removes; it knows a live
one by the lock on its scratch space.

It expects a file system with hard links, because nothing else is exclusive everywhere. Cost: one
flush a file.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.locks import hold, patience, take
from pipeline.store.storage import Report

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABSENT = (FileNotFoundError, NotADirectoryError)
_READ = "read"
_PIECE = 1 << 20


class Disk:
    """A directory, which is made when something is first written to it."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)

    def path(self, name: str) -> Path:
        return self.root / name

    # what every place can do: see storage.py

    def create(self, name: str, data: bytes) -> None:
        path = self.root / name
        with self._explained(), self.scratch() as scratch:
            _write(scratch / "record", data)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(scratch / "record", path)
            except FileExistsError:
                raise
            except OSError as error:
                raise _no_links(self.root, error) from error
            _flush_directory(path.parent)

    def replace(self, name: str, data: bytes, flush: bool = False) -> None:
        """With ``flush`` the new content survives a power cut; without, one of the two does."""
        path = self.root / name
        with self._explained(), self.scratch() as scratch:
            if flush:
                _write(scratch / "record", data)
            else:
                (scratch / "record").write_bytes(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / "record", path)

    def read(self, name: str) -> bytes | None:
        with self._explained(_READ):
            try:
                return (self.root / name).read_bytes()
            except _ABSENT:
                return None

    def read_many(self, names: list[str]) -> list[bytes | None]:
        return [self.read(name) for name in names]

    def names(self, folder: str) -> list[str]:
        """Sorted; hidden ones are not ours: file managers leave them wherever they look."""
        with self._explained(_READ):
            try:
                found = os.listdir(self.root / folder)
            except _ABSENT:
                return []
        return sorted(name for name in found if not name.startswith("."))

    def stat(self, name: str) -> tuple[int, float] | None:
        with self._explained(_READ):
            try:
                found = (self.root / name).stat()
            except _ABSENT:
                return None  # and nothing else: what only cannot be looked at is not gone
        return found.st_size, found.st_mtime

    def remove(self, name: str) -> None:
        with self._explained():
            (self.root / name).unlink(missing_ok=True)

    def upload(self, file: Path, name: str, report: Report) -> None:
        with self._explained(), self.scratch() as scratch:
            with file.open("rb") as source, (scratch / "file").open("wb") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    report(len(piece))
            self.move_in(scratch / "file", name)

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        with (self.root / name).open("rb") as file:
            file.seek(start)
            while piece := file.read(_PIECE):
                yield piece

    # what only a disk can do

    def move_in(self, file: Path, name: str) -> None:
        """Give a finished file of the scratch space its name; nobody writes to it any more."""
        path = self.root / name
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            os.chmod(file, 0o444)
            os.replace(file, path)
            file.unlink(missing_ok=True)  # two names of the same file are not replaced
            _flush_directory(path.parent)

    def move_aside(self, name: str) -> Path:
        """Keep what is damaged where nobody takes it for whole; says where."""
        aside = self.root / "damaged" / f"{Path(name).name}.{time.time_ns()}"
        with self._explained():
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / name, aside)
        return aside

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory in the same tree for files on their way in; gone afterwards.

        It may take days to fill, so it is held: nobody takes it for what a dead process left.
        """
        folder = self.root / "tmp"
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
        try:
            with self._explained():
                held = hold(path)
            with held:
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def kept(self, name: str) -> Iterator[Path]:
        """A directory under ``work/`` that outlives its process; an empty one if it is in use.

        Two processes may be at the same work without knowing it; only one of them gets the name.
        """
        path = self.root / "work" / name
        with self._explained():
            path.mkdir(parents=True, exist_ok=True)
            held = take(path)
        if held is None:
            with self.scratch() as other:
                yield other
        else:
            with held:
                yield path

    def sweep(self) -> None:
        """Remove temporary files that a process of this machine left behind when it died, or one
        that seems to have died long ago."""
        for name in self.names("tmp"):
            path = self.root / "tmp" / name
            with contextlib.suppress(OSError):
                newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
                if time.time() - newest > patience(path):
                    shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, doing: str = "write to") -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise explain(error, self.root, doing) from error


def is_full(error: BaseException) -> bool:
    """Is a full disk behind the error, or a limit on the size of files?"""
    return any(_is(error, number) for number in _FULL)


def _is(error: BaseException, number: int) -> bool:
    """Libraries written in Rust say it in words alone."""
    return getattr(error, "errno", None) == number or f"(os error {number})" in str(error)


def explain(error: BaseException, root: Path, doing: str = "write to") -> StoreError:
    """What a failed call means for the user, and what to do; ``doing`` is what it was to do."""
    if _is(error, errno.EFBIG):
        return StoreError(
            f"a file in the store {root} would be larger than files may be here (`ulimit -f`, or "
            "its file system): raise that limit, or put the store elsewhere with --store. What was "
            "saved stays, and the same command goes on from it"
        )
    if is_full(error):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(root).free / 2**20
            return StoreError(
                f"no space left in the store {root} ({free:.0f} MiB free): free some, or put the "
                "store elsewhere with --store. What was saved stays, and the same command goes on "
                "from it"
            )
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        which = f" ({getattr(error, 'filename', None)})" if doing == _READ else ""
        return StoreError(
            f"cannot {doing} the store {root}: {os.strerror(number)}{which}. Give a directory that "
            f"you may {doing} with --store"
        )
    if number in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return StoreError(
            f"{root} can be no store: {os.strerror(number)}. Give another directory with --store"
        )
    return StoreError(f"the store {root} failed: {error}")


def _no_links(root: Path, error: OSError) -> OSError | StoreError:
    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
        return StoreError(
            f"the file system of {root} has no hard links, which the store needs so that two "
            "processes never take the same work: give a directory on another disk with --store. "
            f"As a copy it will do: pipeline push {root}"
        )
    return error


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    """Make a new name survive a power cut; systems that cannot are left as they are."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link(source: Path, target: Path) -> None:
    """Give a file another name; copy it where that cannot be, as between two file systems.

    The bytes may have two names then: replace such a file, never write into it.
    """
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
