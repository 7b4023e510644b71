"""Where results live: named records created once, and blobs named by their content.

    blob/ab/<sha256>     bytes, written once, verified whenever they are read
    log/..., beat/..., ref/...    small records; what they mean is said in log.py
    tmp/                 files that are not whole yet; nobody reads them

No step is ever half done. A file is written under ``tmp/`` in the store's own tree, flushed to the
disk, and then given its name by one atomic call: ``link`` where the name must be new (it fails if
the name exists, so of any number of processes exactly one wins), ``replace`` where the last writer
may win. A process that dies leaves at most a temporary file, which ``sweep`` removes.

This is the local store; it expects a file system with hard links.
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
from pipeline.keys import file_digest
from pipeline.redact import redacted

FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """A store in a local directory, which is made when something is first written to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str, data: bytes) -> bool:
        """Create ``name`` with ``data``; False if it already holds something else.

        Exclusive among any number of processes. On any error the name is read back: if it holds
        our bytes, we won and only the answer was lost.
        """
        path = self.root / name
        with self._explained(name), self.scratch() as scratch:
            temporary = scratch / "record"
            _write(temporary, data)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, path)
            except OSError as error:
                if not path.exists():
                    raise _no_links(self.root, error) from error
                return path.read_bytes() == data
            _flush_directory(path.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Give ``name`` new content; the last writer wins, readers see the old or the new."""
        path = self.root / name
        with self._explained(name), self.scratch() as scratch:
            (scratch / "record").write_bytes(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / "record", path)

    def read(self, name: str) -> bytes | None:
        """The content of a record, or None where there is none."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The names directly inside a folder, sorted; none where there is no such folder.

        Hidden ones are not ours: file managers leave them wherever they look.
        """
        try:
            found = os.listdir(self.root / folder)
            return sorted(name for name in found if not name.startswith("."))
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    # blobs

    def put(self, file: Path) -> str:
        """Move a file of this store's scratch space in as a blob; returns its sha256."""
        name = file_digest(file)
        path = self.blob_path(name)
        with self._explained(name):
            if path.exists() and path.stat().st_size == file.stat().st_size:
                file.unlink()
                return name
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            os.chmod(file, 0o444)
            os.replace(file, path)
            _flush_directory(path.parent)
        return name

    def has(self, blob: str, size: int) -> bool:
        """Is the blob there, as far as its size tells? (``blob`` looks at every byte.)"""
        try:
            return self.blob_path(blob).stat().st_size == size
        except OSError:
            return False

    def blob(self, name: str) -> Path:
        """The path of a blob, after its bytes were held against its name.

        Raises StoreError if it is missing or damaged; a damaged one is moved out of the way first,
        so that the stage that made it makes it again.
        """
        path = self.blob_path(name)
        if not path.exists():
            raise StoreError(
                f"blob {name[:12]} is missing from {self.root}: run `pipeline run` again, "
                "and the stage that made it will make it again"
            )
        if (found := file_digest(path)) != name:
            aside = self.root / "damaged" / f"{name}.{time.time_ns()}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
            raise StoreError(
                f"blob {name[:12]} is damaged: its bytes hash to {found[:12]}. It was moved to "
                f"{aside}. Run `pipeline run` again: the stage that made it will make it again. "
                "If this happens twice, check the disk"
            )
        return path

    def blobs(self) -> Iterator[str]:
        for folder in self.names("blob"):
            yield from self.names(f"blob/{folder}")

    def remove_blob(self, name: str) -> None:
        self.blob_path(name).unlink(missing_ok=True)

    def blob_path(self, name: str) -> Path:
        """Where a blob lies, unverified: for showing to people."""
        return self.root / "blob" / name[:2] / name

    # scratch space

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory in the store's tree for files on their way in; gone afterwards."""
        folder = self.root / "tmp"
        with self._explained("tmp"):
            folder.mkdir(parents=True, exist_ok=True)
            path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self, older_than: float = 24 * 3600) -> None:
        """Remove temporary files that a process which died long ago left behind."""
        for name in self.names("tmp"):
            path = self.root / "tmp" / name
            with contextlib.suppress(OSError):
                newest = max(each.stat().st_mtime for each in (path, *path.iterdir()))
                if time.time() - newest > older_than:
                    shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain(error, self.root) from error


def open_store(place: str) -> Store:
    """The store that ``--store`` names. Raises StoreError for what can be none."""
    if not place or "://" in place:
        raise StoreError(
            f"--store {redacted(place)!r}: a store is a directory of this machine: give its path"
        )
    root = Path(os.path.expanduser(place))
    if root.exists() and not root.is_dir():
        raise StoreError(f"--store {place} is a file: give a directory")
    return Store(root)


def is_full(error: BaseException) -> bool:
    """Is a full disk behind the error? Libraries written in Rust say so in words alone."""
    return getattr(error, "errno", None) in FULL or f"os error {errno.ENOSPC}" in str(error)


def explain(error: BaseException, root: Path) -> StoreError:
    """What a failed write means for the user, and what to do."""
    if is_full(error):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(root).free / 2**20
            return StoreError(
                f"no space left in the store {root} ({free:.0f} MiB free): free some, or put the "
                "store elsewhere with --store. Nothing is lost; the same command goes on"
            )
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"cannot write to the store {root}: {os.strerror(number)}. Give a directory that you "
            "may write to with --store"
        )
    return StoreError(f"the store {root} failed: {error}")


def _no_links(root: Path, error: OSError) -> OSError | StoreError:
    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
        return StoreError(
            f"the file system of {root} has no hard links, which the store needs so that two "
            "processes never take the same work: give a directory on another disk with --store"
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
