"""Several processes work on one key while the store fails in every way it can.

Hypothesis draws what they do, which calls fail and how, which writes arrive late, which blobs rot,
and who acts in the middle of another's call. Anybody may judge any owner dead at any time: the one
that was suspended goes on later and must not do harm. What a process does stands in workers.py. All
that must hold is checked on the shared disk itself, of an entry in the very instant in which it
appears. At the end whoever comes next must be able to finish the work.

No real time passes: waiting for the store is skipped, and nothing is flushed to the disk.
"""

import hashlib
import itertools
import json
import os
import tempfile
from pathlib import Path

import pytest
from faults import STRIKES, Fault, Script, well
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from workers import KEY, Process, Signed

from pipeline.engine import log
from pipeline.engine import work as work_module
from pipeline.engine.log import Entry, State, fold
from pipeline.store import store as store_module
from pipeline.store.disk import Disk
from pipeline.store.store import Store

EXAMPLES, STEPS = 150, 40


def alive(entries) -> list[Entry]:
    """The checkpoints whose bytes must be there: the newest two at any time, without retired ones.

    One that was replaced has lost its bytes and does not come back when newer ones are retired.
    """
    checkpoints: list[Entry] = []
    for entry in entries:
        if entry.kind == "checkpoint":
            checkpoints = [*checkpoints[-1:], entry]
        elif entry.kind == "retire":
            gone = entry.body["positions"]
            checkpoints = [each for each in checkpoints if each.position not in gone]
    return checkpoints


class Shared(Disk):
    """The disk of the store; it tells of each log entry in the instant in which it appears."""

    def __init__(self, root: Path, appeared) -> None:
        super().__init__(root)
        self.appeared = appeared

    def create(self, name: str, data: bytes) -> None:
        super().create(name, data)
        self.appeared(name, data)

    def whole(self, blob: str) -> bool:
        data = self.read(f"blob/{blob[:2]}/{blob}")
        return data is not None and hashlib.sha256(data).hexdigest() == blob


ACTS = ("go_on", "go_on", "go_on", "go_on", "go_on", "carry", "start", "leave", "fetch")
SEVERAL = st.lists(st.sampled_from(ACTS), min_size=1, max_size=5)
WRITES = [strike for strike in STRIKES if strike[0] in ("create", "upload")]  # these matter most
SOME = st.lists(st.sampled_from(STRIKES + 2 * WRITES), min_size=1, max_size=6, unique=True)
FAULTS = st.one_of(st.just([]), SOME)
WHO = st.integers(0, 2)


