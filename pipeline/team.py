"""One training run, several processes: who leads, and how the others come, are told, and go.

The leader is the process that the user started. It alone claims, shows, saves, looks and decides;
the others (follow.py) know no store and say nothing. Whatever needs all of them it says first: a
word and its facts, as JSON over main memory, and then does the same itself:

    build JOB     make the trainer                     step PEAK   one step of the optimizer
    load          take the state that the leader has   end         go home

and, where each holds but a part of the weights, ``look``, ``weights`` and ``state``, which bring
parts together. A stop, a checkpoint, a return after divergence are the leader's; to the others
they are no word, or one of these.

``pipeline run --processes N`` starts the others when training begins, and they end with it. Each
hangs on a pipe from the leader, so that however the leader ends, they end. Under ``torchrun`` all
are there from the start, and the first leads. If one of them is gone, sums fail (gloo) or never end
(NCCL); either way the leader says who is gone and ends: its checkpoints are in the store. Cost: a
message a step, some 0.2 ms; with one process nothing at all.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.parallel import Replicas, Team, tell
from model.shortage import short_of_memory
from pipeline.errors import Interrupted
from pipeline.hardware import first_line
from pipeline.machine import Machine, precision_on, resolve_device, torchrun
from pipeline.recipe import Recipe
from pipeline.redact import redacted
from pipeline.workers import how_it_ended

ROOM = 0.7  # of a device's memory; weights and optimizer that take more are shared out
BYTES = 16  # a parameter: weight, gradient, two numbers of AdamW
_SOON = 5.0  # seconds in which a process that made a sum fail is seen to be gone
_STUCK = 20.0  # seconds after which a sum that lacks a process is taken to never end
_LEAVE = 10.0  # seconds in which those who are told to end do
_EVER = timedelta(days=7)  # who is gone is seen by other means; the leader may take its time


class Nobody:
    """The leader of none: the one process of a run."""

    team = Team()

    def all(self, what: str, *facts: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Leader:
    """Tells the others what all do now. ``crew`` are the processes that it has started itself."""

    def __init__(self, crew: "Crew | None") -> None:
        self.team, self.crew = Replicas(), crew
        self.together = True  # are all where the next word is awaited?

    @contextlib.contextmanager
    def all(self, what: str, *facts: Any) -> Iterator[None]:
        """What is done within, the others do as well. Raises ValueError if one of them is gone."""
        self.together = False
        with self.waiting():
            tell(what, *facts)
            yield
        self.together = True

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What is waited for within needs the others. Raises ValueError if one of them is gone."""
        with self.crew or contextlib.nullcontext():
            try:
                yield
            except RuntimeError as error:
                if not short_of_memory(error) and (why := self._gone(error)):
                    raise ValueError(why) from error
                raise

    def _gone(self, error: RuntimeError) -> str:
        if self.crew is not None:
            return self.crew.gone(_SOON)
        # of torchrun's processes it does not know; what the sum says is often all there is to see
        said = first_line(error)
        return f"{said} (or another process of torchrun's is gone: see what was said before)"

    def end(self) -> None:
        """Send them home, if they listen."""
        if self.together:
            with contextlib.suppress(RuntimeError, ValueError), self.all("end"):
                pass
        if self.together or not torch.cuda.is_available():  # a sum on a GPU may never end
            dist.destroy_process_group()


