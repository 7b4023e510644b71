import os
from pathlib import Path

from google.colab import ACCOUNT, asked

DRIVE = ACCOUNT.parent / "drive"


def mount(place: str, force_remount: bool = False, timeout_ms: int = 120_000) -> None:
    asked(f"mount {place}")
    if not Path(place).exists():
        os.symlink(DRIVE, place)


def flush_and_unmount(timeout_ms: int = 0) -> None:
    asked("unmount")
    for link in ACCOUNT.parent.glob("content/drive"):
        link.unlink()