class Processes(RuleBasedStateMachine):
    """Three processes on three machines, and a store that fails."""

    @initialize(apart=st.booleans(), patience=st.sampled_from([0.0, 0.2]))
    def begin(self, apart, patience):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.shared = Shared(self.root / "shared", self.appeared)
        self.authors: dict[bytes, str] = {}
        self.rotten: set[str] = set()
        self.seen: list[bytes] = []
        self.first: Entry | None = None
        names = ("a", "b", "c")
        # with ``apart`` the machines compute different bytes, as different graphics cards do
        self.processes = [self.process(name, name if apart else "", patience) for name in names]

    def process(self, name: str, by: str, patience: float = 0.0) -> Process:
        way = Signed(self.shared, self.authors)
        return Process(name, self.root / name, way, by, patience)

    # what happens

    @rule(who=WHO, acts=SEVERAL, faults=FAULTS, other=WHO, theirs=SEVERAL)
    def one_acts(self, who, acts, faults, other, theirs):
        """One acts among faults; where the fault is MEANWHILE, another acts during the call."""
        process = self.processes[who]
        process.way.choose = Script(*faults)
        if other != who:
            process.way.meanwhile = lambda: self.processes[other].act(*theirs)
        process.act(*acts)
        process.way.choose, process.way.meanwhile = well, lambda: None

    @rule(who=WHO)
    def what_stalled_arrives(self, who):
        while self.processes[who].way.late:
            self.processes[who].way.arrive()

    @rule(who=WHO)
    def an_entry_stalls_and_its_author_tries_again(self, who):
        process = self.processes[who]
        process.way.choose = Script(("create", Fault.STALL))
        process.act("go_on")
        process.way.choose = well
        self.what_stalled_arrives(who)
        process.act("carry", "go_on")

    @precondition(lambda self: len(self.rotten) < 2 and self.needed())
    @rule(number=st.integers(0, 3), gone=st.booleans())
    def a_blob_rots(self, number, gone):
        needed = sorted(self.needed())
        blob = needed[number % len(needed)]
        path = self.shared.path(f"blob/{blob[:2]}/{blob}")
        if not path.exists():
            return
        data = path.read_bytes()
        path.unlink()
        if not gone:
            path.write_bytes(b"?" + data[1:])
        self.rotten.add(blob)

    # what must hold

    def state(self) -> State:
        """The log as it stands on the shared disk, read by nothing that is under test."""
        names = self.shared.names(f"log/{KEY}")
        assert names == [f"{number:010d}" for number in range(len(names))], "a position is free"
        bodies = [json.loads(self.shared.read(f"log/{KEY}/{name}")) for name in names]
        return fold([Entry(at, body["kind"], body) for at, body in enumerate(bodies)])

    def needed(self) -> set[str]:
        """The blobs that must be on the shared disk."""
        state = self.state()
        entries = [state.result] if state.result else alive(state.entries)
        return {blob for entry in entries for blob in entry.digests}

    def appeared(self, name: str, data: bytes) -> None:
        """An entry was written: by its owner, of bytes that are there, and further than before."""
        state = self.state()
        entry, before = state.entries[-1], fold(list(state.entries[:-1]))
        assert name == log.entry_name(KEY, entry.position) and data == self.raw(entry.position)
        if entry.kind == "claim":
            return
        author = self.authors[data]
        owner = [each for each in state.entries if each.kind == "claim"][-1].body["owner"]
        assert author == owner, f"{author} wrote a {entry.kind} into the work of {owner}"
        for blob in entry.digests:
            assert blob in self.rotten or self.shared.whole(blob), f"no bytes for {entry}"
        if entry.kind == "checkpoint":
            earlier = [each.body for each in alive(before.entries)]
            steps = [body["step"] for body in earlier]
            assert entry.body["step"] > max(steps, default=0), f"{steps}, then {entry}"
        if entry.kind == "result" and before.result is not None:
            assert self.authors[self.raw(before.result.position)] == author

    def raw(self, position: int) -> bytes:
        return self.shared.read(log.entry_name(KEY, position))

    @invariant()
    def entries_never_change(self):
        names = self.shared.names(f"log/{KEY}")
        now = [self.shared.read(f"log/{KEY}/{name}") for name in names]
        assert now[: len(self.seen)] == self.seen
        self.seen = now

    @invariant()
    def the_first_result_stands(self):
        state = self.state()
        if self.first is not None and state.result != self.first:
            retired = [each.body["positions"] for each in state.entries if each.kind == "retire"]
            assert self.first.position in itertools.chain(*retired)
        self.first = state.result

    @invariant()
    def what_is_needed_is_there(self):
        self.rotten = {blob for blob in self.rotten if not self.shared.whole(blob)}
        for blob in self.needed() - self.rotten:
            assert self.shared.whole(blob), f"{blob[:12]} is not whole"

    def teardown(self):
        """All writes have arrived and nothing fails any more: somebody can finish the work."""
        for process in self.processes:
            while process.way.late:
                process.way.arrive()
        for number in range(4):  # one finds a blob of the result damaged, the next makes it again
            self.process(f"heir{number}", "").act("start", "finish")
        result = self.state().result
        assert result is not None and all(map(self.shared.whole, result.digests))
        self.folder.cleanup()


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def one_by_one(store: Store, call, items) -> list:
    """In place of ``Store.side_by_side``: the same order in every run."""
    return [call(each) for each in (sorted(items) if isinstance(items, set) else items)]


@pytest.fixture
def simple(monkeypatch):
    """No waiting, no threads, no flushing."""
    monkeypatch.setattr(store_module, "time", Clock())
    monkeypatch.setattr(work_module, "_ONE_TRY", 0.0)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(Store, "side_by_side", one_by_one)


def test_whatever_fails_and_whoever_comes_late(simple):
    print(f"{EXAMPLES} examples of {STEPS} steps, the same in every run (derandomized)")
    run_state_machine_as_test(
        Processes,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
