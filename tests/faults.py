"""A place that fails in the ways a network does, around a place that works.

    Faulty(Disk(path), choose)

``choose(call, name)`` is asked before each call which fault strikes it; None, or a fault that this
call cannot suffer, lets it pass. A ``Script`` is such a choice, and so is any function. Writes that
stalled wait in ``late`` until the test lets one ``arrive``: by then others may have written.
"""

import contextlib
import enum
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import StoreAway, StoreError
from pipeline.store.storage import Report, Storage
from pipeline.store.store import silent


class Fault(enum.Enum):
    """What may happen to a call."""

    FAIL = "nothing is carried out, and the store seems away"
    REFUSE = "nothing is carried out, and a person must mend something"
    LOST = "it is carried out, and the answer is lost"
    STALL = "the store seems away, and it is carried out later"
    CUT = "only a beginning arrives, and nobody says so"
    BREAK = "a beginning arrives, then the store is away"
    STALE = "the newest names are missing"
    MEANWHILE = "others act before it is carried out"


_ANY = {Fault.FAIL, Fault.REFUSE, Fault.MEANWHILE}
_WRITE = _ANY | {Fault.LOST, Fault.STALL}
SUFFERS = {
    "create": _WRITE,
    "replace": _WRITE,
    "read": _ANY | {Fault.CUT},
    "names": _ANY | {Fault.STALE},
    "stat": _ANY,
    "remove": _ANY | {Fault.LOST},
    "upload": _WRITE | {Fault.CUT},
    "chunks": _ANY | {Fault.CUT, Fault.BREAK},
}
STRIKES = [(call, fault) for call, faults in SUFFERS.items() for fault in Fault if fault in faults]
Choose = Callable[[str, str], Fault | None]


def well(call: str, name: str) -> None:
    """The choice of no fault."""


class Script:
    """Pairs of a call and its fault; each strikes once, those of the same call in order."""

    def __init__(self, *strikes: tuple[str, Fault]) -> None:
        self.left = list(strikes)

    def __call__(self, call: str, name: str) -> Fault | None:
        for number, (struck, fault) in enumerate(self.left):
            if struck == call:
                del self.left[number]
                return fault
        return None


class Faulty:
    """The Storage ``inner``, struck by faults."""

    def __init__(self, inner: Storage, choose: Choose = well) -> None:
        self.inner, self.choose, self.place = inner, choose, inner.place
        self.meanwhile: Callable[[], None] = lambda: None
        self.late: list[Callable[[], None]] = []
        self.starts: list[int] = []  # from where ``chunks`` was asked for bytes
        self.cuts = 0  # answers and uploads that were cut short

    def arrive(self, number: int = 0) -> None:
        """Carry out a write that stalled; a name that is taken by now stays as it is."""
        with contextlib.suppress(FileExistsError):
            self.late.pop(number)()

    def create(self, name: str, data: bytes) -> None:
        self._write("create", name, lambda: self.inner.create(name, data))

    def replace(self, name: str, data: bytes) -> None:
        self._write("replace", name, lambda: self.inner.replace(name, data))

    def remove(self, name: str) -> None:
        self._write("remove", name, lambda: self.inner.remove(name))

    def upload(self, file: Path, name: str, report: Report) -> None:
        fault, data = self._strike("upload", name), file.read_bytes()
        if fault is Fault.CUT:
            self._bring(self._beginning(data), name)
        elif fault is Fault.STALL:  # the file may be gone by then
            self._stall(lambda: self._bring(data, name))
        else:
            self.inner.upload(file, name, report)
            self._lose(fault)

    def read(self, name: str) -> bytes | None:
        fault, data = self._strike("read", name), self.inner.read(name)
        return self._beginning(data) if fault is Fault.CUT and data else data

    def read_many(self, names: list[str]) -> list[bytes | None]:
        return [self.read(name) for name in names]

    def names(self, folder: str) -> list[str]:
        fault, found = self._strike("names", folder), self.inner.names(folder)
        return found[: len(found) // 2] if fault is Fault.STALE else found

    def stat(self, name: str) -> tuple[int, float] | None:
        self._strike("stat", name)
        return self.inner.stat(name)

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        self.starts.append(start)
        fault = self._strike("chunks", name)
        if fault not in (Fault.CUT, Fault.BREAK):
            yield from self.inner.chunks(name, start)
            return
        yield self._beginning(b"".join(self.inner.chunks(name, start)))
        if fault is Fault.BREAK:
            raise self._away()

    # what the faults do

    def _write(self, call: str, name: str, carry: Callable[[], None]) -> None:
        fault = self._strike(call, name)
        if fault is Fault.STALL:
            self._stall(carry)
        try:
            carry()
        except FileExistsError:
            self._lose(fault)  # that the name is taken is an answer too
            raise
        self._lose(fault)

    def _strike(self, call: str, name: str) -> Fault | None:
        fault = self.choose(call, name)
        if fault not in SUFFERS[call]:
            return None
        if fault is Fault.REFUSE:
            raise StoreError(f"{self.place} refused to {call} {name}: check the credentials")
        if fault is Fault.FAIL:
            raise self._away()
        if fault is Fault.MEANWHILE:
            self.meanwhile()
        return fault

    def _stall(self, carry: Callable[[], None]) -> None:
        self.late.append(carry)
        raise self._away()

    def _lose(self, fault: Fault | None) -> None:
        if fault is Fault.LOST:
            raise self._away() from None

    def _beginning(self, data: bytes) -> bytes:
        """All but the end; no two in a row are of the same length."""
        self.cuts += 1
        return data[: max(len(data) - 1 - self.cuts % 4, 0)]

    def _bring(self, data: bytes, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            file.write_bytes(data)
            self.inner.upload(file, name, silent)

    def _away(self) -> StoreAway:
        return StoreAway(f"{self.place} cannot be reached")
