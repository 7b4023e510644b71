"""One stage, run here: claim it, hand it what it needs, publish what it made.

The order is what makes it safe. The claim comes first; the stage writes where nobody looks; its
files become blobs; and only then the result names them: an entry never names bytes that are not
there. A process that is killed leaves blobs that nobody names and a claim that others can tell is
dead, and whoever comes next goes on from the newest checkpoint.
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import gc
from pipeline.beat import Beat, bury, machine_id
from pipeline.errors import Lost, StoreError
from pipeline.log import Claim, State
from pipeline.machine import Machine
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.store import Store, explain, is_full
from pipeline.ui import Ui


@dataclass(frozen=True)
class Session:
    """What this process was told: its machine, who watches, and whether somebody asked to stop."""

    machine: Machine
    ui: Ui
    stopping: Callable[[], bool]


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
        self.state, self.session = state, session

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
        with Beat(self.store, self.key) as beat, self.store.scratch() as out:
            self.claim = self._take(beat, record)
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
                    stopping=self.session.stopping,
                    show=_shower(self.session.ui, self.stage.name, beat),
                    save=self._save,
                )
                metrics = importlib.import_module(self.stage.module).run(context)
                files = self._publish(sorted(out.iterdir()))
                body = {"files": files, "metrics": metrics, "seconds": self.seconds()}
                self.claim.append("result", body)
            except Lost:
                raise
            except BaseException as error:
                self.claim.release(type(error).__name__)
                if is_full(error):
                    raise explain(error, self.store.root) from error
                raise
            gc.prune(self.store, self.key)

    def _take(self, beat: Beat, record: dict[str, Any] | None) -> Claim:
        body = {"machine_id": machine_id(), "machine": asdict(self.session.machine)}
        if not self.state.record:
            body["record"] = record
        claim = Claim.take(self.store, self.key, self.state, beat.owner, body)
        if self.state.owner is not None:
            bury(self.store, self.key, self.state.owner)
        return claim

    def _retire_result(self, blob: str) -> None:
        """Take back a result whose bytes are gone, and the checkpoints that it has replaced."""
        assert self.state.result is not None
        entries = (self.state.result, *self.state.checkpoints)
        positions = [entry.position for entry in entries]
        why = f"blob {blob[:12]} was missing"
        self.claim.append("retire", {"positions": positions, "why": why})

    def _restore(self) -> Restored:
        """The newest checkpoint that is whole; damaged ones are retired."""
        if self.state.result is not None:
            return Restored()  # it was finished once, and its checkpoints were removed then
        for entry in reversed(self.state.checkpoints[-gc.KEEP :]):
            step, seconds = entry.body["step"], entry.body["seconds"]
            try:
                files = {
                    name: self.store.blob(item["digest"])
                    for name, item in entry.body["files"].items()
                }
                return Restored(step, seconds, files)
            except StoreError as error:
                self.session.ui.note(f"the checkpoint of step {step} is no use: {error}")
                self.claim.append("retire", {"positions": [entry.position], "why": str(error)})
        return Restored()

    def _publish(self, files: list[Path]) -> dict[str, dict[str, Any]]:
        """Move files into the store as blobs: name -> digest and size."""
        published = {}
        for file in files:
            size = file.stat().st_size
            published[file.name] = {"digest": self.store.put(file), "size": size}
        return published

    def _save(self, step: int, files: list[Path]) -> None:
        """Publish a checkpoint; those that it replaces are removed."""
        body = {"step": step, "files": self._publish(files), "seconds": self.seconds()}
        self.claim.append("checkpoint", body)
        gc.prune(self.store, self.key)


def _stopwatch(spent: float) -> Callable[[], float]:
    """Seconds since now, on top of what others have spent."""
    start = time.monotonic()
    return lambda: round(spent + time.monotonic() - start, 3)


def _shower(ui: Ui, stage: str, beat: Beat) -> Callable[..., None]:
    """Progress goes to the user here and, through the beat, to everybody who asks elsewhere."""

    def show(done: int, total: int | None, unit: str, shown: dict[str, str]) -> None:
        beat.progress = {"done": done, "total": total, "unit": unit, **shown}
        ui.progress(stage, done, total, unit, shown)

    return show
