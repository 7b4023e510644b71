"""From what ``--store`` says to a store that may be trusted with it."""

import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import StoreError
from pipeline.hashing import digest
from pipeline.redact import redacted
from pipeline.store.disk import Disk
from pipeline.store.store import Store

_PROBED = "cache/probed"


def guest(place: str) -> Store:
    """A store to read from or to copy to, beside the one that is worked in."""
    store = open_store(place)
    store.guest = True
    return store


def open_store(place: str, *, mirror: bool = False) -> Store:
    """The store of a path or an fsspec URL; nothing is read or written yet.

    A ``mirror`` is written by one process at a time and so may lie anywhere. Raises StoreError for
    what can be no store, or if what is needed for it is not installed.
    """
    if "://" in place and not place.startswith("file://"):
        from pipeline.store.remote import Remote

        remote = Remote(place)
        return Store(Disk(cache_of(remote.place)), remote, exclusive=not mirror)
    path = unquote(urlsplit(place).path) if place.startswith("file://") else place
    if not path or "\0" in path:
        raise StoreError(f"--store {redacted(place)!r}: give a directory or a URL such as s3://...")
    root = Path(os.path.expanduser(path))
    if root.exists() and not root.is_dir():
        raise StoreError(f"--store {place} is a file: give a directory")
    return Store(Disk(root), exclusive=not mirror)


def trust(store: Store) -> Store:
    """The store, after it has shown that of several processes only one can create a record.

    Asked once a machine. Raises StoreError if it cannot, because then two machines could do the
    same work and undo each other's.
    """
    if store.remote is not None and store.disk.read(_PROBED) is None:
        store.insist(store.remote.probe)
        store.disk.replace(_PROBED, b"it creates exclusively\n")
    return store


def cache_of(place: str) -> Path:
    """This machine's directory in front of a store elsewhere."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", place).strip("-")[:60]
    return _caches() / f"{name}-{digest(place.encode())[:8]}"


def _caches() -> Path:
    if "IGNITE_CACHE" in os.environ:
        return Path(os.environ["IGNITE_CACHE"])
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "ignite-llm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home)) / "ignite-llm" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "ignite-llm"
