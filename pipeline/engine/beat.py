"""Is the owner of a claim still alive? Judged without comparing any two clocks.

    beat/<key>/<owner>          a nonce and the owner's progress, rewritten while it lives
    beat/<key>/<owner>.lock     on the owner's own disk; locked by its process, and by nobody else
    stop/<owner>                who asks the owner to stop, when and why; it looks at every beat

On the same machine the operating system knows: a lock on a file ends with the process that holds
it, however it died. From anywhere else an owner is dead when its beat has not changed for
``DEAD_AFTER`` seconds of the observer's own monotonic clock; wall clocks of two machines are never
compared, and time in which the store could not be reached does not count. Both may be wrong about a
process that was merely stopped. That costs nothing but its work since the last checkpoint: the log
fences it off (log.py).

Nobody can make an owner stop: it is asked, and ends as if it were interrupted where it runs.

Cost: on a store elsewhere one small write and one read every ``REMOTE_EVERY`` seconds, 9,000 a day.
"""

import contextlib
import getpass
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.engine.log import Entry, now, stamp
from pipeline.errors import StoreAway, StoreError
from pipeline.hashing import canonical
from pipeline.redact import redacted
from pipeline.store.locks import machine_id
from pipeline.store.store import Store
from pipeline.ui import age

try:
    import fcntl
except ImportError:  # Windows: only unchanged beats tell there
    fcntl = None

BEAT_EVERY, DEAD_AFTER = 2.0, 60.0  # seconds, in a directory
REMOTE_EVERY, REMOTE_DEAD_AFTER = 10.0, 120.0  # where a write costs money and may take its time


def me() -> str:
    """A name for this process that tells people where it runs and that no other has."""
    return f"{platform.node() or 'host'}-{os.getpid()}-{secrets.token_hex(4)}"


class Beat:
    """Shows that this process lives and works on a key; a context manager.

    ``asked`` is told, by a thread of the beat's own, who asks it to stop and why.
    """

    def __init__(
        self, store: Store, key: str, asked: Callable[[str], None] = lambda why: None
    ) -> None:
        self.store, self.asked = store, asked
        self.owner = me()
        self.name = f"beat/{key}/{self.owner}"
        self.progress: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def __enter__(self) -> "Beat":
        self.store.insist(self._write)
        # the lock file must be locked before the claim that points to it can be seen
        lock = self.store.disk.path(f"{self.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock.open("wb")
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)  # a network that hangs must not keep us
        _remove(self.store, self.name)
        withdraw(self.store, self.owner)
        self._lock.close()

    def _run(self) -> None:
        every = REMOTE_EVERY if self.store.remote else BEAT_EVERY
        while not self._stop.wait(every):
            # a failed beat is no reason to stop: the next one may arrive
            with contextlib.suppress(OSError, ValueError):
                self._write()
            with contextlib.suppress(OSError, ValueError):
                if (flag := self.store.records.read(_flag(self.owner))) is not None:
                    self.asked(_words(flag))

    def _write(self) -> None:
        beat = {
            **stamp(),
            "progress": self.progress,
        }
        self.store.records.replace(self.name, json.dumps(beat).encode())


def young(at: str | None) -> bool:
    """Was a beat a moment ago, or is it still to come by a clock that goes wrong? For people: two
    clocks are compared."""
    with contextlib.suppress(ValueError, TypeError):
        return age(at or "") < REMOTE_DEAD_AFTER
    return False


def bury(store: Store, key: str, claim: Entry) -> None:
    """Remove what the dead owner of a claim has left behind."""
    _remove(store, f"beat/{key}/{claim.body['owner']}")
    withdraw(store, claim.body["owner"])


def ask_to_stop(store: Store, owner: str, why: str) -> None:
    """Ask the process of that name to stop; it sees it at its next beat."""
    flag = {
        "at": now(),
        "by": person(),
        "why": redacted(why),
    }
    store.replace(_flag(owner), canonical(flag))


def asked_to_stop(store: Store, owner: str) -> str | None:
    """Who asks the process of that name to stop, in words; None if nobody does."""
    flag = store.read(_flag(owner))
    return None if flag is None else _words(flag)


def withdraw(store: Store, owner: str) -> None:
    """Nobody asks that process any more: it is gone, or about to be."""
    with contextlib.suppress(OSError, StoreError):
        store.records.remove(_flag(owner))


def _flag(owner: str) -> str:
    return f"stop/{owner}"


def _words(flag: bytes) -> str:
    """``ada@laptop asked for it: the card is needed``; any flag counts, even one cut short."""
    try:
        told = json.loads(flag)
        by, why = str(told["by"]), str(told["why"])
    except (ValueError, KeyError, TypeError):
        return "somebody asked for it"
    return f"{by} asked for it" + (f": {why}" if why else "")


def person() -> str:
    """``ada@laptop``, as far as the system knows."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for its user
        user = "somebody"
    return f"{user}@{platform.node() or 'host'}"


def _remove(store: Store, name: str) -> None:
    with contextlib.suppress(OSError, StoreError):
        store.records.remove(name)  # if this fails the lock stays, and tells that nobody holds it
        store.disk.remove(f"{name}.lock")


class Watch:
    """Observes the owner of a claim over time."""

    def __init__(self, store: Store, key: str, claim: Entry) -> None:
        self.store, self.claim = store, claim
        self.name = f"beat/{key}/{claim.body['owner']}"
        self._seen: bytes | None = None
        self._since = time.monotonic()

    def alive(self) -> bool:
        """False once the owner is known or presumed to be dead."""
        try:
            beat = self.store.records.read(self.name)
        except StoreAway:
            self._since = time.monotonic()  # its beats may not arrive either
            return True
        if beat != self._seen:
            self._seen, self._since = beat, time.monotonic()
        if self._unlocked():
            return False
        after = REMOTE_DEAD_AFTER if self.store.remote else DEAD_AFTER
        return time.monotonic() - self._since < after

    def _unlocked(self) -> bool:
        """Does the system know that the owner is gone? A process that holds its lock may hang."""
        if fcntl is None or self.claim.body.get("machine_id") != machine_id():
            return False
        try:
            with self.store.disk.path(f"{self.name}.lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except FileNotFoundError:
            return self.store.remote is None  # a container's disk may be another than ours
        except OSError:
            return False

    def last(self) -> dict[str, Any]:
        """The owner's last beat: ``at`` by its own clock, ``progress``; empty if there is none."""
        try:
            return json.loads(self.store.read(self.name) or b"{}")
        except ValueError:
            return {}

    def progress(self) -> dict[str, Any]:
        """What the owner last said of its progress; empty if it said nothing."""
        return self.last().get("progress", {})
