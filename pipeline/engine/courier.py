"""Checkpoints on their way to the store, in a thread of their own: training never waits for them.

One is on its way at a time, and one may wait behind it; a newer one takes the waiting one's place.
So a slow network costs how often a checkpoint arrives and nothing else, and a store that is away
costs a line on the screen: the newest is kept on this machine's disk, whole, and this machine can
go on from it whatever happens to the network. (A process that is killed loses the one that waits
behind another.) A process that is asked to stop goes on sending as long as something moves.

Cost: the disk holds up to two checkpoints more than the store keeps.
"""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreAway
from pipeline.store.store import Store

_RETRY = 5.0  # seconds between attempts while the store is away
SEND_WITHIN = 600.0  # how long an ending process goes on sending
AWAY_WITHIN = 20.0  # and how long it tries if nothing gets through


@dataclass
class Checkpoint:
    """One to be carried; ``body`` is its log entry, as soon as its files have become blobs."""

    step: int
    seconds: float
    folder: Path  # what is in it are its files; it is ours to move them
    returns: int = 0  # how often the stage had gone back by then
    body: dict[str, Any] | None = None


class Cancelled(Exception):
    """What is on its way is not needed any more."""


def attend(store: Store, note: Callable[[str], None], stopping: Callable[[], bool]) -> None:
    """Let ``note`` tell of a place that is silent. Once ``stopping()`` is true it is waited for as
    long as the courier waits at the end, whoever asks it for whatever."""
    if store.remote is not None:
        from pipeline.store.remote import Remote  # which a directory need not load

        if isinstance(store.remote, Remote):
            store.remote.attend(note, stopping, AWAY_WITHIN)


class Courier:
    """Carries checkpoints with ``carry``, which raises StoreAway if it should be tried again.

    Everything but ``report`` is for the thread that made the courier.
    """

    def __init__(self, carry: Callable[[Checkpoint], None], note: Callable[[str], None]) -> None:
        self._carry, self._note = carry, note
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._carried: Checkpoint | None = None
        self._away = self._ending = self._cancelled = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self.sent = 0  # bytes of the one on its way
        self._moved = 0.0  # when the last of them went

    def submit(self, checkpoint: Checkpoint) -> None:
        """Carry this one next, in place of any that waits. Raises what ``check`` does."""
        self.check()
        with self._changed:
            replaced, self._waiting = self._waiting, checkpoint
            self._changed.notify_all()
        if replaced is not None:
            shutil.rmtree(replaced.folder, ignore_errors=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raises what ended the carrying, if anything did: Lost, or a StoreError for the user."""
        if self._failure is not None:
            raise self._failure

    def report(self, count: int) -> None:
        """Told the bytes that went out; raises Cancelled if the rest is not wanted."""
        self.sent += count
        if count > 0:
            self._moved = time.monotonic()
        if self._cancelled:
            raise Cancelled

    def finish(self, shown: Callable[[int, int], None]) -> int | None:
        """Wait until all has arrived, or it takes too long; the newest step that has not, or None.

        ``shown(step, bytes sent)`` is called several times a second and may raise to end the wait.
        """
        start = self._moved = time.monotonic()
        self._ending = True
        with self._changed:
            while (last := self._waiting or self._carried) and self._failure is None:
                now = time.monotonic()
                given_up = self._away and now - self._moved > AWAY_WITHIN
                if given_up or now - start > SEND_WITHIN:
                    return last.step
                shown(last.step, self.sent)
                self._changed.wait(0.2)
        self.check()
        return None

    def cancel(self) -> Checkpoint | None:
        """Stop carrying; the newest that has not arrived, if there is one."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        left, self._waiting = self._waiting, None
        return left

    def _run(self) -> None:
        while (checkpoint := self._next()) is not None:
            try:
                self.sent = 0
                try:
                    self._carry(checkpoint)
                except StoreAway as error:
                    self._put_back(checkpoint, error)
                    continue
                if self._away:
                    self._note(f"the store is back and has step {checkpoint.step:,}")
                self._away = False
            except Cancelled:
                return
            except Exception as error:  # whatever it is, the main thread must see it
                self._failure = error
            finally:
                with self._changed:
                    self._carried = None
                    self._changed.notify_all()

    def _next(self) -> Checkpoint | None:
        with self._changed:
            while self._waiting is None and not self._cancelled and self._failure is None:
                self._changed.wait()
            if self._cancelled or self._failure is not None:
                return None
            self._carried, self._waiting = self._waiting, None
            return self._carried

    def _put_back(self, checkpoint: Checkpoint, error: StoreAway) -> None:
        with self._changed:
            first, self._away = not self._away, True
            self._waiting = self._waiting or checkpoint
        if first and not self._ending:
            self._note(f"{error}. Training goes on; checkpoints wait on this machine")
        with self._changed:
            if not self._cancelled:
                self._changed.wait(_RETRY)
