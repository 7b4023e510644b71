"""Results that the recipe in use does without, and giving them up.

What is given up is retired, in its log and with a reason; its blobs are then unneeded and go in the
two passes of gc.py like all others.
"""

from dataclasses import dataclass

from pipeline.engine import log
from pipeline.engine.beat import me
from pipeline.engine.log import Claim, State
from pipeline.engine.needed import needed_by, readable
from pipeline.errors import Lost
from pipeline.store.locks import machine_id
from pipeline.store.store import Store


@dataclass(frozen=True)
class Superseded:
    """A key that the recipe in use does without."""

    key: str
    stage: str
    state: State
    size: int  # bytes that nothing else needs


def superseded(store: Store, used: dict[str, str]) -> list[Superseded]:
    """Keys with something to give up; ``used`` is stage -> the key that is in use.

    Left alone are keys of stages that ``used`` does not name, keys with an owner in force, and
    those whose log cannot be read whole.
    """
    by_key = needed_by(store)
    states = {key: log.read(store, key) for key in by_key}
    chosen = {
        key: state
        for key, state in states.items()
        if state.record is not None
        and used.get(state.record["stage"], key) != key
        and state.owner is None
        and state.needed
        and readable(state)
    }
    sizes = {blob: size for state in chosen.values() for blob, size in _named(state).items()}
    kept = set().union(*(blobs for key, blobs in by_key.items() if key not in chosen))
    found = []
    for key, state in chosen.items():
        assert state.record is not None
        alone = by_key[key] - kept
        kept |= alone  # what two of them share is counted once
        size = sum(sizes[blob] for blob in alone)
        found.append(Superseded(key, state.record["stage"], state, size))
    return found


def _named(state: State) -> dict[str, int]:
    return {blob: size for entry in state.entries for blob, size in entry.digests.items()}


def give_up(store: Store, chosen: Superseded) -> bool:
    """Retire all that a log has come to; False if somebody began to work on it meanwhile."""
    kinds = ("checkpoint", "adopt", "result", "same")
    positions = [entry.position for entry in chosen.state.entries if entry.kind in kinds]
    why = "gc --superseded"
    try:
        claim = Claim.take(store, chosen.key, chosen.state, me(), {"machine_id": machine_id()})
        claim.append("retire", {"positions": positions, "why": why})
    except Lost:
        return False
    claim.release(why)
    return True
