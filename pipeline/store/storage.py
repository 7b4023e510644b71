"""The little that a store asks of the place where it lies: eight calls on names and bytes.

Everything that is hard (claims, fencing, reading back, verifying, resuming) is built on these calls
and not inside them, so a new place is a short file, and a test can wrap any place in faults.

Names are relative, with slashes: ``log/<key>/0000000007``. Two kinds of failure are told apart,
because a program can only do something about one of them:

* ``StoreAway``: the place cannot be reached or is too busy; the same call may succeed later.
* ``StoreError`` (of which ``StoreAway`` is one): a person must mend something, and the message says
  what: credentials, a missing bucket, a full disk.

After either, a call that writes may or may not have been carried out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

Report = Callable[[int], None]  # told the bytes carried since the last call; may raise to stop


def blob_name(sha256: str) -> str:
    """The name of the bytes with that digest."""
    return f"blob/{sha256[:2]}/{sha256}"


class Storage(Protocol):
    """A place for named bytes: a directory of this machine, a bucket, a folder behind a server."""

    place: str  # how people know it: a path or a URL, without secrets

    def create(self, name: str, data: bytes) -> None:
        """Make a new record. Raises FileExistsError if there is one of that name, even if another
        process made it in this very instant; other errors leave open what happened."""

    def replace(self, name: str, data: bytes) -> None:
        """Give a record new content; readers see the old or the new, never a mixture."""

    def read(self, name: str) -> bytes | None:
        """The content of a record, or None where there is none; never an older content."""

    def read_many(self, names: list[str]) -> list[bytes | None]:
        """The contents of several records, read side by side where that is faster."""

    def names(self, folder: str) -> list[str]:
        """The names directly inside a folder, sorted; hidden ones are not ours and left out.

        Another machine's newest may be missing: nothing that must be right may rest on a listing.
        """

    def stat(self, name: str) -> tuple[int, float] | None:
        """(bytes, seconds since 1970 by the place's own clock) of what has that name, or None."""

    def remove(self, name: str) -> None:
        """Remove what has that name, if there is anything."""

    def upload(self, file: Path, name: str, report: Report) -> None:
        """Bring a file to the place; the name appears when all bytes are there."""

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start`` on, in pieces. Raises FileNotFoundError if there are none."""
