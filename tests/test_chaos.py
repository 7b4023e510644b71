"""Chaos: machines that share a store are killed and suspended at random while they train one run.

Each machine is a process with a disk of its own. Of 200 kills and 40 suspensions (until after the
others took the work over) nothing may remain but time: one result a stage, steps that only grow
along the log, no entry by a process after its successor's claim, and the bytes of an undisturbed
run.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pipelines import MACHINE, SETTINGS, digests, local_store, run, write_corpus
from servers import make_bucket, s3_environment, s3_server
from test_kill import import_stages

from model.trainer import Trainer
from pipeline import recipe
from pipeline.engine import beat, log
from pipeline.engine.engine import Engine
from pipeline.store.disk import Disk
from pipeline.store.remote import Remote
from pipeline.store.store import Store

SEED, MACHINES = 20_261, 3
KILLS, ZOMBIES = 200, 40
STEP = 0.015  # seconds that a step takes at least, so that there is a run to disturb
DEAD_AFTER = 1.0
CHANGES = ("train.steps=120", "train.eval_every=40", "tokenizer.vocab_size=300")

pytestmark = pytest.mark.slow


class Run:
    """One store and the machines that work on it."""

    def __init__(self, corpus: Path, open_on: Callable[[int], Store]) -> None:
        self.corpus, self.open_on = corpus, open_on
        self.machines: dict[int, int] = {}  # machine -> process

    def engine(self, machine: int) -> Engine:
        chosen = recipe.load("tiny", data=str(self.corpus), settings=(*SETTINGS, *CHANGES))
        return Engine(self.open_on(machine), chosen)

    def start(self, machine: int) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                as_machine(machine)
                run(self.engine(machine), machine=replace(MACHINE, checkpoint_steps=4))
                code = 0
            except BaseException:  # os._exit says nothing of it
                os.write(2, f"machine {machine}: {traceback.format_exc()}".encode())
            os._exit(code)
        self.machines[machine] = child

    def ended(self) -> list[int]:
        """Machines whose process has come to its own end; it must have been a good one."""
        found = []
        for machine, process in self.machines.items():
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                assert status == 0, f"machine {machine} failed: see its traceback above"
                found.append(machine)
        for machine in found:
            del self.machines[machine]
        return found

    def kill(self, machine: int) -> None:
        process = self.machines.pop(machine)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

    def examine(self) -> dict:
        """What is in the store at the end; read by a child, because clients dislike forks."""
        reads, writes = os.pipe()
        if os.fork() == 0:
            with contextlib.suppress(BrokenPipeError), os.fdopen(writes, "w") as pipe:
                json.dump(self._examined(), pipe)
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as pipe:
            told = pipe.read()
        os.wait()
        return json.loads(told)

    def _examined(self) -> dict:
        engine = self.engine(0)
        problems, takeovers = [], 0
        for key in log.keys(engine.store):
            state = log.read(engine.store, key)
            problems += [f"{key[:8]}: {problem}" for problem in examine(state)]
            owners = [e.body["owner"] for e in state.entries if e.kind == "claim"]
            takeovers += sum(1 for a, b in itertools.pairwise(owners) if a and b)
            lost = engine.store.missing(dict.fromkeys(state.needed, 0) | sizes(state))
            problems += [f"{key[:8]}: blob {blob[:8]} is missing" for blob in lost]
        return {"problems": problems, "takeovers": takeovers, "digests": digests(engine)}


def sizes(state: log.State) -> dict[str, int]:
    named = [blob for entry in state.entries for blob in entry.digests.items()]
    return {blob: size for blob, size in named if blob in state.needed}


def examine(state: log.State) -> list[str]:
    """What a log must never show."""
    problems, owner, step = [], None, 0
    for entry in state.entries:
        if entry.kind == "claim":
            owner = entry.body["owner"] or owner
        elif entry.body.get("by") != owner:
            problems.append(f"{entry.kind} {entry.position} was written after a takeover")
        if entry.kind == "checkpoint":
            if entry.body["step"] <= step:
                problems.append(f"step {entry.body['step']} comes after step {step}")
            step = entry.body["step"]
    results = [entry for entry in state.entries if entry.kind == "result"]
    if len(results) != 1:
        problems.append(f"{len(results)} results")
    return problems


def as_machine(number: int) -> None:
    """Make this process live on another machine than those with other numbers."""
    beat.machine_id = lambda: f"machine {number}"
    beat.BEAT_EVERY = beat.REMOTE_EVERY = DEAD_AFTER / 8
    beat.DEAD_AFTER = beat.REMOTE_DEAD_AFTER = DEAD_AFTER
    from pipeline.engine import work

    work.machine_id = beat.machine_id
    stepped = Trainer.run_step

    def slowly(trainer):
        time.sleep(STEP)
        return stepped(trainer)

    Trainer.run_step = slowly


def disturb(run: Run, draw: random.Random, kills: int, zombies: int) -> tuple[int, int]:
    """Kill and suspend until the run is done or the numbers are used up; returns what was done."""
    killed = suspended = 0
    for machine in range(MACHINES):
        run.start(machine)
    while not run.ended() and run.machines:
        time.sleep(draw.uniform(0.0, 0.6))
        if run.ended():
            break
        machine = draw.choice(sorted(run.machines))
        if suspended < zombies and draw.random() < 0.2:
            os.kill(run.machines[machine], signal.SIGSTOP)
            time.sleep(DEAD_AFTER * draw.uniform(1.2, 2.0))
            os.kill(run.machines[machine], signal.SIGCONT)
            suspended += 1
        elif killed < kills:
            run.kill(machine)
            run.start(machine)
            killed += 1
    deadline = time.monotonic() + 120
    while run.machines and time.monotonic() < deadline:
        run.ended()
        time.sleep(0.05)
    assert not run.machines, "a machine did not notice that the work is done"
    return killed, suspended


def chaos(corpus: Path, expected: dict, new_store: Callable[[int], Callable[[int], Store]]) -> None:
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    kills = zombies = stores = takeovers = 0
    while kills < KILLS or zombies < ZOMBIES:
        stores += 1
        run = Run(corpus, new_store(stores))
        killed, suspended = disturb(run, draw, KILLS - kills, ZOMBIES - zombies)
        kills, zombies = kills + killed, zombies + suspended
        found = run.examine()
        assert found["problems"] == []
        assert found["digests"] == expected
        takeovers += found["takeovers"]
    print(f"{kills} kills, {zombies} zombies, {takeovers} takeovers, {stores} runs")
    assert takeovers > 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt", words=20_000)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, corpus) -> dict:
    """What an undisturbed run gives."""
    import_stages()
    undisturbed = Run(corpus, lambda _: local_store(tmp_path_factory.mktemp("whole") / "store"))
    engine = undisturbed.engine(0)
    run(engine, machine=replace(MACHINE, checkpoint_steps=4))
    return digests(engine)


def test_on_a_shared_directory(tmp_path, corpus, expected):
    chaos(corpus, expected, lambda number: lambda _: local_store(tmp_path / f"store{number}"))


def test_on_s3(tmp_path, corpus, expected, monkeypatch):
    with s3_server() as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        make_bucket(endpoint, "chaos")

        def new_store(number: int) -> Callable[[int], Store]:
            def open_on(machine: int) -> Store:
                disk = Disk(tmp_path / f"machine{machine}-{number}")
                return Store(disk, Remote(f"s3://chaos/{number}"))

            return open_on

        chaos(corpus, expected, new_store)
