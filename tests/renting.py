"""Launches at the stand-in for Vast.ai, as somebody types them: several worlds side by side.

A world is an account at Vast.ai, a store on S3, and what each of a person's machines has: a folder
to work in, a cache, a home. Boxes get what a file of credentials says, and reach S3 as it is. The
way of a client to S3 may lead through a ``Gate``, where that client can be killed between two
requests of its own choosing: what it wrote is written, and it never learns of it.
"""

import contextlib
import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from commands import TOY, Told, launch, start
from fakes.vast import Asked, Box, FakeVast, Fault
from pipelines import digests, run, toy_engine
from servers import Request, forwarded, s3_environment, web

from launchers.launches import Launch, launches
from pipeline.engine import log
from pipeline.store.places import open_store
from pipeline.store.store import Store

# of training; a machine is lost in the middle of many, which must take longer than a story that
# waits for another's commands
STEPS, MANY = 8, 160
WAIT = 180.0  # seconds without any news; a box takes ten if nothing else is to be done


Story = Iterator[Callable[[], object]]  # yields what it waits for before it goes on


def together(**stories: Story) -> None:
    """Live through several side by side, each of which mostly waits; the keys are for people."""
    going = {name: (story, next(story)) for name, story in stories.items()}
    end = time.monotonic() + WAIT
    try:
        while going:
            time.sleep(0.2)
            for name, (story, ready) in list(going.items()):
                if ready():
                    del going[name]
                    with contextlib.suppress(StopIteration):
                        going[name] = story, next(story)
                    end = time.monotonic() + WAIT
            assert time.monotonic() < end, f"nothing moves in {', '.join(going)}"
    finally:
        for story in stories.values():  # each may have opened something
            story.close()


class Account(FakeVast):
    """Notes at each making which boxes bill already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.beside: list[list[int]] = []

    def rent(self, *arguments, **more) -> Box:
        self.beside.append([each.id for each in self.billing])
        return super().rent(*arguments, **more)

    def creates(self) -> list[Asked]:
        return self.asked("PUT", "/api/v0/asks/")

    def looked_between_creates(self) -> bool:
        """Was the list of boxes asked for between any two requests to rent?"""
        looked = True
        for each in self.requests:
            if each.method == "PUT" and "/asks/" in each.path:
                if not looked:
                    return False
                looked = False
            looked = looked or (each.method == "GET" and each.path == "/api/v1/instances/")
        return True


class World:
    """An account with its faults, a store, and the machines of a person; a context manager."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        corpus: Path,
        name: str,
        *faults: Fault,
        steps: int = STEPS,
        one_disk: bool = False,
        **more: Any,
    ) -> None:
        """``one_disk``: all boxes have the same cache, so that one which is lost is known to be
        dead at once, as on one machine; else its successor watches it for two minutes first."""
        self.folder, self.endpoint, self.corpus = folder / name, endpoint, corpus
        self.settings = settings(steps)
        self.place, self.pace = f"s3://runs/{name}", 0.04
        self.keys = s3_environment(endpoint)
        env = {"IGNITE_TELL_EVERY": "0.5"}
        env |= {"IGNITE_CACHE": str(self.folder / "disk")} if one_disk else {}
        self.vast = Account(self.folder / "boxes", faults=faults, env=env, **more)
        self._clients: list[Client] = []
        self._first: Launch | None = None

    def __enter__(self) -> "World":
        self.vast.__enter__()
        (self.folder / "home").mkdir(parents=True)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
        lines = [f"{name}={self.keys[name]}\n" for name in names]
        (self.folder / "keys").write_text("".join([*lines, "AWS_DEFAULT_REGION=us-east-1\n"]))
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.kill()
        self.vast.__exit__()
        print(f"==== {self.place}: {self.printed()}")  # is shown if the test has failed

    # what somebody does

    def rents(self, *more: str) -> list[str]:
        """The command of this world."""
        words = ["vast", "--store", self.place, "--data", self.corpus, *TOY]
        words += [word for each in self.settings for word in ("--set", each)] + [*more]
        return [*map(str, words), "--credentials", str(self.folder / "keys")]

    def environment(self, at: str = "home") -> dict[str, str]:
        folder = self.folder / at
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"HOME": str(folder), "IGNITE_CACHE": str(folder / "cache")}
        return {**self.keys, **self.vast.environment(), **paths, "IGNITE_PACE": str(self.pace)}

    def launch(self, *words: str, at: str = "home") -> Told:
        """In this process, on one of their machines."""
        changed = mock.patch.dict(os.environ, self.environment(at))
        with changed, contextlib.chdir(self.folder / at):
            return launch(*words)

    def start(self, *words: str, at: str = "home", **changes: str) -> "Client":
        """As a process of its own."""
        environment = {**self.environment(at), **changes}
        client = Client(self.folder / at, environment, words or (*self.rents(), "-y"))
        self._clients.append(client)
        return client

    # what can be seen of it

    @functools.cached_property
    def store(self) -> Store:
        """As this process sees it."""
        return open_store(self.place)

    def launches(self) -> list[Launch]:
        return launches(self.store)

    def first(self) -> Launch | None:
        """The first launch that there was, as soon as there is one."""
        self._first = self._first or next(iter(self.launches()), None)
        return self._first

    def kinds(self) -> list[str]:
        """The events of the first launch."""
        first = self.first()
        return [each.kind for each in first.events()] if first else []

    def word(self, attempt: int = 1) -> str:
        """The state that the box of an attempt of the first launch told last."""
        first = self.first()
        return first.box(attempt).get("state", "") if first else ""

    def entries(self, kind: str) -> list[log.Entry]:
        """Of training, in the store."""
        states = [log.read(self.store, key) for key in log.keys(self.store)]
        return [e for s in states if s.stage == "train" for e in s.entries if e.kind == kind]

    def checkpoints(self) -> int:
        return len(self.entries("checkpoint"))

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """The host of the newest box gives its training no time."""
        held = [*_training(self.vast.boxes[-1])]
        for each in held:
            os.kill(each, signal.SIGSTOP)
        try:
            yield
        finally:
            for each in held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)

    def brought(self, at: str = "home") -> dict[str, str]:
        """The digests of what was fetched into ./artifacts on a machine."""
        folder = self.folder / at / "artifacts"
        return digests(toy_engine(folder, self.corpus, *self.settings))

    def printed(self) -> str:
        """All that boxes and clients said, for a test that fails."""
        said = [f"-- box {each.id}: {each.printed()}" for each in self.vast.boxes]
        return "\n".join([*said, *(f"-- client: {each.said()}" for each in self._clients)])


