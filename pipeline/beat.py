"""Is the owner of a claim still alive? Judged without comparing any two clocks.

    beat/<key>/<owner>          a nonce and the owner's progress, rewritten while it lives
    beat/<key>/<owner>.lock     locked by the owner's process, and by nobody else

On the same machine the operating system knows: a lock on a file ends with the process that holds
it, however it died. From anywhere else an owner is dead when its beat has not changed for
``DEAD_AFTER`` seconds of the observer's own monotonic clock; wall clocks of two machines are never
compared. Both may be wrong about a process that was merely stopped. That costs nothing but its work
since the last checkpoint: the log fences it off (log.py).
"""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.log import Entry
from pipeline.store import Store

try:
    import fcntl
except ImportError:  # Windows: only unchanged beats tell there
    fcntl = None

BEAT_EVERY = 2.0  # seconds
DEAD_AFTER = 60.0


def machine_id() -> str:
    """The same for every process (and container) under one running kernel, and only for those."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


class Beat:
    """Shows that this process lives and works on a key; a context manager."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.owner = f"{platform.node() or 'host'}-{os.getpid()}-{secrets.token_hex(4)}"
        self.name = f"beat/{key}/{self.owner}"
        self.progress: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def __enter__(self) -> "Beat":
        self._write()
        # the lock file must be locked before the claim that points to it can be seen
        self._lock = (self.store.root / f"{self.name}.lock").open("wb")
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.store.remove(self.name)
            self.store.remove(f"{self.name}.lock")
        self._lock.close()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_EVERY):
            # a failed beat is no reason to stop: the next one may reach the disk
            with contextlib.suppress(OSError, ValueError):
                self._write()

    def _write(self) -> None:
        beat = {"nonce": secrets.token_hex(8), "progress": self.progress}
        self.store.replace(self.name, json.dumps(beat).encode())


def bury(store: Store, key: str, claim: Entry) -> None:
    """Remove what the dead owner of a claim has left behind."""
    name = f"beat/{key}/{claim.body['owner']}"
    with contextlib.suppress(OSError):
        store.remove(name)
        store.remove(f"{name}.lock")


class Watch:
    """Observes the owner of a claim over time."""

    def __init__(self, store: Store, key: str, claim: Entry) -> None:
        self.store, self.claim = store, claim
        self.name = f"beat/{key}/{claim.body['owner']}"
        self._seen: bytes | None = None
        self._since = time.monotonic()

    def alive(self) -> bool:
        """False once the owner is known or presumed to be dead."""
        beat = self.store.read(self.name)
        if beat != self._seen:
            self._seen, self._since = beat, time.monotonic()
        if fcntl is not None and self.claim.body.get("machine_id") == machine_id():
            try:
                with (self.store.root / f"{self.name}.lock").open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False  # nobody holds it
            except FileNotFoundError:
                return False
            except OSError:
                pass  # locked: the process is there, but it may hang
        return time.monotonic() - self._since < DEAD_AFTER

    def progress(self) -> dict[str, Any]:
        """What the owner last said of its progress; empty if it said nothing."""
        try:
            return json.loads(self.store.read(self.name) or b"{}").get("progress", {})
        except ValueError:
            return {}
