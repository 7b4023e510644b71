"""A bucket, or a folder of a server, as a place for named bytes: anything that fsspec speaks to.

    s3://bucket/prefix       and what speaks its language (R2, B2, MinIO), by AWS_ENDPOINT_URL
    gs://  abfs://           Google, Azure
    hf://  sftp://  ...      can hold a mirror, but cannot serve as --store

What makes the difference is ``create``: of any number of machines exactly one may win. Object
stores can do it, if asked with a condition in the request; some servers take the request and ignore
the condition. So nobody is trusted: ``probe`` tries it out.

Credentials come from where each backend's own tools look for them, never from the URL. Nothing is
cached: a listing that was remembered would hide what another machine wrote. Backends retry briefly,
because the store above waits for longer; after every failure the connection is made anew, with the
credentials read again. A place that takes a request and falls silent is told of after a while, and
a process that is about to end gives it up soon (``attend``). Cost: importing this module imports
no backend; the first call does.
"""

import asyncio
import contextlib
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pipeline.errors import StoreAway, StoreError
from pipeline.store import backends, remote_errors
from pipeline.store.storage import Report

_READERS = 8
_SLOW = 5.0  # seconds after which a silent place is told of, once a minute
_STALLED = 600.0  # seconds in which a part arrives, or the line is dead: 50 kB/s must do
_MEMORY = threading.Lock()  # fsspec's memory looks first and then writes


class NotExclusive(StoreError):
    """Two machines could both create the same record there: no place for a store."""


class _Stopped(Exception):
    """The caller of an upload has given up."""


class _Progress:
    """What the thread that uploads and the one that waits for it tell each other."""

    def __init__(self, size: int) -> None:
        self.size, self.moved, self.last = size, 0, time.monotonic()
        self.stopped: float | None = None  # when the caller gave up

    def hook(self, _: int, value: int, **kwargs: Any) -> None:
        """Called by the backend, in any thread, when a part has arrived."""
        if self.stopped is not None:
            raise _Stopped
        self.moved = max(self.moved, min(value, self.size))
        self.last = time.monotonic()


