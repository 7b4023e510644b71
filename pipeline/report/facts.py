"""What the report tells, read from the store and verified before a word is written."""

import json
from dataclasses import dataclass, replace
from typing import Any

from pipeline import recipe
from pipeline.cli import show
from pipeline.engine.engine import Engine, Planned
from pipeline.recipe import Recipe
from pipeline.redact import redacted


@dataclass(frozen=True)
class Facts:
    """All about one run."""

    recipe: Recipe  # without the secrets that a source's URL may hold: pages are passed around
    defaults: Recipe  # the size's own recipe
    plan: dict[str, Planned]
    told: dict[str, dict[str, Any]]  # stage -> its state as ``pipeline status --json`` says it
    history: dict[str, Any] | None  # {"losses": [...], "validation": [{"step", "loss"}, ...]}
    samples: dict[str, Any] | None
    place: str  # of the store

    def metrics(self, stage: str) -> dict[str, Any] | None:
        """What a stage's result says of itself; None if there is no result."""
        result = self.plan[stage].result
        return None if result is None else result.body["metrics"]

    @property
    def unfinished(self) -> list[str]:
        """Stages without a result."""
        return [name for name, planned in self.plan.items() if planned.result is None]


def gather(engine: Engine) -> Facts:
    """Read everything. Raises ValueError if no stage of the recipe has a result or a checkpoint."""
    plan = {planned.stage.name: planned for planned in engine.plan()}
    history = _history(engine, plan["train"])
    if history is None and all(planned.result is None for planned in plan.values()):
        source = redacted(engine.recipe.data.source)
        raise ValueError(
            f"there is nothing to report yet: {engine.recipe.size} on {source} has no results in "
            f"the store {engine.store.place}. Run `pipeline run` first"
        )
    sample, data = plan["sample"], engine.recipe.data
    return Facts(
        recipe=replace(engine.recipe, data=replace(data, source=redacted(data.source))),
        defaults=recipe.load(engine.recipe.size),
        plan=plan,
        told=show.status(engine, list(plan.values()))["stages"],
        history=history,
        samples=show.load_json(engine, sample, "samples.json") if sample.result else None,
        place=redacted(engine.store.place),
    )


def _history(engine: Engine, train: Planned) -> dict[str, Any] | None:
    """The loss of every step: of the result, or else as far as the newest checkpoint goes."""
    state = train.state
    if state is None or not (state.result or state.checkpoints):
        return None
    newest = state.result or state.checkpoints[-1]
    blob = newest.body["files"]["history.json"]
    if not engine.store.has(blob["digest"], blob["size"]):
        return None
    return json.loads(engine.store.blob(blob["digest"]).read_text(encoding="utf-8"))
