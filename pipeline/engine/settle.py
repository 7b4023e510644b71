"""Give up what entries that cannot be read may have said, so that nothing hangs on them any more.

A damaged entry is taken back by a retire; the place of one that is gone is taken by a release, as a
run would take it by a claim. Nobody works on the key before or after.
"""

from collections.abc import Callable

from pipeline.engine import log
from pipeline.engine.beat import me
from pipeline.engine.log import Claim, State
from pipeline.engine.needed import unreadable
from pipeline.engine.transfer import worked_on
from pipeline.errors import Lost
from pipeline.store.locks import machine_id
from pipeline.store.store import Store

_WHY = "gc --despite-damage"


def settle(store: Store, key: str, note: Callable[[str], None]) -> bool:
    """Let nothing hang on what cannot be read in a log; False if somebody works on the key."""
    try:
        while lost := [each for each in unreadable(store, [key]) if not each.settled]:
            state = log.read(store, key)
            if worked_on(store, key, state, note):
                return False
            first = lost[0]  # a gap, if there is one: then what follows can be read
            if first.gone:
                claim = Claim(store, key, first.position, me())
                claim.append("claim", {"owner": None, "why": _WHY})
            else:
                claim = Claim.take(store, key, state, me(), {"machine_id": machine_id()})
                positions = [first.position, *without_bytes(store, state)]
                claim.append("retire", {"positions": positions, "why": _WHY})
                claim.release(_WHY)
    except Lost:
        return False
    return True


def without_bytes(store: Store, state: State) -> list[int]:
    """Positions of checkpoints that a result had replaced, and that come back without it."""
    return [entry.position for entry in state.checkpoints if store.missing(entry.digests)]
