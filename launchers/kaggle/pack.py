"""A store, or what one run needs of it, as a file: how it travels where only files can.

A pack is a plain tar archive with the names of a store. It is a function of what is in it, so that
its sha256 says whether it has changed. A name that is no name of a store is not unpacked. Blobs are
held against their names when a store takes them out of an unpacked one.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.engine import log
from pipeline.engine.beat import me
from pipeline.engine.transfer import copy_records, deliver, obstacle, pack
from pipeline.errors import Damaged
from pipeline.hashing import canonical
from pipeline.recipe import Recipe
from pipeline.stages import STAGES
from pipeline.store.disk import Disk
from pipeline.store.storage import blob_name
from pipeline.store.store import Store, silent

NAME = "store.ignite"  # an ending that no service takes for an archive to unpack
END = "end"  # the last name in a pack: tarfile takes an archive that was cut for a shorter one
_WORD = r"launch/[\w-]+/(box/\d+|output/\d+/\d{10})"  # what a box says of itself
RECORD = re.compile(rf"log/[0-9a-f]{{64}}/\d{{10}}|ref/source/[0-9a-f]{{64}}|{_WORD}")
KEPT = re.compile(rf"blob/[0-9a-f]{{2}}/[0-9a-f]{{64}}|{RECORD.pattern}")


def keys(store: Store, recipe: Recipe) -> list[str]:
    """The keys of stages with this recipe, by whatever code: theirs may differ from ours."""
    wanted = {stage.name: json.loads(canonical(recipe.settings(stage.reads))) for stage in STAGES}
    found = []
    for key in log.keys(store):
        record = log.read(store, key).record or {}
        if record.get("recipe") == wanted.get(record.get("stage", "")):
            found.append(key)
    return found


def names(store: Store, keys: Iterable[str]) -> Iterator[str]:
    """What there is of some keys: their logs, and the bytes that they need."""
    yield from (f"ref/source/{name}" for name in store.names("ref/source"))
    for key in keys:
        state = log.read(store, key)
        yield from (log.entry_name(key, entry.position) for entry in state.entries)
        yield from map(blob_name, state.needed)


def write(store: Store, chosen: Iterable[str], file: Path) -> None:
    """Make a pack of records and blobs. One that is damaged or gone is left out."""
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(set(chosen)):
            member = tarfile.TarInfo(name)
            if name.startswith("blob/"):
                try:
                    path = store.blob(name.rpartition("/")[2])
                except Damaged:
                    continue
                member.size = path.stat().st_size
                with path.open("rb") as opened:
                    archive.addfile(member, opened)
            elif (data := store.read(name)) is not None:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        archive.addfile(tarfile.TarInfo(END))


def unpack(file: Path, folder: Path) -> None:
    """Write what is in a pack into a folder. Raises ValueError if it is none, or cut."""
    last = None
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                last = member.name
                source = archive.extractfile(member) if member.isreg() else None
                if source is None or not KEPT.fullmatch(member.name):
                    continue
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as target:
                    while piece := source.read(1 << 20):
                        target.write(piece)
    except tarfile.TarError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if last != END:
        raise ValueError(f"{file} is damaged: it was cut")


def merge(source: Store, target: Store) -> None:
    """Bring all that one store knows of keys into another, as `pipeline pull` does."""
    parcels = pack(source, target, log.keys(source))
    able = [each for each in parcels if obstacle(source, target, each, _unsaid) is None]
    deliver(source, target, able, me(), silent, _unsaid)
    copy_records(source, target, [f"ref/source/{name}" for name in source.names("ref/source")])


def guest(folder: Path) -> Store:
    """A folder as a store to read from."""
    store = Store(Disk(folder))
    store.guest = True
    return store


def _unsaid(line: str) -> None:
    """A note that nobody reads: boxes and launchers have no terminal at this point."""
