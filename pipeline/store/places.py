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
_KINDS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf", "sftp", "ssh", "http", "https")
_GIVE = "give a directory or a URL such as s3://bucket/folder"


def guest(place: str) -> Store:
    """A store to read from or to copy to, beside the one that is worked in."""
    store = open_store(place)
    store.guest = True
    return store


def check(place: str, *, writing: bool = True) -> None:
    """Raise StoreError if nothing can be meant by what a person typed, whatever lies where.

    Nobody but this machine's disk is asked. A slip must not become a directory of that name.
    """
    if "://" in place and not place.startswith("file://"):
        _check_url(place, writing)
        return
    if slip := _slip(place):
        raise StoreError(f"{slip}? For a directory of that name, write ./ before it")
    path = local_path(place)
    above = next(each for each in (path, *path.parents, Path("/")) if os.path.exists(each))
    if not os.path.isdir(above):
        raise StoreError(f"{above} is a file: {_GIVE}")


def _slip(place: str) -> str | None:
    """What was meant by something that looks like a URL or a path of another system."""
    kind, colon, rest = place.partition(":")
    if place.startswith("file://"):
        host = place.removeprefix("file://").partition("/")[0]
        return f"a file URL has three slashes: did you mean file:///{host}/..." if host else None
    if colon and kind in (*_KINDS, "memory"):
        return f"did you mean {redacted(f'{kind}://' + rest.lstrip('/'))}"
    if colon and kind == "file":
        return f"did you mean {rest}"
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", place):
        return f"{place} is a path of Windows, and this is another system: what is it called here"
    return None


def _check_url(place: str, writing: bool) -> None:
    from pipeline.store import backends

    protocol, shown = backends.checked(place), redacted(place)
    if protocol == "memory":
        raise StoreError(f"{shown} ends with this process and keeps nothing: {_GIVE}")
    if writing and protocol in ("http", "https"):
        raise StoreError(
            f"{shown}: over HTTP a place can only be read, with --from or `pipeline pull`: {_GIVE}"
        )
    if protocol not in _KINDS:
        import fsspec

        if protocol not in fsspec.available_protocols():
            raise StoreError(f"{shown}: there is no kind of place called {protocol}://: {_GIVE}")


def open_store(place: str, *, mirror: bool = False) -> Store:
    """The store of a path or an fsspec URL; nothing is read or written yet.

    A ``mirror`` is written by one process at a time and so may lie anywhere. Raises StoreError for
    what can be no store, or if what is needed for it is not installed.
    """
    if "://" in place and not place.startswith("file://"):
        from pipeline.store.remote import Remote

        remote = Remote(place)
        return Store(Disk(cache_of(remote.place)), remote, exclusive=not mirror)
    root = local_path(place)
    if os.path.exists(root) and not root.is_dir():
        raise StoreError(f"--store {place} is a file: give a directory")
    return Store(Disk(root), exclusive=not mirror)


def local_path(place: str) -> Path:
    """The directory that a path or a file URL names."""
    path = unquote(urlsplit(place).path) if place.startswith("file://") else place
    if not path or "\0" in path:
        raise StoreError(f"{redacted(place)!r} is no place: {_GIVE}")
    return Path(os.path.expanduser(path))


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
    return caches() / f"{name}-{digest(place.encode())[:8]}"


def caches() -> Path:
    """Where this machine keeps what stands in front of places elsewhere."""
    if "IGNITE_CACHE" in os.environ:
        return Path(os.environ["IGNITE_CACHE"])
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "ignite-llm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home)) / "ignite-llm" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "ignite-llm"
