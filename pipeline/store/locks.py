"""Locks between processes of one machine; the system lets go of one when its holder dies."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_HELD = ".held"  # in a folder; locked while it is in use
_DAY, _MINUTE = 24 * 3600.0, 60.0


def machine_id() -> str:
    """The same for every process (and container) under one running kernel, and only for those."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


@contextlib.contextmanager
def alone(target: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the target's lock, so that no two processes append to one partial file.

    ``waiting`` is called while another process holds it; it may raise to give up. Where there are
    no such locks (Windows), starting one at a time is left to the user.
    """
    with target.with_name(target.name + ".lock").open("ab") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(0.2)
        yield


def hold(folder: Path) -> IO[bytes]:
    """Show that a folder is in use, until what is returned is closed or this process dies."""
    file = (folder / _HELD).open("wb", buffering=0)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(machine_id().encode())  # not before: who reads it takes the lock's word
    return file


def take(folder: Path) -> IO[bytes] | None:
    """Hold a folder as above if nobody else does; None if somebody does, or it is gone."""
    try:
        file = (folder / _HELD).open("wb")
    except FileNotFoundError:
        return None
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), (folder / _HELD).stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except (ImportError, OSError):  # nobody can tell, as of a folder that is held
        return file
    file.close()
    return None


def abandoned(folder: Path) -> bool | None:
    """Is the process gone that held a folder? None where nobody can tell."""
    try:
        import fcntl

        with (folder / _HELD).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # no such locks here, or it was never held
        return None


def patience(folder: Path, grace: float = _DAY) -> float:
    """Seconds that a folder which processes hold stays after its newest file; endless if one does.

    A minute if the one that held it died on this machine, since its lock is taken a moment after it
    was made. Of another machine's a lock may say so wrongly, if both share a disk over a network,
    so that one has the ``grace``; and a day where nobody can tell.
    """
    gone = abandoned(folder)
    if gone is False:
        return math.inf
    if gone is None:
        return max(grace, _DAY)
    with contextlib.suppress(OSError):
        if (folder / _HELD).read_text() == machine_id():
            return _MINUTE
    return max(grace, _MINUTE)
