"""Another run of a stage that stands unfinished, of which a person should hear before a new one.

A changed setting or line of code makes another key, and so a run that starts anew; the steps of the
one before are still there, and training can go on from them (inherit.py: ``adopt``). It is a hint:
what cannot be read, or not within a few seconds, costs the hint and nothing else.
"""

import time
from contextlib import suppress
from typing import Any

from pipeline.engine import keys, log
from pipeline.engine.beat import Watch, young
from pipeline.engine.log import State
from pipeline.errors import StoreError
from pipeline.store.store import Store

_FEW = 4  # differences; a run with more is another undertaking
_WITHIN = 5.0  # seconds
# settings of the model that change neither the shape of a tensor nor what its numbers mean
_SAME_SHAPE = ("context", "dropout", "attention_dropout", "rope_base", "zero_init")


def reshaped(was: dict[str, Any], now: dict[str, Any], optimizer: bool) -> str | None:
    """The first setting by which tensors differ in shape or meaning; ``optimizer``: its, too."""
    for name in sorted(was.keys() & now.keys()):
        section, _, field = name.partition(".")
        shapes = section == "model" and field not in _SAME_SHAPE
        if (shapes or (optimizer and name == "train.optimizer")) and was[name] != now[name]:
            return name
    return None


def unfinished(store: Store, key: str, record: dict[str, Any]) -> str | None:
    """What to say of the nearest run that could be adopted instead; None if none is found."""
    found: list[tuple[int, int, str, list[str]]] = []
    until = time.monotonic() + _WITHIN
    with suppress(StoreError, OSError):
        for other in log.keys(store):
            if time.monotonic() > until:
                break
            with suppress(StoreError, OSError):
                state = log.read(store, other)
                if other != key and _adoptable(state, record) and not _alive(store, other, state):
                    differs = keys.differences(state.record or {}, record)
                    found.append((len(differs), -_step(state), other, differs))
    nearest = min(found, default=None)
    if nearest is None or nearest[0] > _FEW:
        return None
    _, step, other, differs = nearest
    return (
        f"another run stands unfinished at step {-step:,}; since then {', '.join(differs)}. "
        f"To go on from there, stop this one and say `pipeline adopt {other[:12]}`"
    )


def _adoptable(state: State, record: dict[str, Any]) -> bool:
    was = state.record
    if was is None or was["stage"] != record["stage"] or was["inputs"] != record["inputs"]:
        return False
    if state.result is not None or not state.checkpoints:
        return False
    fits = reshaped(was["recipe"], record["recipe"], optimizer=True) is None
    return fits and _step(state) < record["recipe"].get("train.steps", 0)


def _step(state: State) -> int:
    return state.checkpoints[-1].body["step"]


def _alive(store: Store, key: str, state: State) -> bool:
    """As far as one look can tell: by its lock on this machine, by its last beat elsewhere."""
    if state.owner is None:
        return False
    watch = Watch(store, key, state.owner)
    return watch.alive() and young(watch.last().get("at"))
