"""Another run of a stage that stands unfinished, of which a person should hear before a new one.

A changed setting, input or line of code makes another key, and so a run that starts anew; the steps
of the one before are still there, and training can go on from them (inherit.py: ``adopt``).
"""

from typing import Any

from pipeline.engine import keys, log
from pipeline.engine.beat import Watch
from pipeline.engine.log import State
from pipeline.store.store import Store

_FEW = 4  # differences; a run with more is another undertaking


def unfinished(store: Store, key: str, record: dict[str, Any]) -> str | None:
    """What to say of the run that is nearest to this one, has checkpoints and nobody works on."""
    found: list[tuple[int, int, str, State, list[str]]] = []
    for other in log.keys(store):
        state = log.read(store, other)
        if other == key or state.result is not None or not state.checkpoints:
            continue
        if state.record is None or state.stage != record["stage"]:
            continue
        differs = keys.differences(state.record, record)
        if len(differs) <= _FEW and not _worked_on(store, other, state):
            found.append((len(differs), -_step(state), other, state, differs))
    if not found:
        return None
    *_, other, state, differs = min(found, key=lambda each: each[:3])
    return (
        f"another run stands unfinished at step {_step(state):,}; since then {', '.join(differs)}. "
        f"To go on from there, stop this one and say `pipeline adopt {other[:12]}`"
    )


def _step(state: State) -> int:
    return state.checkpoints[-1].body["step"]


def _worked_on(store: Store, key: str, state: State) -> bool:
    return state.owner is not None and Watch(store, key, state.owner).alive()
