"""One stage, run here: claim it, hand it what it needs, publish what it made.

The order is what makes it safe. The claim comes first; the stage writes where nobody looks; its
files become blobs; and only then an entry names them: no entry ever names bytes that are not there.
A process that is killed leaves blobs that nobody names and a claim that others can tell is dead,
and whoever comes next goes on from the newest checkpoint: the store's or, if it could not be sent
in time, the one that this machine still has.
"""

import functools
import importlib
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.engine import gc, log
from pipeline.engine.beat import Beat, bury
from pipeline.engine.courier import AWAY_WITHIN, Checkpoint, Courier, attend
from pipeline.engine.log import Claim, Entry, State, stamp
from pipeline.engine.session import Session
from pipeline.engine.stopping import Stopping
from pipeline.engine.unsent import UNSENT, candidates, note_unsent
from pipeline.errors import Damaged, Interrupted, Lost, StoreAway, StoreError
from pipeline.recipe import Recipe
from pipeline.redact import redacted
from pipeline.stage import Context, Stage
from pipeline.store.disk import explain, is_full
from pipeline.store.locks import machine_id
from pipeline.store.store import Store

_ONE_TRY = 20.0  # seconds in which the courier's requests must succeed; it comes again
_LAST_TRY = 2.0  # and in which those of an ending process must
_LINE = 200  # letters of an error that the log keeps


@dataclass(frozen=True)
class Restored:
    """A checkpoint to go on from; ``seconds`` were spent up to it, by whomever."""

    step: int = 0
    seconds: float = 0.0
    files: dict[str, Path] | None = None


