"""What time it is for those who judge by age: by the clocks of the places where things lie."""

from dataclasses import dataclass

from pipeline.store.store import Store

NOW = "gc/now"


@dataclass(frozen=True)
class Clocks:
    """What time it is by the store's clock, and by that of this machine's disk."""

    store: float
    disk: float


def read_clocks(store: Store) -> Clocks:
    """Write and look: only so are both times of a comparison by the same clock."""
    store.disk.replace(NOW, b"")
    here = store.disk.stat(NOW)
    assert here is not None
    if store.remote is None:
        return Clocks(here[1], here[1])
    store.replace(NOW, b"")
    there = store.stat(NOW)
    assert there is not None
    return Clocks(there[1], here[1])
