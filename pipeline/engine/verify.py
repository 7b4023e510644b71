"""Walk a store, wherever it is, and hold every byte against its name; nothing is changed.

Each blob is read to its end and nothing of it kept. Of every log the entries must be readable and
without gaps, and the blobs that are needed there, with the sizes that the entries say. With
``quick`` no blob is read: presence and sizes alone.

Cost: four requests for each key, one for each blob, and all bytes over the network if the store is
elsewhere; a few blobs are read at once, in 128 MiB of memory.
"""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pipeline.engine import log
from pipeline.engine.log import State
from pipeline.engine.needed import Progress, Unreadable, all_blobs, needed_by, unreadable
from pipeline.store.fetch import REMAKE
from pipeline.store.storage import blob_name
from pipeline.store.store import Store

_COPY = "put it back from a copy of the store, or `pipeline pull` from one. Else `pipeline run`"
_KEEPS = (
    "Until the key has a result, `pipeline gc` keeps all blobs that it may have named, unless told "
    "--despite-damage"
)
_AT_ONCE = 4  # blobs read side by side from a store elsewhere


@dataclass(frozen=True)
class Problem:
    """One damage. ``kind`` is damaged, missing, size, entry or gap; ``said`` says what to do."""

    kind: str
    name: str
    said: str


@dataclass(frozen=True)
class Verdict:
    """What was looked at and what is wrong with it. Nothing hangs on what is ``harmless``."""

    problems: tuple[Problem, ...]
    harmless: tuple[Problem, ...]
    keys: int
    blobs: int
    size: int
    unneeded: int  # blobs that `pipeline gc` frees, and their bytes
    unneeded_size: int


@dataclass(frozen=True)
class _Need:
    """Why a blob must be there: the entry in force that names it, and the size it says."""

    key: str
    entry: str
    stage: str
    size: int


def verify(store: Store, quick: bool, progress: Progress) -> Verdict:
    """Look at the whole store."""
    keys = log.keys(store)
    states = store.side_by_side(lambda key: log.read(store, key), keys)
    kept = set().union(*needed_by(store, progress).values())
    harmless, problems = list[Problem](), list[Problem]()
    ended = {key for key, state in zip(keys, states) if state.result is not None}
    for each in unreadable(store, keys):
        if each.key in ended or (each.settled and not each.gone):
            harmless.append(_harmless(store, each))
        else:
            problems.append(_entry(store, each))
    needs: dict[str, list[_Need]] = {}
    for key, state in zip(keys, states):
        for blob, need in _needs(key, state):
            needs.setdefault(blob, []).append(need)
    blobs = sorted({*all_blobs(store), *needs})
    stats = store.side_by_side(lambda blob: store.stat(blob_name(blob)), blobs)
    sizes = {blob: found[0] for blob, found in zip(blobs, stats) if found is not None}
    for blob in needs.keys() - sizes.keys():
        problems += _missing(store, blob, needs[blob][0])
    read: dict[str, str] = {} if quick else _Reader(store).digests(sizes, progress)
    for blob, size in sizes.items():
        problems += _blob(store, blob, size, read.get(blob, blob), needs.get(blob, []), quick)
    loose = [size for blob, size in sizes.items() if blob not in kept]
    return Verdict(
        tuple(problems),
        tuple(harmless),
        len(keys),
        len(sizes),
        sum(sizes.values()),
        len(loose),
        sum(loose),
    )


def _entry(store: Store, found: Unreadable) -> Problem:
    """An entry that cannot be read, or that keeps those behind it from being read."""
    kind, what, then = "entry", "cannot be read", "goes by what the other entries say"
    if found.gone:
        kind, what = "gap", "is missing, and what follows is not read because of it"
        then = "fills the gap with a claim"
    advice = f"{_COPY} {then}" + ("" if found.settled else f". {_KEEPS}")
    return Problem(
        kind, found.name, f"{store.place}/{found.name} of {found.stage} {what}: {advice}"
    )


def _harmless(store: Store, found: Unreadable) -> Problem:
    said = f"{store.place}/{found.name} of {found.stage} cannot be read, and nothing hangs on it"
    return Problem("gap" if found.gone else "entry", found.name, said)


def _needs(key: str, state: State) -> Iterator[tuple[str, _Need]]:
    """The blobs that the entries in force of a log name."""
    for entry in (state.result,) if state.result else state.checkpoints:
        for blob, size in entry.digests.items():
            yield blob, _Need(key, log.entry_name(key, entry.position), state.stage, size)


def _missing(store: Store, blob: str, need: _Need) -> Iterator[Problem]:
    """A needed blob that is not there, unless its owner replaced it while we looked."""
    if blob in log.read(store, need.key).needed and store.stat(blob_name(blob)) is None:
        yield Problem(
            "missing",
            blob,
            f"blob {blob[:12]} of {need.stage} (key {need.key[:12]}) is missing: {REMAKE}",
        )


def _blob(
    store: Store, blob: str, size: int, read: str, needs: list[_Need], quick: bool
) -> Iterator[Problem]:
    """What is wrong with a blob that is there. ``read`` is its bytes' sha256, or why there is none.

    One whose bytes match its name is right, whatever size an entry says.
    """
    place = f"{store.place}/{blob_name(blob)}"
    if read != blob:
        fix = f"delete it and {REMAKE}" if needs else "nothing needs it, delete it"
        what = f"its {size:,} bytes hash to {read[:12]}" if len(read) == len(blob) else read
        yield Problem("damaged", blob, f"{place} is damaged ({what}): {fix}")
        return
    for need in needs:
        if need.size != size:
            wrong = "" if quick else ", wrongly, because the bytes match their name"
            yield Problem(
                "size",
                blob,
                f"{place} has {size:,} bytes, and {need.entry} of {need.stage} says "
                f"{need.size:,}{wrong}: {REMAKE}",
            )


class _Reader:
    """Reads blobs to their ends, several at once where each waits for a network."""

    def __init__(self, store: Store) -> None:
        self.store, self.read, self.ended = store, 0, False
        self._lock = threading.Lock()

    def digests(self, sizes: dict[str, int], progress: Progress) -> dict[str, str]:
        """The sha256 of each blob, or why there is none; blobs that vanish are left out."""
        total = sum(sizes.values())
        with ThreadPoolExecutor(_AT_ONCE if self.store.remote else 1) as pool:
            reading = {blob: pool.submit(self._digest, blob) for blob in sizes}
            try:
                left = set(reading.values())
                while left:
                    done, left = wait(left, 0.2, FIRST_EXCEPTION)
                    for future in done:
                        future.result()  # raises what ended it: then the rest is not read
                    progress(self.read, total, "B")
            finally:
                self.ended = True  # after Ctrl-C, those that read now stop at their next piece
                pool.shutdown(wait=False, cancel_futures=True)
        return {blob: digest for blob, future in reading.items() if (digest := future.result())}

    def _digest(self, blob: str) -> str:
        try:
            return self.store.insist(lambda: self._once(blob))
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}"

    def _once(self, blob: str) -> str:
        digest, have = hashlib.sha256(), 0
        try:
            for piece in self.store.blob_chunks(blob):
                digest.update(piece)
                have += len(piece)
                self._count(len(piece))
                if self.ended:
                    raise InterruptedError
        except BaseException:
            self._count(-have)  # whoever tries again reads from the start
            raise
        return digest.hexdigest()

    def _count(self, count: int) -> None:
        with self._lock:
            self.read += count
