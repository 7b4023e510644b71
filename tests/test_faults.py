"""Several processes work on one key while the store fails in every way it can.

Hypothesis draws what they do, which calls fail and how, which writes arrive late, which blobs rot,
and who acts in the middle of another's call. Anybody may judge any owner dead at any time: the one
that was suspended goes on later and must not do harm. What a process does is the pipeline's own
code (work.py, log.py, store.py, gc.py), without the threads; what it computes is a few words, which
tell where they come from. All claims are checked on the shared disk itself, an entry's in the very
instant in which it appears. At the end whoever comes next must be able to finish the work.

No real time passes: waiting for the store is skipped, and nothing is flushed to the disk.
"""

import hashlib
import io
import itertools
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults import STRIKES, Fault, Faulty, Script, well
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

from pipeline.engine import log
from pipeline.engine import work as work_module
from pipeline.engine.courier import Checkpoint
from pipeline.engine.log import Entry, State, fold
from pipeline.engine.work import Session, Work
from pipeline.errors import Interrupted, Lost, StoreAway, StoreError
from pipeline.machine import Machine
from pipeline.stages import STAGES
from pipeline.store import store as store_module
from pipeline.store.disk import Disk
from pipeline.store.store import Store
from pipeline.ui import Ui

KEY = "k" * 64
LAST = 8  # the step at which the work is done
TRAIN = next(stage for stage in STAGES if stage.name == "train")
EXAMPLES, STEPS = 150, 40


def made(step: int, by: str) -> dict[str, bytes]:
    """The files of a checkpoint; the best weights stay the same for two steps."""
    state = b" ".join(b"%d" % number for number in range(1, step + 1))
    return {"state": b"state " + state + by.encode(), "best": b"the best of %d" % (step // 2)}


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


class Signed(Faulty):
    """A faulty way to the shared disk that remembers which owner wrote what."""

    def __init__(self, inner: Shared, authors: dict[bytes, str]) -> None:
        super().__init__(inner)
        self.authors, self.owner = authors, ""

    def create(self, name: str, data: bytes) -> None:
        self.authors.setdefault(data, self.owner)
        super().create(name, data)


class Process:
    """One after the other of the processes of a machine that work on the key."""

    def __init__(self, name: str, cache: Path, way: Signed, by: str, patience: float) -> None:
        self.name, self.way, self.by = name, way, by
        self.store = Store(Disk(cache), way).patient(patience, lambda why: None)
        self.lives = itertools.count()
        self.vanish()

    def act(self, *acts: str) -> None:
        for act in acts:
            cuts = self.way.cuts
            try:
                getattr(self, act)()
            except Lost:
                assert self.way.cuts > cuts or self._is_taken(), "nobody else has the work"
                self.vanish()
            except StoreError as error:
                self._give_up(error)

    def vanish(self) -> None:
        """Killed: what remains is on the disk."""
        self.work: Work | None = None
        self.waiting: Checkpoint | None = None  # made and not yet carried
        self.step = 0

    def start(self) -> None:
        """What the engine does for a stage, whoever owns it: everybody is judged dead."""
        self.vanish()
        state = self._look()
        missing = self.store.missing(state.result.digests) if state.result else ()
        if state.result and not missing:
            self._fetch(state.result)
            return
        session = Session(Machine(), Ui(io.StringIO()), lambda: False)
        work = Work(self.store, TRAIN, KEY, state, session)
        self.claimed = len(state.entries)
        self.way.owner = f"{self.name}{next(self.lives)}"
        work.claim = work._take(SimpleNamespace(owner=self.way.owner), {"stage": "train"})
        self.work = work
        if missing:
            work._retire_result(missing[0])
        restored = work._restore()
        self.step = restored.step
        for name, path in (restored.files or {}).items():
            assert path.read_bytes().startswith(made(self.step, "")[name])

    def go_on(self) -> None:
        """A checkpoint further, or the result."""
        if self.work is None:
            self.start()
        elif self.step < LAST - 1:
            self.step += 1
            self.waiting = Checkpoint(self.step, 0.0, self._files())  # in place of what waits
            self.carry()
        else:
            self.finish()

    def carry(self) -> None:
        if self.work is None or self.waiting is None:
            return
        try:
            self.work._carry(self.waiting)
        except StoreAway:
            return  # the courier tries again
        self.waiting = None

    def finish(self) -> None:
        if self.work is None:
            return
        self.step = LAST
        body = {"files": self.work._publish(self._files()), "metrics": {}}
        self.store.insist(lambda: self.work.claim.append("result", body))
        self.store.disk.remove(self.work._unsent)
        self.work._prune()
        self.vanish()

    def leave(self) -> None:
        self._give_up(Interrupted("on purpose"))

    def fetch(self) -> None:
        """Look at the newest that the log names, as another program may at any time."""
        state = self._look()
        for entry in [state.result] if state.result else state.checkpoints[-1:]:
            self._fetch(entry)

    def _look(self) -> State:
        """The log, with all that is in it before it is read."""
        there = len(self.way.inner.names(f"log/{KEY}"))
        state = log.read(self.store, KEY)
        assert len(state.entries) >= there
        return state

    def _is_taken(self) -> bool:
        """Has another the position that this one needs?"""
        position = self.work.claim.next if self.work else self.claimed
        entry = self.way.inner.read(log.entry_name(KEY, position))
        return entry is not None and self.way.authors[entry] != self.way.owner

    def _fetch(self, entry: Entry) -> None:
        for name, item in entry.body["files"].items():
            data = self.store.blob(item["digest"]).read_bytes()
            assert data.startswith(made(entry.body.get("step", LAST), "")[name])

    def _give_up(self, error: Exception) -> None:
        if self.work is not None:
            self.work._give_up(error)
        self.vanish()

    def _files(self) -> Path:
        folder = self.store.root / "made" / f"{self.way.owner}-{self.step}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in made(self.step, self.by).items():
            (folder / name).write_bytes(data)
        return folder


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
            again = earlier and earlier[-1]["files"] == entry.body["files"]  # the answer was lost
            assert again or entry.body["step"] > max(steps, default=0), f"{steps}, then {entry}"
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
