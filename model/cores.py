"""How much of this machine is ours to compute with?"""

import contextlib
import os
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use: of those it may run on, what its container is given."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no such limit: no file, or "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        count = min(count, max(1, quota // period))
    return count