class Remote:
    """A place behind a URL; see storage.py. Several threads may use one at the same time."""

    def __init__(self, url: str, connect_timeout: float = 10, read_timeout: float = 30) -> None:
        self.protocol = backends.checked(url)
        self.place = url.rstrip("/")
        self.exclusive = self.protocol in backends.EXCLUSIVE
        self._timeouts = connect_timeout, read_timeout
        self._lock = threading.Lock()
        self._made: dict[tuple[int, int], Any] = {}  # filesystems by process and thread
        self._bucket_seen = False
        self._heard = self._told = -math.inf  # from the place, and of its silence
        self.attend(lambda text: print(text, file=sys.stderr, flush=True), lambda: False, math.inf)

    # records

    def create(self, name: str, data: bytes) -> None:
        if not self.exclusive:
            raise self._not_exclusive(f"{self.protocol}:// cannot create a name exclusively")
        alone = _MEMORY if self.protocol == "memory" else contextlib.nullcontext()
        with self._explained(FileExistsError), alone:
            try:
                self._call("pipe_file", self._path(name), data, mode="create")
            except Exception as error:
                if isinstance(error, FileExistsError) or remote_errors.taken(error):
                    raise FileExistsError(name) from error
                if remote_errors.unable(error):
                    raise self._not_exclusive("it cannot create a name exclusively") from error
                raise

    def replace(self, name: str, data: bytes) -> None:
        with self._explained():
            self._put(self._fs(), name, lambda path: self._call("pipe_file", path, data))

    def read(self, name: str) -> bytes | None:
        try:
            with self._explained(FileNotFoundError):
                return self._call("cat_file", self._path(name))
        except FileNotFoundError:
            return None

    def read_many(self, names: list[str]) -> list[bytes | None]:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.read, names))

    def names(self, folder: str) -> list[str]:
        path = self._path(folder)
        try:
            with self._explained(FileNotFoundError):
                found = [one.rstrip("/") for one in self._call("ls", path, detail=False)]
        except FileNotFoundError:
            return []
        bases = {entry.rpartition("/")[2] for entry in found if entry != path}
        return sorted(base for base in bases if not base.startswith("."))

    def stat(self, name: str) -> tuple[int, float] | None:
        """(bytes, seconds since 1970); 0.0 seconds where the backend does not tell the time."""
        try:
            with self._explained(FileNotFoundError):
                found = self._call("info", self._path(name))
        except FileNotFoundError:
            return None
        except StoreAway:
            raise
        except StoreError:
            self.names("probe")  # the answer to HEAD has no words; this one's say what is wrong
            raise
        return None if found["type"] == "directory" else (found["size"], backends.seconds(found))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._explained(FileNotFoundError):
            self._call("rm_file", self._path(name))

    # files

    def upload(self, file: Path, name: str, report: Report) -> None:
        """Bring a file to the place. ``report`` is called ten times a second, in this thread, also
        while nothing moves; if it raises, the upload ends with the parts that are on their way."""
        progress = _Progress(file.stat().st_size)

        def carry() -> None:
            with self._explained():
                fs, options = self._fs(), backends.transfer(self.protocol, progress.size)
                from fsspec.callbacks import Callback

                options["callback"] = Callback(hooks={"progress": progress.hook})
                arguments = {"progress": progress, **options}
                self._put(fs, name, lambda to: self._call("put_file", str(file), to, **arguments))

        with ThreadPoolExecutor(1) as thread:
            carrying, told = thread.submit(carry), 0
            try:
                while not wait([carrying], 0.1).done:
                    told, before = progress.moved, told
                    report(told - before)
                carrying.result()
                report(progress.size - told)
            finally:
                progress.stopped = time.monotonic()

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        found = self.stat(name)
        if found is None:
            raise FileNotFoundError(f"{self.place} holds no {name}")
        begins = range(start, found[0], backends.PIECE)
        spans = [(begin, min(begin + backends.PIECE, found[0])) for begin in begins]
        with (
            self._explained(FileNotFoundError),
            contextlib.closing(
                backends.pieces(self._fs(), self.protocol, self._path(name), spans)
            ) as pieces,
        ):
            for (begin, end), piece in zip(spans, pieces):
                if len(piece) != end - begin:
                    raise StoreAway(
                        f"{self.place} sent {len(piece)} of {end - begin} bytes of {name}. "
                        f"{remote_errors.AGAIN}"
                    )
                self._heard = time.monotonic()
                yield piece

    # trust

    def probe(self) -> None:
        """Try out that of several creations of one name exactly one wins; raises NotExclusive."""
        if not self.exclusive:
            raise self._not_exclusive(f"{self.protocol}:// cannot create a name exclusively")
        name, offers = f"probe/{uuid.uuid4().hex}", [b"%d" % number for number in range(4)]
        barrier = threading.Barrier(len(offers))

        def creates(offer: bytes) -> bool:
            try:
                self.create(name, offer)
            except FileExistsError:
                return False
            return True

        def race(offer: bytes) -> bool:
            barrier.wait()
            return creates(offer)

        try:
            with ThreadPoolExecutor(len(offers)) as pool:
                won = list(pool.map(race, offers))
            winners = [offer for offer, wins in zip(offers, won) if wins]
            content = self.read(name)
            # none seems to win if the winner's answer was lost and its request sent again
            if len(winners) > 1 or content not in (winners or offers):
                raise self._not_exclusive(f"{len(winners)} of {len(offers)} creations won")
            if creates(b"late") or self.read(name) != content:
                raise self._not_exclusive("it creates a name that is taken")
            self.replace(name, b"new")
            if self.read(name) != b"new":
                raise self._not_exclusive("it does not show what was last written")
            self.names("probe")
        finally:
            with contextlib.suppress(StoreError):
                self.remove(name)

    def _not_exclusive(self, why: str) -> NotExclusive:
        return NotExclusive(
            f"{self.place} cannot serve as --store: {why}, so two machines could do the same work "
            "and overwrite each other. It can serve as a mirror of a store that is elsewhere: "
            f"`pipeline push {self.place}` and `pipeline pull {self.place}`"
        )

    # the connection

    def reconnect(self) -> None:
        """Let the next call connect anew, with credentials read again."""
        with self._lock:
            self._made.clear()

    def attend(self, note: Callable[[str], None], stopping: Callable[[], bool], limit: float):
        """Let ``note`` tell of a silent place. Once ``stopping()`` is true every call, also one
        under way, ends with StoreAway when nothing was heard from the place for ``limit`` s."""
        self._note, self._stopping, self._limit = note, stopping, limit
        self._ending: float | None = None  # when ``stopping()`` was first seen to be true

    def _attended(self, begun: float, told: bool = True) -> None:
        """Called before a call and twice a second while it waits, in any thread."""
        now = time.monotonic()
        if self._ending is None and self._stopping():
            self._ending = now
        if self._ending is not None and now - max(self._ending, self._heard) > self._limit:
            raise TimeoutError(f"no answer for {self._limit:.0f} seconds")
        if told and now - max(begun, self._heard, self._told + 60.0) > _SLOW:
            self._told = now
            self._note(f"waiting for an answer from {self.place}")

    def _fs(self) -> Any:
        """The filesystem: one for all threads if it is asynchronous, else one for each."""
        kind = backends.implementation(self.protocol)
        key = os.getpid(), 0 if kind.async_impl else threading.get_ident()
        with self._lock:
            if key not in self._made:
                made = backends.connected(kind, self.protocol, self.place, *self._timeouts)
                self._made[key] = made
            fs = self._made[key]
        if not kind.async_impl:
            fs.invalidate_cache()  # hf:// has one whatever it is told
        return fs

    def _call(
        self, method: str, *args: Any, progress: _Progress | None = None, **kwargs: Any
    ) -> Any:
        """Call the filesystem, and give up on a server that takes a request and falls silent.

        The timeouts of the libraries below begin when a request has been sent, which then never
        happens.
        """
        fs = self._fs()
        if not fs.async_impl:
            return getattr(fs, method)(*args, **kwargs)
        limit = 2 * sum(self._timeouts) if progress is None else _STALLED
        begun = time.monotonic()
        self._attended(begun)
        asked = asyncio.run_coroutine_threadsafe(
            getattr(fs, f"_{method}")(*args, **kwargs), fs.loop
        )
        try:
            while not wait([asked], min(0.5, limit)).done:
                now = time.monotonic()
                if progress and progress.stopped and now - progress.stopped > self._timeouts[0]:
                    raise _Stopped
                if now - (progress.last if progress else begun) > limit:
                    raise TimeoutError(f"no answer for {limit:.0f} seconds")
                if progress and progress.moved:
                    self._heard = max(self._heard, progress.last)
                self._attended(begun, told=progress is None)  # an upload shows how far it is
            answer = asked.result()
            self._heard = time.monotonic()
            return answer
        finally:
            asked.cancel()

    def _path(self, name: str) -> str:
        kind = backends.implementation(self.protocol)
        return f"{kind._strip_protocol(self.place).rstrip('/')}/{name}".rstrip("/")

    def _put(self, fs: Any, name: str, write: Callable[[str], None]) -> None:
        """Let ``write`` write to the name, or to another that becomes it in one step."""
        path = self._path(name)
        if self.protocol in backends.WHOLE:
            write(path)
            return
        unfinished = self._path(f"tmp/{uuid.uuid4().hex}")
        try:
            for each in (unfinished, path):
                fs.makedirs(each.rpartition("/")[0], exist_ok=True)
            write(unfinished)
            fs.mv(unfinished, path)
        except Exception:
            with contextlib.suppress(Exception):
                fs.rm_file(unfinished)
            raise

    @contextlib.contextmanager
    def _explained(self, *meant: type[Exception]) -> Iterator[None]:
        """Give the errors of backends the meanings of storage.py; those ``meant`` are kept."""
        try:
            yield
        except (StoreError, _Stopped):
            raise
        except Exception as error:
            if isinstance(error, meant) and self._bucket_exists(error):
                raise
            self.reconnect()
            raise remote_errors.explain(error, self.place, self.protocol) from error

    def _bucket_exists(self, error: Exception) -> bool:
        """Is only a name missing, or the whole bucket? Google and Azure do not always say."""
        if remote_errors.bucket_is_missing(error):
            return False
        asks = self.protocol in (*backends.GOOGLE, *backends.AZURE)
        if isinstance(error, FileNotFoundError) and asks and not self._bucket_seen:
            try:
                self._call("info", self._path("").partition("/")[0])
            except FileNotFoundError:
                return False
            except Exception:  # it may be forbidden to ask: then the first answer stands
                return True
            self._bucket_seen = True
        return True
