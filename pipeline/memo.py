"""Remember what was computed from a file until the file changes.

A file counts as unchanged while its size, inode and times of modification and change are what they
were. One rule from git's index ("racy git"): a file that was modified less than two seconds before
it was looked at may change again within the same clock tick, so what was computed from it is not
remembered.

The memo is a convenience: a lost, damaged or unwritable one costs time and nothing else.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RACY_NS = 2_000_000_000


class Memo:
    """A JSON file that maps (kind, path) to what was computed from the file at that path."""

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        self.known: dict[str, list] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.known |= json.loads(path.read_bytes())

    def get(self, kind: str, file: Path, compute: Callable[[Path], Any]) -> Any:
        """``compute(file)``, or what it gave when the file was last the same. JSON values only."""
        name = f"{kind} {os.path.abspath(file)}"
        stat, now = file.stat(), time.time_ns()
        print_ = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if name in self.known and self.known[name][0] == print_:
            return self.known[name][1]
        value = compute(file)
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RACY_NS:
            self.known[name] = [print_, value]
            self.changed = True
        return value

    def save(self) -> None:
        """Write what is new; whoever writes last wins, and nobody sees half a file."""
        if not self.changed:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(self.known, file)
                os.replace(temporary, self.path)
                self.changed = False
            except OSError:
                os.unlink(temporary)
