"""Processes that take jobs from this one: a line of JSON for each job, a line for each answer.

They are started anew (no fork), import what their work needs and nothing else, and stay until all
is done. Each hangs on the pipe that its jobs come by, so however this process ends, they end at
once; Ctrl-C and SIGTERM are for this one to heed.
"""

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

_AHEAD = 2  # jobs that a worker has: one in work, one that waits
_LOOK = 0.2  # seconds after which the caller may look at something else
_MEMORY = (
    "What is done is kept, and the same command goes on from there; --workers 1 takes the least "
    "memory"
)


class Workers:
    """``count`` processes that run ``main`` of a module, told some words as its ``sys.argv``.

    A context manager. What they say last, if they fail, goes to files in the folder.
    """

    def __init__(self, count: int, module: str, words: Sequence[str], folder: Path) -> None:
        self._answers: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self.processes: list[subprocess.Popen] = []
        self._said = [folder / f"worker-{number}.said" for number in range(count)]
        path = f"import sys; sys.path[:] = {sys.path!r}"  # our modules lie where they were found
        self._words = [sys.executable, "-c", f"{path}; from {module} import main; main()", *words]

    def __enter__(self) -> Self:
        try:
            for number in range(len(self._said)):
                self._start(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, number: int) -> None:
        with self._said[number].open("wb") as said:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C is not for them
            )
        self.processes.append(process)
        threading.Thread(target=self._listen, args=[number, process], daemon=True).start()

    def _listen(self, number: int, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._answers.put((number, line))
        self._answers.put((number, b""))

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # a job that nobody took
                process.stdin.close()

    def do(self, jobs: Iterable[Any], here: Callable[[Any], Any]) -> Iterator[Any]:
        """The jobs' answers as they come, and None whenever none came for a moment.

        When no answer is there, this process does a job as well: ``here`` answers it.
        Raises ValueError if a worker is gone, and what it raised: OSError and ValueError as such.
        """
        waiting, under_way = collections.deque(jobs), 0
        for number in [*range(len(self.processes))] * _AHEAD:
            under_way += self._send(number, waiting)
        while under_way or waiting:
            try:
                number, line = self._answers.get(not waiting, _LOOK)
            except queue.Empty:
                yield here(waiting.popleft()) if waiting else None
                continue
            if not line.endswith(b"\n"):
                yield None  # if all were told to end, the caller knows
                raise ValueError(self._why_gone(number))
            under_way += self._send(number, waiting) - 1
            told = json.loads(line)
            if "failed" in told:
                raise _error(*told["failed"])
            yield told["done"]

    def _send(self, number: int, waiting: collections.deque) -> bool:
        """Give a worker its next job; was there one?"""
        if not waiting:
            return False
        pipe = self.processes[number].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, as the one that listens will say
            pipe.write(json.dumps(waiting.popleft()).encode() + b"\n")
            pipe.flush()
        return True

    def _why_gone(self, number: int) -> str:
        how = how_it_ended(self.processes[number].wait(), self._said[number])
        return f"worker {number + 1} of {len(self.processes)} {how}. {_MEMORY}"


def how_it_ended(code: int, said: Path) -> str:
    """Of a process, as a part of a sentence: its exit code, and the file of what it said last.

    The words are not those by which a command line knows torch's want of memory
    (model/shortage.py): what helps then is no help here.
    """
    if code < 0:
        short = ", as systems do that have no memory left" if code == -9 else ""
        return f"was killed by signal {-code}{short}"
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return f"has ended: {lines[-1].removeprefix('error: ') if lines else f'exit code {code}'}"


def _error(kind: str, words: str, number: int | None, trace: str) -> Exception:
    """A worker's error, as this process would have raised it."""
    if kind == "MemoryError":
        return ValueError(f"a worker has not got enough memory. {_MEMORY}")
    if number is not None:
        return OSError(number, words)
    return ValueError(words) if kind == "ValueError" else RuntimeError(f"in a worker:\n{trace}")


def serve(do: Callable[[Any], Any]) -> None:
    """Be a worker: answer jobs, one after the other, for as long as somebody is there to ask."""
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=[jobs], daemon=True).start()
    while True:
        job = json.loads(jobs.get())
        try:
            answer = {"done": do(job)}
        except Exception as error:
            number = getattr(error, "errno", None)
            said = str(error) if number is None else error.strerror
            words = [type(error).__name__, said, number, traceback.format_exc()]
            answer = {"failed": words}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _hear(jobs: "queue.SimpleQueue[bytes]") -> None:
    """Take jobs as they come; nobody left to give any means: end at once."""
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(0)
