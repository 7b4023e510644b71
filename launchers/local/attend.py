"""Stay with a container until it has ended: its log, the signals that are for it, its exit code.

A thread copies the log; the main thread waits for it and passes signals on. The first Ctrl-C or
SIGTERM asks the container to save all and end, a second Ctrl-C kills it. The stream of a log ends
when the container does, but also when the engine restarts or a connection breaks, and says nothing
of which it was. It may even end before the last bytes of a container that has just ended. So the
container is asked each time; if it still runs, the log is followed again, and if it does not, read
once more to its end. What was shown before is passed over by counting bytes: times of two lines may
be equal.
"""

import signal
import struct
import threading
import time
from typing import Any, BinaryIO

from launchers.local.container import GRACE
from launchers.local.engine import EngineAway, plainly
from pipeline.cli.process import Asked

AWAY = 120.0  # seconds that the engine may take to restart
_PAUSE = 0.5  # seconds before asking again


class Unheard(Exception):
    """Nobody takes what is to be shown; the cause is the OSError that said so."""


class Log:
    """What a container prints, copied to an output, each byte once."""

    def __init__(self, client: Any, name: str, out: BinaryIO) -> None:
        self.client, self.name, self.out = client, name, out
        self.shown = 0

    def copy(self, follow: bool = False) -> None:
        """Show what is there and not shown yet; with ``follow``, until the stream ends."""
        skip = self.shown
        for chunk in self.client.api.logs(self.name, stream=True, follow=follow):
            fresh = chunk[skip:]
            skip -= len(chunk) - len(fresh)
            try:
                self.out.write(fresh)
                self.out.flush()
            except OSError as error:
                raise Unheard from error
            self.shown += len(fresh)

    def follow(self) -> None:
        """Show all until the container has ended. Raises EngineAway if nobody can tell."""
        from docker.errors import APIError
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        answered = time.monotonic()
        while True:
            try:
                self.copy(follow=True)
                if self._ended():
                    return
                answered = time.monotonic()
            except (RequestException, HTTPError, struct.error) as error:  # a header that is cut
                if isinstance(error, APIError) and error.is_client_error():
                    raise
                if time.monotonic() - answered > AWAY:
                    raise EngineAway(
                        f"the Docker engine has not answered for {AWAY:.0f} s: {self.name} may "
                        "still run; see `launch ps` when it is back"
                    ) from error
            time.sleep(_PAUSE)

    def _ended(self) -> bool:
        """Has it ended? Then the rest is shown, unless somebody has removed it with its log."""
        from docker.errors import APIError

        try:
            if self.client.api.inspect_container(self.name)["State"]["Running"]:
                return False
            self.copy()
        except APIError as error:
            if not error.is_client_error():
                raise
        return True


class _Follower(threading.Thread):
    def __init__(self, log: Log) -> None:
        super().__init__(name="log", daemon=True)
        self.log, self.ended = log, threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.log.follow()
        except Exception as error:  # it is raised where somebody waits for it
            self.error = error
        finally:
            self.ended.set()


def attend(client: Any, name: str, asked: Asked, out: BinaryIO) -> dict[str, Any]:
    """Show the log of a container until it has ended; its last ``State``.

    If nobody reads the log any more it is asked to stop, as a process in a pipe would be.
    """
    follower = _Follower(Log(client, name, out))
    follower.start()
    told = 0
    while not follower.ended.wait(0.1):
        if asked.times > told and _sent(client, name, signal.SIGKILL if told else signal.SIGTERM):
            told += 1
    with plainly(f"follow {name}"):
        if isinstance(follower.error, Unheard):
            stop(client, name)
            raise follower.error.__cause__ or follower.error
        if follower.error:
            raise follower.error
        return client.api.inspect_container(name)["State"]


def _sent(client: Any, name: str, number: signal.Signals) -> bool:
    """Has the signal arrived, or is there nobody whom it could reach?"""
    from docker.errors import APIError
    from requests import RequestException

    try:
        client.api.kill(name, number.name)
    except APIError as error:  # it has ended, or is gone
        return error.is_client_error()
    except RequestException:
        time.sleep(_PAUSE)
        return False
    return True


def stop(client: Any, name: str, now: bool = False) -> int | None:
    """End a container and wait for it; its exit code, or None if it was gone before."""
    from docker.errors import NotFound

    with plainly(f"stop {name}"):
        try:
            _sent(client, name, signal.SIGKILL if now else signal.SIGTERM)
            return _waited(client, name)
        except NotFound:
            return None


def _waited(client: Any, name: str) -> int:
    from requests import ConnectionError, Timeout

    try:
        return client.api.wait(name, timeout=GRACE)["StatusCode"]
    except (ConnectionError, Timeout):  # the SDK calls a timeout by either name
        _sent(client, name, signal.SIGKILL)
        return client.api.wait(name, timeout=GRACE)["StatusCode"]
