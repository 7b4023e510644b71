"""The engine: which stages are done, which must run, and running them so that nothing is lost.

``plan`` goes through the stages in order. A stage whose inputs are known has a record and so a key;
the key's log says whether there is a result, in this store or in one of the stores that it may read
from. ``run`` goes to the first stage without one and brings what another store has of it, follows
the process that works on it or does the work itself (work.py), until all have a result.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data import sources
from pipeline.engine import code, keys, log, remembered
from pipeline.engine.beat import Watch, me
from pipeline.engine.courier import attend
from pipeline.engine.log import Entry, State
from pipeline.engine.session import Session
from pipeline.engine.transfer import bring
from pipeline.engine.unfinished import unfinished
from pipeline.engine.work import Work
from pipeline.errors import Interrupted, Lost
from pipeline.hashing import file_digest
from pipeline.machine import Machine
from pipeline.memo import Memo
from pipeline.recipe import Recipe
from pipeline.stage import Stage
from pipeline.stages import STAGES
from pipeline.store.store import PATIENCE, Store
from pipeline.ui import Ui, while_away


@dataclass(frozen=True)
class Planned:
    """A stage with what is known of it now. ``key`` is None while an input is not made yet."""

    stage: Stage
    record: dict[str, Any] | None = None
    key: str | None = None
    state: State | None = None
    missing: tuple[str, ...] = ()  # blobs of its result that are gone
    origin: Store | None = None  # the other store that ``state`` is of

    @property
    def result(self) -> Entry | None:
        """The result, if all its bytes are there."""
        return None if self.state is None or self.missing else self.state.result


class Engine:
    """The stages of one recipe on one store; ``upstreams`` are read from and never written to."""

    def __init__(self, store: Store, recipe: Recipe, upstreams: tuple[Store, ...] = ()) -> None:
        self.store, self.recipe, self.upstreams = store, recipe, upstreams
        self.memo = Memo(store.root / "cache" / "memo.json")

    # planning

    def plan(self) -> list[Planned]:
        """Every stage in order, from what is known here: nothing is downloaded."""
        planned: dict[str, Planned] = {}
        for stage in STAGES:
            planned[stage.name] = self._plan(stage, planned, fetch=False)
        if self.store.remote or self.store.root.exists():  # looking makes no store
            self.memo.save()
        return list(planned.values())

    def _plan(
        self, stage: Stage, earlier: dict[str, Planned], fetch: bool, progress: Any = None
    ) -> Planned:
        """With ``fetch`` a remote data source is downloaded if need be."""
        inputs = {}
        if stage.source:
            source = remembered.source_digest(
                self.store, self.recipe, fetch, lambda: self.source(fetch, progress).digest
            )
            if source is None:
                return Planned(stage)
            inputs["source"] = source
        for name in stage.inputs:
            upstream, file = name.split("/")
            # digests of a result stay known when its bytes are gone: they can be made again
            state = earlier[upstream].state
            if state is None or state.result is None:
                return Planned(stage)
            inputs[name] = state.result.body["files"][file]["digest"]
        digests = code.code_digests([stage.module], self.memo)
        units = {unit: digest[:16] for unit, digest in digests.items()}
        record = keys.record(
            stage.name, stage.version, units, self.recipe.settings(stage.reads), inputs
        )
        planned = self._look(Planned(stage, record, keys.key(record)))
        for origin in self.upstreams if planned.result is None else ():
            theirs = self._look(planned, origin)
            if theirs.result is not None:
                return theirs
        return planned

    def _look(self, planned: Planned, origin: Store | None = None) -> Planned:
        """The stage as the log of its key says in the store, or in another."""
        store = origin or self.store
        state = log.read(store, planned.key or "")
        missing = store.missing(state.result.digests) if state.result else ()
        return replace(planned, state=state, missing=missing, origin=origin)

    def source(self, fetch: bool, progress: Any = None) -> sources.Source:
        return sources.resolve(
            self.recipe.data.source, self.store.root, self.memo, fetch=fetch, progress=progress
        )

    # reading results

    def file(self, planned: Planned, name: str) -> Path:
        """A verified file of a stage's result. Raises ValueError if there is no result yet."""
        if planned.result is None:
            raise ValueError(
                f"{planned.stage.name} has no result yet in {self.store.place}: run `pipeline run` "
                "first"
            )
        store = planned.origin or self.store
        return store.blob(planned.result.body["files"][name]["digest"])

    # running

    def run(
        self, upto: str, machine: Machine, ui: Ui, stopping: Callable[[], bool]
    ) -> list[tuple[Planned, bool]]:
        """Bring every stage up to ``upto`` to a result; returns each, and whether it ran here.

        Raises Interrupted when ``stopping()`` becomes true, ValueError for what the user can mend.
        """
        waiting = while_away(ui, stopping)
        for each in (self.store, *self.upstreams):
            attend(each, ui.note, stopping)
        self.store = self.store.patient(PATIENCE, waiting)
        self.upstreams = tuple(each.patient(PATIENCE, waiting) for each in self.upstreams)
        done: dict[str, Planned] = {}
        report = []
        for stage in STAGES:
            planned = self._plan(stage, done, True, ui.fetching(stage.name, stopping))
            if not done:  # only now: a run whose data cannot be found is not worth remembering
                remembered.remember(self.store, self.recipe)
            ran = False
            if planned.result is None or planned.origin is not None:
                planned, ran = self._bring_about(planned, Session(machine, ui, stopping))
            done[stage.name] = planned
            report.append((planned, ran))
            ui.stage_done(planned, ran)
            if stage.name == upto:
                break
        self.memo.save()
        return report

    def _bring_about(self, planned: Planned, session: Session) -> tuple[Planned, bool]:
        """Run the stage here, or wait for whoever runs it; says which."""
        self.store.disk.sweep()
        ran = False
        while True:
            planned = self._look(planned)
            if planned.result is not None:
                return planned, ran
            if _resend(self.store, planned.stage, planned.missing, session):
                continue
            assert planned.state is not None
            if planned.state.owner is not None:
                moved_on = self._follow(planned, session)
                if moved_on or log.read(self.store, planned.key or "") != planned.state:
                    continue
            try:
                if not self._bring(planned, session):
                    self._work(planned, session)
                    ran = True
            except Lost:
                session.ui.note(f"{planned.stage.name}: another process works on this stage now")

    def _bring(self, planned: Planned, session: Session) -> bool:
        """Bring a result, or checkpoints further than ours, from an upstream; False if none has."""
        for origin in self.upstreams:
            if bring(origin, self.store, planned.key or "", me(), session.counting(planned.stage)):
                session.ui.note(f"{planned.stage.name}: brought from {origin.place}")
                return True
        return False

    def _follow(self, planned: Planned, session: Session) -> bool:
        """Wait while the owner lives; False once it is dead, True once it has ended its work."""
        assert planned.state is not None and planned.state.owner is not None
        owner, seen = planned.state.owner, len(planned.state.entries)
        watch = Watch(self.store, planned.key or "", owner)
        told = False
        while watch.alive():
            if not told:
                session.ui.following(planned.stage.name, owner)
                told = True
            if session.stopping():
                raise Interrupted(f"{planned.stage.name} goes on in the other process")
            session.ui.other_progress(planned.stage.name, watch.progress())
            time.sleep(2.0 if self.store.remote else 0.5)
            if self.store.read(log.entry_name(planned.key or "", seen)) is not None:
                state = log.read(self.store, planned.key or "")
                if state.owner != owner:
                    return True
                seen = len(state.entries)  # a checkpoint
        return False

    def _work(self, planned: Planned, session: Session) -> None:
        """Run the stage here on the files of earlier ones. Raises Lost if others were faster."""
        assert planned.record is not None and planned.key is not None and planned.state is not None
        stage, digests = planned.stage, planned.record["inputs"]
        work = Work(self.store, stage, planned.key, planned.state, session)
        fresh = stage.name == "train" and not work.candidates
        if fresh and (words := unfinished(work.brisk, planned.key, planned.record)):
            session.ui.note(f"{stage.name}: {words}")
        report = session.counting(stage)
        paths = self.store.side_by_side(
            lambda name: self.store.blob(digests[name], report), stage.inputs
        )
        inputs = dict(zip(stage.inputs, paths))
        source = self.source(True) if stage.source else None
        work.run(self.recipe, planned.record, inputs, source, planned.missing)


def _resend(store: Store, stage: Stage, blobs: tuple[str, ...], session: Session) -> bool:
    """Send blobs that the store has lost as far as this machine's copies are whole; was one?"""
    paths = {blob: store.blob_path(blob) for blob in blobs if store.remote is not None}
    whole = [blob for blob, path in paths.items() if path.exists() and file_digest(path) == blob]
    if whole:
        session.ui.note(
            f"{stage.name}: {len(blobs)} files of its result are missing from {store.place}; "
            f"{len(whole)} of them are sent again from this machine's cache"
        )
    for blob in whole:
        store.send(blob)
    return bool(whole)
