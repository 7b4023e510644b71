"""Machine code in files: it is run, so nobody else may have written it.

It is kept in the machine's cache, and in a temporary folder of this user's: one may be closed to
us, and a rented machine's or a test's cache is its own. A folder counts if it is no link, ours (or
root's), and closed to others' writing; below a place that all may write to, the folder above it as
well. A file is opened first and judged then, so nobody can change it for another in between.
"""

import contextlib
import hashlib
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_FOLDER = "kernels"
_FORMAT = 1
_PATIENCE = 120  # seconds
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def read(name: str) -> bytes | None:
    """What is kept under a name, if it is whole."""
    return next(filter(None, (_read(folder / name) for folder in _folders())), None)


def write(name: str, code: bytes) -> bool:
    """Keep code, whole or not at all. False: it can be kept nowhere."""
    done = [_write(folder, name, code) for folder in _folders(make=True)]
    return any(done)


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Let one process work at a time. One that has waited for _PATIENCE works all the same, as does
    any where no file can be locked.
    """
    with contextlib.ExitStack() as held:
        for folder in _folders(make=True):
            with contextlib.suppress(OSError, ImportError):
                import fcntl

                lock = held.enter_context(_opened(folder / "lock", os.O_RDWR | os.O_CREAT))
                _wait(lambda lock=lock: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
        yield


def _wait(take: Callable[[], object]) -> None:
    """Try to take a lock until it is had, or patience ends."""
    end = time.monotonic() + _PATIENCE
    told = False
    while time.monotonic() < end:
        try:
            take()
            return
        except BlockingIOError:
            if not told:
                print("another process is compiling; waiting for it", file=sys.stderr)
            told = True
            time.sleep(0.05)


def _folders(make: bool = False) -> Iterator[Path]:
    """Those that are there, or can be made, and are safe."""
    home = os.environ.get("IGNITE_CACHE")
    if not home:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        home = os.path.join(cache, "ignite-llm") if os.path.isabs(cache) else ""
    if home and _is_safe(cached := Path(home) / _FOLDER, make):
        yield cached
    import tempfile  # seldom needed, and slow to import

    who = os.getuid() if hasattr(os, "getuid") else "me"
    with contextlib.suppress(OSError):  # there may be no such folder at all
        own = Path(tempfile.gettempdir()) / f"ignite-llm-{who}"
        if _is_safe(own, make) and _is_safe(own / _FOLDER, make):
            yield own / _FOLDER


def _is_safe(folder: Path, make: bool) -> bool:
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_ours(found)


def _is_ours(found: os.stat_result) -> bool:
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022


def _opened(path: Path, flags: int):
    """The file itself, not what a link leads to."""
    return open(os.open(path, flags | _NO_LINK, 0o600), "rb" if flags == os.O_RDONLY else "wb")


def _read(path: Path) -> bytes | None:
    try:
        with _opened(path, os.O_RDONLY) as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            head, _, code = file.read().partition(b"\n")
    except OSError:
        return None
    return code if head == _head(code) else None


def _write(folder: Path, name: str, code: bytes) -> bool:
    aside = folder / f"{name}.{os.getpid()}.{threading.get_ident()}"
    try:
        with _opened(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            file.write(_head(code) + b"\n" + code)
        os.replace(aside, folder / name)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return _read(folder / name) == code


def _head(code: bytes) -> bytes:
    return json.dumps({"format": _FORMAT, "sha256": hashlib.sha256(code).hexdigest()}).encode()