class Crew:
    """Processes that this one has started. As a context: a sum of all is under way."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.since: float | None = None  # when the sum began
        self.ended = False
        path = f"import sys; sys.path[:] = {sys.path!r}"  # our modules lie where they were found
        program = f"{path}; from pipeline.follow import main; main()"
        self.processes = []
        for rank in range(1, size):
            words = [sys.executable, "-c", program, str(folder), str(rank), str(size)]
            with (folder / f"{rank}.said").open("wb") as said:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C is for the leader
                )
            self.processes.append(process)
            threading.Thread(target=self._attend, args=[process], daemon=True).start()

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.since = None

    def _attend(self, process: subprocess.Popen) -> None:
        """End this process if it is stuck in a sum that lacks one that is gone."""
        process.wait()
        gone = time.monotonic()
        while not self.ended:
            time.sleep(0.5)
            since, now = self.since, time.monotonic()
            if since is not None and min(now - since, now - gone) > _STUCK:
                os.write(2, f"\nerror: {redacted(self.gone())}\n".encode())
                os._exit(1)

    def arrive(self) -> dist.Store:
        """Wait until all are there; where they meet. Raises ValueError if one does not come."""
        store = dist.FileStore(str(self.folder / "store"), self.size)
        here = [f"here {rank}" for rank in range(1, self.size)]
        while not store.check(here):
            if why := self.gone():
                raise ValueError(why)
            time.sleep(0.02)
        return store

    def gone(self, patience: float = 0.0) -> str:
        """Which of them is gone, and why; nothing if all are there for so many seconds."""
        until = time.monotonic() + patience
        while True:
            for rank, process in enumerate(self.processes, 1):
                if process.poll() is not None:
                    return f"process {rank + 1} of {self.size} {self._why(rank, process)}"
            if time.monotonic() >= until:
                return ""
            time.sleep(0.05)

    def _why(self, rank: int, process: subprocess.Popen) -> str:
        how = how_it_ended(process.returncode, self.folder / f"{rank}.said")
        goes_on = "All is saved up to the last checkpoint, and the same command goes on from there"
        return f"{how}. {goes_on}"

    def end(self) -> None:
        """Let go the pipes that they hang on, and see that they are gone."""
        self.ended = True
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def led(size: int) -> Iterator[Leader | Nobody]:
    """This process as the leader of a team of so many, which is there while it trains."""
    if torchrun() is not None:
        yield Leader(None)
        return
    if size == 1:
        yield Nobody()
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="ignite-", ignore_cleanup_errors=True) as folder:
        crew = Crew(Path(folder), size)
        try:
            join(0, size, crew.arrive())
            leader = Leader(crew)
            try:
                yield leader
            finally:
                leader.end()
        finally:
            crew.end()
            torch.set_num_threads(threads)


@contextlib.contextmanager
def leading_torchrun() -> Iterator[None]:
    """This process as the leader of those that torchrun has started, for a whole command."""
    rank, size = torchrun() or (0, 1)
    join(rank, size)
    try:
        yield
    except Interrupted:  # of other errors nobody knows where they have left the others
        Leader(None).end()
        raise
    Leader(None).end()


def join(rank: int, size: int, store: dist.Store | None = None) -> None:
    """Become one of the team; without a store, as torchrun has arranged it."""
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if loopback:  # all are on this machine, whatever its name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_EVER)


def processes(machine: Machine) -> int:
    """How many are to train; ``auto`` is one for each GPU. Raises ValueError if nobody knows."""
    if (given := torchrun()) is not None:
        if machine.processes not in (0, 1, given[1]):
            raise ValueError(f"--processes {machine.processes}: torchrun has started {given[1]}")
        return given[1]
    if machine.processes:
        return machine.processes
    device = resolve_device(machine.device)
    return together() if device.type == "cuda" and device.index is None else 1


def together() -> int:
    """How many of the GPUs here can train together: all, if they are of one model, else one.

    Those of two models round differently, and the copies of the weights would drift apart.
    """
    count = torch.cuda.device_count()
    return count if len(_models(count)) == 1 else 1


def _models(count: int) -> set[str]:
    return {torch.cuda.get_device_name(at) for at in range(count)}


def settled(machine: Machine, size: int, recipe: Recipe, vocab_size: int) -> Machine:
    """The machine as all of ``size`` processes take it: what is to be found out is found out once.

    Raises ValueError for what does not go with so many.
    """
    if size == 1:
        if machine.sharding == "on":
            raise ValueError("--sharding on: one process has nothing to share out. Add --processes")
        return replace(machine, sharding="off")
    device = resolve_device(machine.device)
    memory = 0
    if device.type == "cuda":
        _enough(device, size)
        memory = min(torch.cuda.get_device_properties(at).total_memory for at in range(size))
    elif device.type != "cpu":
        raise ValueError(f"--processes {size}: {device.type} is one device. Use --processes 1")
    sharding = machine.sharding
    if sharding == "auto":
        needed = BYTES * recipe.model.parameters(vocab_size)
        sharding = "on" if memory and needed > ROOM * memory else "off"
    if sharding == "on" and (batch := recipe.train.batch) % size:
        fewer = max(count for count in range(1, size) if batch % count == 0)
        way_out = f"--processes {fewer}" if fewer > 1 else "--sharding off"
        raise ValueError(
            f"train.batch is {batch}, and where processes share the weights out (--sharding) it "
            f"must be a multiple of them: {way_out}, or another train.batch, which begins a new run"
        )
    threads = machine.threads
    if device.type == "cpu":
        threads = threads or max(1, torch.get_num_threads() // size)
    told = {"device": device.type, "precision": precision_on(machine.precision, device)}
    return replace(machine, threads=threads, sharding=sharding, **told)


def _enough(device: torch.device, size: int) -> None:
    there = torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(
            f"--device {device} is one GPU, and there are {size} processes: leave it out (and "
            "choose among the GPUs with CUDA_VISIBLE_DEVICES, if need be), or --processes 1"
        )
    if there < size:
        raise ValueError(f"--processes {size}: torch sees {there} GPUs here. Use at most so many")
    if len(models := _models(size)) > 1:
        raise ValueError(
            f"--processes {size}: the GPUs are not of one model ({', '.join(sorted(models))}), so "
            "they round differently, and their copies of the weights would drift apart. Choose "
            "equal ones with CUDA_VISIBLE_DEVICES, or --processes 1"
        )
