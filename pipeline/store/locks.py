"""Locks between processes of one machine; the system lets go of one when its holder dies."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path


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
