"""A process that works on a key as the engine does, one act at a time and without threads.

Its code is the pipeline's own (work.py, log.py, store.py, gc.py). What it computes are a few words
that tell how far they are, so that whoever goes on from them can be held to it.
"""

import io
import itertools
from pathlib import Path
from types import SimpleNamespace

from faults import Faulty

from pipeline.engine import log
from pipeline.engine.courier import Checkpoint
from pipeline.engine.log import Entry, State
from pipeline.engine.session import Session
from pipeline.engine.unsent import UNSENT
from pipeline.engine.work import Work
from pipeline.errors import Interrupted, Lost, StoreAway, StoreError
from pipeline.machine import Machine
from pipeline.stages import STAGES
from pipeline.store.disk import Disk
from pipeline.store.storage import Storage
from pipeline.store.store import Store
from pipeline.ui import Ui

KEY = "k" * 64
LAST = 8  # the step at which the work is done
TRAIN = next(stage for stage in STAGES if stage.name == "train")


def made(step: int, by: str) -> dict[str, bytes]:
    """The files of a checkpoint; the best weights stay the same for two steps."""
    state = b" ".join(b"%d" % number for number in range(1, step + 1))
    return {"state": b"state " + state + by.encode(), "best": b"the best of %d" % (step // 2)}


class Signed(Faulty):
    """A faulty way to the shared disk that remembers which owner wrote what."""

    def __init__(self, inner: Storage, authors: dict[bytes, str]) -> None:
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
        work._take(SimpleNamespace(owner=self.way.owner), {"stage": "train"})
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
        self.store.disk.remove(f"{UNSENT}/{KEY}")
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
        cuts = self.way.cuts
        try:
            if self.work is not None:
                self.work._give_up(error)
        except (Lost, Interrupted):
            assert self.way.cuts > cuts or self._is_taken(), "nobody else has the work"
        self.vanish()

    def _files(self) -> Path:
        folder = self.store.root / "made" / f"{self.way.owner}-{self.step}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in made(self.step, self.by).items():
            (folder / name).write_bytes(data)
        return folder
