"""Bring a blob to this machine: piece by piece, going on where it was cut, verified when whole.

part/<sha256>    what has come so far; one process at a time appends to it
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Damaged, StoreAway, StoreError
from pipeline.hashing import file_digest
from pipeline.store.disk import explain
from pipeline.store.locks import alone
from pipeline.store.storage import Report, blob_name

if TYPE_CHECKING:
    from pipeline.store.store import Store

REMAKE = "run `pipeline run` again, and the stage that made it makes it again"


def fetch(store: "Store", name: str, report: Report) -> None:
    """Bring a blob from where the store is to the disk in front of it.

    Raises Damaged if it is not there or not whole; StoreAway if the network damages it.
    """
    part = store.disk.path(f"part/{name}")
    wrong = []
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with alone(part, lambda: store.waiting("another process fetches the same blob")):
            while not store.blob_path(name).exists():  # another process may have fetched it
                store.insist(lambda: _append_to(part, store, name, report))
                if (found := file_digest(part)) == name:
                    store.disk.move_in(part, blob_name(name))
                    return
                part.unlink()
                wrong.append(found)
                if len(wrong) == 2:
                    raise _damaged(store, name, *wrong)
    except OSError as error:
        raise explain(error, store.root) from error


def _append_to(part: Path, store: "Store", name: str, report: Report) -> None:
    """Fetch what ``part`` does not hold yet; a process that dies leaves what it has."""
    with part.open("ab") as file:
        have = file.tell()
        report(have)
        try:
            for piece in store.records.chunks(blob_name(name), have):
                file.write(piece)
                report(len(piece))
        except FileNotFoundError:
            raise Damaged(f"blob {name[:12]} is missing from {store.place}: {REMAKE}") from None
        except StoreAway:
            report(-file.tell())  # it is counted again when the fetch goes on
            raise


def _damaged(store: "Store", name: str, first: str, second: str) -> StoreError:
    if first != second:
        return StoreAway(f"{store.place} delivered blob {name[:12]} damaged, twice differently")
    if store.guest:
        return Damaged(f"blob {name[:12]} of {store.place} is damaged: verify that store")
    store.remove(blob_name(name))
    return Damaged(
        f"blob {name[:12]} was damaged in {store.place}: its bytes hash to {first[:12]}. It was "
        f"removed; {REMAKE}"
    )