def settings(steps: int) -> tuple[str, ...]:
    return f"train.steps={steps}", f"train.eval_every={steps}"


def undisturbed(folder: Path, corpus: Path, steps: int = STEPS) -> dict[str, str]:
    """The digests of the same run on this machine."""
    engine = toy_engine(folder, corpus, *settings(steps))
    run(engine)
    return digests(engine)


def _training(box: Box) -> Iterator[int]:
    """The process of a box that trains."""
    for each in box.processes():
        with contextlib.suppress(OSError):
            if b"pipeline\0run" in Path(f"/proc/{each}/cmdline").read_bytes():
                yield each


@dataclass
class Client:
    """``launch ...`` as a process; what it says goes into files, so that it never waits."""

    folder: Path
    environment: dict[str, str]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        number = len([*self.folder.glob("said-*.out")])
        self._said = [self.folder / f"said-{number}.{end}" for end in ("out", "err")]
        with self._said[0].open("w") as out, self._said[1].open("w") as err:
            self.process: subprocess.Popen = start(
                *self.words, program="launchers.cli", env=self.environment, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    def said(self) -> str:
        return "".join(each.read_text() for each in self._said)

    def ended(self, seconds: float = WAIT) -> Told:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on and on: {self.said()}") from None
        return Told(code, *(each.read_text() for each in self._said))

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def ended_early(self) -> bool:
        """Never true: it fails if it has ended, which nobody who asks this expects."""
        assert not self.is_over(), f"it has ended: {self.said()}"
        return False

    def kill(self) -> None:
        """kill -9"""
        self.process.kill()
        self.process.wait()

    def sleep(self) -> None:
        """The lid is closed."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@dataclass
class Gate:
    """A way to S3. The first request that ``stops`` is carried out, and its answer kept back."""

    endpoint: str
    stops: Callable[[Request, bytes], bool]  # told the request, and what was answered

    def __post_init__(self) -> None:
        self.held, self.released = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def answer(self, request: Request):
        if not self.held.is_set():
            told = forwarded(request, self.endpoint)
            with self._lock:
                if not self.held.is_set() and not self.stops(request, told.body):
                    return told
                self.held.set()
        self.released.wait(WAIT)  # nothing more comes through: the client has no other news
        return None

    @contextlib.contextmanager
    def open(self) -> Iterator[str]:
        with web(self.answer) as url:
            try:
                yield url
            finally:
                self.released.set()
