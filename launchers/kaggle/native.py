"""In a Kaggle session without a store elsewhere: where its own store comes from and goes to.

    python -m launchers.kaggle.native gather /kaggle/input /kaggle/working/store SHA256
    python -m launchers.kaggle.native leave /kaggle/working/store

``gather`` merges every store that is mounted, wherever Kaggle mounts it, into the session's own:
the pack that the launch has sent (SHA256, or - if there was nothing to send), and what people
attach.
``leave`` makes the store fit to be left as the session's output: its many records become one file,
because outputs of many files take hours to list, and what the launch has sent is removed, because
whoever fetches the output has it. A session that is killed leaves the store as it stood.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launchers.kaggle import pack
from pipeline.engine import log
from pipeline.hashing import file_digest
from pipeline.store.disk import Disk
from pipeline.store.store import Store

NOT_MOUNTED = 74  # sysexits.h EX_IOERR: the next session may have it
CAME = "cache/came"  # in the store: the blobs that came in the pack that was sent


def gather(inputs: Path, place: Path, sent: str) -> int:
    """Merge what is mounted into the store at ``place``; the exit code."""
    target, came = Store(Disk(place)), list[str]()
    packs = {file: file_digest(file) for file in sorted(inputs.rglob(pack.NAME))}
    if sent != "-" and sent not in packs.values():
        found = ", ".join(f"{file} ({digest[:12]})" for file, digest in packs.items())
        print(
            f"error: the data set with the run so far ({sent[:12]}) is not mounted under {inputs}; "
            f"there is {found or 'none'}. Kaggle may still process it: run this again",
            flush=True,
        )
        return NOT_MOUNTED
    for file, digest in packs.items():
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            pack.unpack(file, Path(scratch))
            source = pack.guest(Path(scratch))
            came += source.blobs() if digest == sent else []
            pack.merge(source, target)
            print(f"took the run so far from {file}", flush=True)
    for folder in _stores(inputs):
        pack.merge(pack.guest(folder), target)
        print(f"took the run so far from {folder}", flush=True)
    target.disk.replace(CAME, "\n".join(came).encode())
    return 0


def _stores(inputs: Path) -> Iterator[Path]:
    """Folders that are stores; nothing inside of one is looked at, there may be much."""
    for folder, inside, _ in os.walk(inputs):
        if {"log", "blob"} <= set(inside):
            inside.clear()
            yield Path(folder)


def leave(place: Path) -> None:
    """Make the store fit to be an output."""
    store = Store(Disk(place))
    keys = log.keys(store)
    came = (store.disk.read(CAME) or b"").decode().split()
    needed = {blob for key in keys for blob in log.read(store, key).needed}.difference(came)
    part = place.parent / f"{pack.NAME}.part"
    pack.write(store, filter(pack.RECORD.fullmatch, _all(place)), part)
    os.replace(part, place.parent / pack.NAME)
    for name in set(store.blobs()) - needed:
        store.remove_blob(name)
    for each in place.iterdir():
        if each.name != "blob":
            shutil.rmtree(each)


def _all(place: Path) -> Iterator[str]:
    """The names of all that is in a folder."""
    return (each.relative_to(place).as_posix() for each in place.rglob("*") if each.is_file())


def main(words: list[str]) -> int:
    if words[0] == "gather":
        return gather(Path(words[1]), Path(words[2]), words[3])
    leave(Path(words[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
