"""Fetching a blob over a bad network: on where it was cut, and never wrong bytes.

What is far away here is a directory, with faults in front of it.
"""

import os
import signal
from pathlib import Path

import pytest
from faults import Fault, Faulty, Script

from pipeline.errors import StoreAway, StoreError
from pipeline.hashing import digest
from pipeline.store.disk import Disk
from pipeline.store.store import Store

DATA = bytes(range(256)) * 1024


@pytest.fixture
def kept(tmp_path) -> str:
    """A blob that only the store elsewhere has."""
    remote = Store(Disk(tmp_path / "remote"))
    with remote.scratch() as scratch:
        (scratch / "file").write_bytes(DATA)
        return remote.put(scratch / "file")


def fetching(tmp_path: Path, *strikes, remote=Disk) -> tuple[Store, Faulty]:
    """A store that fetches through faults, and gives up at once."""
    way = Faulty(remote(tmp_path / "remote"), Script(*(("chunks", fault) for fault in strikes)))
    return Store(Disk(tmp_path / "cache"), way).patient(0.0, lambda why: None), way


def test_a_fetch_goes_on_where_it_was_cut(tmp_path, kept):
    store, _ = fetching(tmp_path, Fault.BREAK)
    with pytest.raises(StoreAway):
        store.blob(kept)
    have = store.disk.stat(f"part/{kept}")[0]
    assert 0 < have < len(DATA)
    store, way = fetching(tmp_path)
    counts: list[int] = []
    assert store.blob(kept, counts.append).read_bytes() == DATA
    assert way.starts == [have] and sum(counts) == len(DATA)


def test_a_patient_fetch_counts_every_byte_once(tmp_path, kept):
    store, way = fetching(tmp_path, Fault.BREAK, Fault.FAIL)
    counts: list[int] = []
    patient = store.patient(5.0, lambda why: None)
    assert patient.blob(kept, counts.append).read_bytes() == DATA
    assert way.starts[0] == 0 and way.starts[1] == way.starts[2] > 0
    assert sum(counts) == len(DATA)


class Deadly(Disk):
    """Whoever fetches from here is killed half-way."""

    def chunks(self, name: str, start: int = 0):
        yield DATA[: len(DATA) // 2]
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_fetch_goes_on_after_a_kill(tmp_path, kept):
    child = os.fork()
    if child == 0:
        try:
            fetching(tmp_path, remote=Deadly)[0].blob(kept)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    store, way = fetching(tmp_path)
    assert store.blob(kept).read_bytes() == DATA
    assert way.starts == [len(DATA) // 2]


def test_wrong_bytes_are_fetched_again(tmp_path, kept):
    store, way = fetching(tmp_path, Fault.CUT)
    assert store.blob(kept).read_bytes() == DATA
    assert way.starts == [0, 0]


def test_wrong_beginnings_are_not_built_upon(tmp_path, kept):
    store, way = fetching(tmp_path)
    part = store.disk.path(f"part/{kept}")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wrong")
    assert store.blob(kept).read_bytes() == DATA
    assert way.starts == [5, 0]


def test_bytes_that_are_wrong_twice_alike_are_removed(tmp_path, kept):
    store, way = fetching(tmp_path)
    there = tmp_path / "remote" / "blob" / kept[:2] / kept
    there.chmod(0o644)
    there.write_bytes(b"?" + DATA[1:])
    with pytest.raises(StoreError, match=r"was damaged in .* It was removed; run `pipeline run`"):
        store.blob(kept)
    assert way.starts == [0, 0] and not there.exists()
    assert not store.blob_path(kept).exists() and store.disk.stat(f"part/{kept}") is None


def test_bytes_that_are_wrong_in_two_ways_are_the_networks_fault(tmp_path, kept):
    store, _ = fetching(tmp_path, Fault.CUT, Fault.CUT)
    with pytest.raises(StoreAway, match=r"delivered blob .* damaged, twice differently"):
        store.blob(kept)
    assert store.has(kept, len(DATA))
    assert digest(store.blob(kept).read_bytes()) == kept
