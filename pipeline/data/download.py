"""Fetch a remote file once: resumed where it stopped, checked, and visible only when whole.

    <store>/cache/downloads/<hash of the URL>/       or below IGNITE_CACHE, if that is set
        NAME                 the whole file; this name exists only after every check
        NAME.json            its size and sha256, written before it got that name
        NAME.partial         what has arrived; a killed download goes on from here
        NAME.partial.json    which version of the remote file that is the beginning of
        NAME.lock            held while somebody downloads
        listing.json         for a URL with a *: the files that it stood for

A remote file is taken to stay what it is: it is fetched once, and what is fetched later under the
same URL must have the same sha256. To take a new version in, delete its directory.

What is accepted has the sha256 that is known for it. For a file that is fetched for the first time
none is known; then its size must be the announced one, and the server must describe the file (ETag,
date) after the download as before it. A partial file is gone on with only if one of the two can
vouch that both ends belong together; else the download starts again. A server that tells neither a
size nor the end of what it sends is refused.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.hashing import digest, file_digest
from pipeline.redact import redacted
from pipeline.store.disk import explain
from pipeline.store.locks import alone

Progress = Callable[[int, int | None, str], None]

ATTEMPTS = 4  # in a row without a byte of progress
PAUSE = 0.5  # seconds before the second attempt; doubled for each one after it
CHUNK = 1 << 20
# what file systems call the marks by which a version of a file is told from another
VERSION_MARKS = ("ETag", "etag", "Content-MD5", "md5Hash", "Digest", "blob_id")
VERSION_DATES = ("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")


class _Failed(Exception):
    """The other side failed; ``final`` if asking again would not help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def listing(url: str, store_root: Path, *, fetch: bool) -> list[tuple[str, Path]] | None:
    """(URL, local path) of each file that a URL, or a pattern with a ``*``, stands for.

    None for a pattern that was never looked up, unless ``fetch`` allows to ask now. Raises
    ValueError for an unknown kind of URL and for a pattern that nothing matches.
    """
    cache = Path(os.environ.get("IGNITE_CACHE", store_root / "cache"))  # or one for all stores
    folder = cache / "downloads" / digest(url.encode())[:16]
    if "*" not in url:
        return [(url, folder / name_of(url))]
    known = _read_json(folder / "listing.json")
    if known is None and fetch:
        known = _look_up(url)
        with _writing(store_root):
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / "listing.json", known)
    if known is None:
        return None
    within = "".join(url.partition("::")[1:])  # zip://*.txt::https://...
    urls = [(each if "://" in each else _above(url) + each) + within for each in known]
    return [(each, folder / f"{at:05d}-{name_of(each)}") for at, each in enumerate(urls)]


def _above(url: str) -> str:
    """What a pattern begins with, to the last / before its *; it may hold a password."""
    return url[: url.index("*")].rpartition("/")[0] + "/"


def name_of(url: str) -> str:
    """The file name at the end of a URL, short enough for every file system."""
    parts = urlsplit(url.split("::")[0])
    name = unquote(parts.path).rstrip("/").rsplit("/", 1)[-1] or parts.hostname or ""
    return re.sub(r"[^\w.+*-]", "_", name)[-100:].lstrip(".") or "data"


def recorded(target: Path) -> str | None:
    """The sha256 of a file that was fetched before, whether or not it is still there."""
    known = _read_json(target.with_name(target.name + ".json"))
    return known["sha256"] if known else None


def fetch(url: str, target: Path, expected: str | None, progress: Progress | None) -> str:
    """Download ``url`` to ``target``; returns its sha256, which must be ``expected`` if given.

    Raises ValueError that says what to do next, StoreError if the bytes cannot be written, and
    whatever ``progress`` raises; a partial file then stays for the next call.
    """
    progress = progress or (lambda done, total, unit: None)
    partial = target.with_name(target.name + ".partial")
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target, lambda: progress(_size(partial), None, "B")):
            known = expected or recorded(target)
            if known and target.is_file() and file_digest(target) == known:
                return known  # another process was faster
            return _persist(url, target, partial, known, progress)


def _persist(
    url: str, target: Path, partial: Path, expected: str | None, progress: Progress
) -> str:
    failures, furthest = 0, _size(partial)
    while True:
        try:
            _download(url, partial, expected, progress)
            break
        except _Failed as error:
            failures = 1 if _size(partial) > furthest else failures + 1
            furthest = max(furthest, _size(partial))
            if error.final or failures == ATTEMPTS:
                raise ValueError(_advice(url, str(error), _size(partial))) from error
        time.sleep(PAUSE * 2 ** (failures - 1))
    found, size = file_digest(partial), _size(partial)
    if expected and found != expected:
        partial.unlink()
        raise ValueError(
            f"{redacted(url)} is not the file that it should be: expected sha256 {expected}, got "
            f"{found} ({size:,} bytes). The partial file was removed. Run the same command again; "
            "if it happens twice, the file has changed at its source or on the way. To accept a "
            f"new version, download it yourself{_by_hand(url)}"
        )
    _write_json(target.with_name(target.name + ".json"), {"sha256": found, "size": size})
    os.replace(partial, target)
    partial.with_name(partial.name + ".json").unlink()
    return found