class Work:
    """The work on one key, from the claim to the result. ``state`` is what its log said."""

    def __init__(
        self, store: Store, stage: Stage, key: str, state: State, session: Session
    ) -> None:
        self.store, self.stage, self.key = store, stage, key
        self.state, self.stopping = state, Stopping.of(session.stopping)
        self.session = replace(session, stopping=self.stopping)
        self.courier = Courier(self._carry, session.ui.note)
        # what the courier could not do it tries again, so no request of its needs to wait long
        self.brisk = store.patient(_ONE_TRY, lambda why: None)
        self.sending = store.patient(_ONE_TRY, lambda why: self.courier.report(0))
        self.candidates = list(candidates(store, key, state.checkpoints))
        self.kept: set[str] = set()  # blobs on this machine's disk that no entry names yet
        self.pruned: set[str] = set()
        self.returns: list[int] = []  # the steps that the stage went back to, and
        self.returns_told = 0  # how many of them the log knows of
        self.told = False  # that a last checkpoint is being sent
        self.fetched = session.counting(stage)

    def run(
        self,
        recipe: Recipe,
        record: dict[str, Any] | None,
        inputs: dict[str, Path],
        source: Any,
        missing: tuple[str, ...],
    ) -> None:
        """Claim, run, publish. Raises Lost if the claim went to another process.

        ``missing`` are blobs of an earlier result that are gone: it is retired first.
        """
        beating = Beat(self.store, self.key, self._asked_to_stop)
        with beating as beat, self.store.scratch() as scratch, ExitStack() as held:
            self._take(beat, record)
            self.scratch, out = scratch, scratch / "out"
            kept = functools.cache(lambda: held.enter_context(self.store.disk.kept(self.key)))
            show = self._shower(beat)
            self.fetched = self.session.counting(self.stage, show)
            out.mkdir()
            try:
                if missing:
                    self._retire_result(missing[0])
                restored = self._restore()
                self.session.ui.stage_started(self.stage, restored.step if restored.files else None)
                self.seconds = _stopwatch(restored.seconds)
                context = Context(
                    recipe=recipe,
                    machine=self.session.machine,
                    inputs=inputs,
                    out=out,
                    source=source,
                    restored=restored.files,
                    earlier=lambda patient: self._restore(patient).files,
                    stopping=self.stopping,
                    show=show,
                    save=self._save,
                    went_back=self.returns.append,
                    note=self._note,
                    kept=kept,
                    needs=self.stopping.needs,
                )
                metrics = importlib.import_module(self.stage.module).run(context)
                if (left := self.courier.cancel()) is not None:
                    self._keep(left)  # to go on from, if the result cannot be sent
                body = {"files": self._publish(out), "metrics": metrics, "seconds": self.seconds()}
                body |= self._untold(len(self.returns))
                self._send_again(self._append("result", body))
            except Lost:
                self.courier.cancel()
                raise
            except BaseException as error:
                self._give_up(error)
                if is_full(error):
                    raise explain(error, self.store.root) from error
                raise
            self.store.disk.remove(f"{UNSENT}/{self.key}")
            if kept.cache_info().currsize:
                shutil.rmtree(kept(), ignore_errors=True)
            self._prune()

    def _take(self, beat: Beat, record: dict[str, Any] | None) -> None:
        body = {"machine_id": machine_id(), "machine": asdict(self.session.machine)}
        if not self.state.record:
            body["record"] = record
        self.claim = Claim(self.brisk, self.key, len(self.state.entries), beat.owner)
        self._append("claim", {"owner": beat.owner, **body})
        if self.state.owner is not None:
            bury(self.store, self.key, self.state.owner)

    def _append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Append an entry that the work cannot go on without, however long the store is away."""
        body = body | stamp()
        return self.store.insist(lambda: self.claim.append(kind, body))

    def _retire_result(self, blob: str) -> None:
        """Take back a result whose bytes are gone, and the checkpoints that it has replaced."""
        assert self.state.result is not None
        entries = (self.state.result, *self.state.checkpoints)
        positions = [entry.position for entry in entries]
        why = f"blob {blob[:12]} was missing"
        self._append("retire", {"positions": positions, "why": why})

    def _give_up(self, error: BaseException) -> None:
        """Send what can be sent, and let others take the work; soon, if the store is silent."""
        if isinstance(error, KeyboardInterrupt):
            return  # at once, somebody said: others see that this process is gone
        attend(self.store, self.session.ui.note, lambda: True)
        for store in (self.brisk, self.sending):
            store.patience = min(store.patience, _LAST_TRY)
        unsent = None
        with suppress(Exception):  # what made us stop is what the user must hear of
            unsent = self.courier.finish(self._sending)
        with suppress(StoreError):
            if (left := self.courier.cancel()) is not None:
                self._keep(left)
        ours = self.claim.release(_why(error), failed=not isinstance(error, Interrupted))
        if not ours:
            if isinstance(error, Interrupted):
                raise Interrupted("another process has taken over, and goes on") from error
            # it may be the error of one that slept, and woke to files that its successor removed
            raise Lost(f"{self.key[:12]}: another process took it over") from error
        if unsent is not None:
            self.session.ui.note(
                f"{self.stage.name}: the checkpoint of step {unsent:,} could not be sent to "
                f"{self.store.place}. It is kept on this machine, where the same command goes on "
                "from it; other machines go on from the last one that was sent"
            )

    def _publish(self, out: Path) -> dict[str, dict[str, Any]]:
        """Bring the stage's files to the store: name -> digest and size."""
        files = sorted(out.iterdir())
        sizes = {file.name: file.stat().st_size for file in files}
        total, sent = sum(sizes.values()), 0

        def report(count: int) -> None:
            nonlocal sent
            sent += count
            if self.store.remote is not None:
                self.session.ui.progress(
                    self.stage.name, sent, total, "B", {"doing": "sending to the store"}
                )

        digests = {file.name: self.store.put(file, report) for file in files}
        return _named(digests, sizes)

    # checkpoints

    def _save(self, step: int, files: list[Path]) -> None:
        """Hand a checkpoint to the courier. Raises Lost if the work is another's by now."""
        # a run that went back may come to a step again while the courier still has the first
        folder = Path(tempfile.mkdtemp(prefix=f"checkpoint-{step}-", dir=self.scratch))
        for file in files:
            file.rename(folder / file.name)
        self.courier.submit(Checkpoint(step, self.seconds(), folder, len(self.returns)))

    def _carry(self, checkpoint: Checkpoint) -> None:
        """Called in the courier's thread: blobs first, the entry after, what it replaces last."""
        start = time.monotonic()
        body = self._keep(checkpoint)
        try:
            for item in body["files"].values():
                self.sending.send(item["digest"], self.courier.report)
        except Damaged as error:  # our copies are gone: another owner of the key removed them, or
            owner = log.read(self.brisk, self.key).owner
            if owner is None or owner.body["owner"] != self.claim.owner:
                raise Lost(str(error)) from error
            self._note(f"the checkpoint of step {checkpoint.step:,} is not sent: {error}")
            return  # somebody who cleared up; the next one is as good
        self.courier.report(0)  # not wanted any more? then no entry
        self._send_again(self.claim.append("checkpoint", body))
        self.returns_told = checkpoint.returns
        # twice: when the last one is handed over, another may just have set out
        self.stopping.needs("sending", 2 * (time.monotonic() - start))
        self._prune()

    def _send_again(self, entry: Entry) -> None:
        """``gc`` keeps the blobs of an entry that is there; what it took just before goes again."""
        with suppress(StoreAway):
            for blob in self.brisk.missing(entry.digests) if self.store.remote else ():
                self.brisk.send(blob)

    def _prune(self) -> None:
        with suppress(StoreAway):  # then the next checkpoint's turn removes what this one left
            gc.prune(self.brisk, self.key, self.kept, self.pruned)
            self.kept = set()

    def _keep(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Make sure that this machine has a checkpoint, in place of one that was never sent."""
        if checkpoint.body is None:
            files = sorted(checkpoint.folder.iterdir())
            sizes = {file.name: file.stat().st_size for file in files}
            digests = {file.name: self.store.keep(file) for file in files}
            checkpoint.folder.rmdir()
            body = {"step": checkpoint.step, "files": _named(digests, sizes), **stamp()}
            body |= self._untold(checkpoint.returns)
            checkpoint.body = body | {"seconds": checkpoint.seconds}
            # noted before the one that it replaces goes: a kill in between leaves one of them
            note_unsent(self.store, self.key, self.claim, checkpoint.body)
            for blob in self.kept - set(digests.values()):
                self.store.forget(blob)
            self.kept |= set(digests.values())
        return checkpoint.body

    def _untold(self, returns: int) -> dict[str, int]:
        """Of the first so many returns, where those led that the log does not know of."""
        untold = self.returns[self.returns_told : returns]
        return {"back_to": min(untold)} if untold else {}

    def _restore(self, patient: bool = True) -> Restored:
        """The newest checkpoint that is whole, then the one before it; damaged ones are retired.

        Raises StoreAway, without patience soon, and is then to be asked again.
        """
        if self.state.result is not None:
            return Restored()  # it was finished once, and its checkpoints were removed then
        store = self.store if patient else self.brisk
        while self.candidates:
            position, body = self.candidates[0]
            restored = None
            try:
                restored = Restored(body["step"], body["seconds"], self._files(store, body))
            except Damaged as error:
                self.session.ui.note(f"the checkpoint of step {body['step']} is no use: {error}")
                if position is not None:
                    self._append("retire", {"positions": [position], "why": str(error)})
            del self.candidates[0]
            if position is None and "back_to" in body:  # the log does not know yet
                self.returns.append(body["back_to"])
            if restored is not None:
                return restored
        return Restored()

    def _files(self, store: Store, body: dict[str, Any]) -> dict[str, Path]:
        def fetch(item: dict[str, Any]) -> Path:
            return store.blob(item["digest"], self.fetched)

        paths = store.side_by_side(fetch, body["files"].values())
        return dict(zip(body["files"], paths))

    # what is shown

    def _note(self, words: str) -> None:
        self.session.ui.note(f"{self.stage.name}: {words}")

    def _asked_to_stop(self, why: str) -> None:
        """Called by the beat, each time that it finds somebody's request."""
        if not self.stopping.why:
            self._note(f"stopping as soon as all is saved: {why}")
        self.stopping.ask(f"because {why}")

    def _shower(self, beat: Beat) -> Callable[..., None]:
        """Progress goes to the user here and, through the beat, to everybody who asks elsewhere."""

        def show(done: int, total: int | None, unit: str, shown: dict[str, str]) -> None:
            self.courier.check()
            beat.progress = {"done": done, "total": total, "unit": unit, **shown}
            self.session.ui.progress(self.stage.name, done, total, unit, shown)

        return show

    def _sending(self, step: int, sent: int) -> None:
        if self.store.remote is not None:
            if not self.told:
                self.told = True
                self.session.ui.note(
                    f"{self.stage.name}: sending the checkpoint of step {step:,} to "
                    f"{self.store.place}; it stays on this machine if nothing gets through for "
                    f"{AWAY_WITHIN:.0f} s"
                )
            doing = {"doing": f"sending the checkpoint of step {step:,}"}
            self.session.ui.progress(self.stage.name, sent, None, "B", doing)


def _why(error: BaseException) -> str:
    """An error for the log, where others read it: its kind, unless its words are made for people;
    of one that nobody need mend the kind alone."""
    kind = type(error).__name__
    # redacted before it is cut: half a secret is not known as one
    first = "" if isinstance(error, Interrupted) else redacted(str(error)).partition("\n")[0]
    if first and isinstance(error, ValueError | StoreError):
        return first[:_LINE]
    return f"{kind}: {first[:_LINE]}" if first else kind


def _named(digests: dict[str, str], sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    return {name: {"digest": digests[name], "size": sizes[name]} for name in digests}


def _stopwatch(spent: float) -> Callable[[], float]:
    """Seconds since now, on top of what others have spent."""
    start = time.monotonic()
    return lambda: round(spent + time.monotonic() - start, 3)