def _download(url: str, partial: Path, expected: str | None, progress: Progress) -> None:
    """One attempt to complete the partial file. Raises _Failed, and leaves what has arrived."""
    system, path = _file_system(url)
    version = _version(system, path)
    size = version["size"]
    offset = _resumable(partial, version, vouched=expected is not None)
    with partial.open("ab") as file:
        file.truncate(offset)
        # only now: a kill in between must not leave old bytes under the new version's name
        _write_json(partial.with_name(partial.name + ".json"), version)
        progress(offset, size, "B")
        if offset != size:
            with _asked():
                stream, start, ends = _open(system, path, size, offset)
            with contextlib.closing(stream):
                if start != offset:
                    file.truncate(start)
                for chunk in _chunks(stream):
                    start += file.write(chunk)
                    file.flush()
                    progress(start, size, "B")
            if size is None and expected is None and not ends:
                raise _Failed(
                    "the server does not say how long the file is, so that a whole download "
                    "cannot be told from one that was cut off",
                    final=True,
                )
        os.fsync(file.fileno())
    if size is not None and (arrived := _size(partial)) != size:
        raise _Failed(f"the connection ended after {arrived:,} of {size:,} bytes")
    if expected is None and _version(system, path) != version:
        partial.unlink()
        raise _Failed("the file changed while it was downloaded")


def _resumable(partial: Path, version: dict[str, Any], vouched: bool) -> int:
    """How many bytes of the partial file can be kept."""
    marked = len(version) > 1 and version == _read_json(partial.with_name(partial.name + ".json"))
    have = _size(partial)
    if version["size"] is None or have > version["size"]:
        return 0
    return have if vouched or marked else 0


# the other side, through fsspec


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        options = {
            # the file as it lies there; sizes and offsets would not fit anything else
            "headers": {"Accept-Encoding": "identity"},
            "client_kwargs": {
                "auto_decompress": False,
                "trust_env": True,  # proxies
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
            },
        }
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"cannot open {redacted(url)}: {error}. Install what it asks for, or give a file, a "
            "directory or an http(s) URL"
        ) from error


def _look_up(url: str) -> list[str]:
    system, path = _file_system(url)
    try:
        with _asked():
            found = system.glob(path, detail=True)
    except _Failed as error:
        raise ValueError(_advice(url, str(error), 0)) from error
    names = sorted(name for name, info in found.items() if info["type"] == "file")
    if not names:
        raise ValueError(f"no file matches {redacted(url)}: check the pattern")
    return [system.unstrip_protocol(name).removeprefix(_above(url)) for name in names]


def _version(system: Any, path: str) -> dict[str, Any]:
    """The remote file's size (None: unknown) and the marks of its present version."""
    with _asked():
        system.invalidate_cache()
        info = system.info(path)
    if info["type"] != "file":
        raise _Failed("it is a directory; give a pattern such as .../*.parquet", final=True)
    marks = {name: str(info[name]) for name in VERSION_MARKS + VERSION_DATES if info.get(name)}
    return {"size": info["size"], **marks}


def _open(system: Any, path: str, size: int | None, offset: int) -> tuple[Any, int, bool]:
    """(stream, offset at which it really begins, whether its end can be told from a cut)."""
    if "http" not in system.protocol:
        stream = system.open(path, "rb")
        stream.seek(offset)
        return stream, offset, True
    # block_size 0: one request, read as it arrives; a known size saves fsspec a request
    if not offset:
        stream = system.open(path, "rb", block_size=0, size=size)
        return stream, 0, stream.r.headers.get("Transfer-Encoding") == "chunked"
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
    stream = system.open(path, "rb", block_size=0, size=size, headers=headers)
    content = stream.r.headers.get("Content-Range", "")
    went_on = stream.r.status == 206 and content.startswith(f"bytes {offset}-")
    return stream, offset if went_on else 0, True


def _chunks(stream: Any) -> Iterator[bytes]:
    while True:
        with _asked():
            chunk = stream.read(CHUNK)
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    """Turn whatever a file system raises into _Failed; each kind has exceptions of its own."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error  # fsspec calls every failure a missing file
        status = getattr(cause, "status", None)
        missing = isinstance(error, FileNotFoundError) and error.__cause__ is None
        final = isinstance(cause, PermissionError) or missing
        if status is not None:
            final = 400 <= status < 500 and status not in (408, 416, 425, 429)
        text = f"HTTP status {status}" if status else ("not found" if missing else str(cause))
        raise _Failed(redacted(text) or type(cause).__name__, final) from error


# words


def _advice(url: str, reason: str, have: int) -> str:
    kept = f"; it goes on from the {have:,} bytes that are here" if have else ""
    return (
        f"cannot download {redacted(url)}: {reason}. Check the address and the network and run the "
        f"same command again{kept}. Or download it yourself{_by_hand(url)}"
    )


def _by_hand(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return " and give the file with --data FILE"
    name = name_of(url)
    return f": `curl -L -o {name} '{redacted(url)}'`, then `--data {name}`"


# files on this side


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, root) from error
