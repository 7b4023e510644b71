"""The first of our programs on a machine elsewhere: install what is missing, then do the errand.

    python -m launchers.bootstrap ERRAND.json     in an unpacked bundle

It needs nothing but Python. What the machine has is kept where it will do: above all torch, which
was built for its GPU, is never replaced. What is missing is installed in the version that we were
tested with and, if that cannot be had for this Python, in any that satisfies us.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENDS = "IGNITE_ENDS"  # seconds since 1970 when the box must be gone, if its first program knows
KEPT = re.compile(r"(torch|torchvision|torchaudio|triton|numpy|nvidia-.*|cuda-.*)$")
EXTRAS = {
    **{"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "sftp": "sftp"},
    **{"abfs": "azure", "abfss": "azure", "az": "azure", "ssh": "sftp"},
}


def wanted(needs: dict[str, list[str]], store: str) -> list[str]:
    """What a run on this store needs; ``needs`` as bundle.requirements gives them."""
    extra = EXTRAS.get(store.partition("://")[0], "") if "://" in store else ""
    return [*needs[""], *needs.get("data", ()), *(needs.get(extra, ()) if extra else ())]


def missing(requirements: list[str]) -> list[str]:
    """Those that are not installed, or only in a version that will not do."""
    return [each for each in requirements if not _is_there(each)]


def _is_there(requirement: str) -> bool:
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    try:
        version = metadata.version(name[0])
    except metadata.PackageNotFoundError:
        return False
    try:
        try:
            from packaging.requirements import Requirement
        except ImportError:
            from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        return True  # nobody here can compare versions
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def pins(lock: str, kept: dict[str, str], lacking: list[str]) -> list[str]:
    """Constraints for pip: what is there and must stay; our versions of what is not there."""
    names = {_plain(re.match(r"[\w.-]+", each)[0]) for each in lacking}  # type: ignore[index]
    stay = [f"{name}=={version}" for name, version in kept.items() if KEPT.match(name)]
    ours = []
    for line in lock.splitlines():
        name = _plain(line.partition("==")[0])
        if "==" in line and (name not in kept or name in names) and not KEPT.match(name):
            ours.append(line)
    return [*stay, *ours]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def install(store: str, root: Path = ROOT) -> None:
    """Install what is missing. Raises ValueError if it cannot be had."""
    needs = json.loads((root / "requirements.json").read_text())
    lacking = missing(wanted(needs, store))
    if not lacking:
        return
    print(f"installing {', '.join(lacking)}", flush=True)
    lock = root / "constraints.txt"
    kept = {_plain(each.name): each.version for each in metadata.distributions() if each.name}
    tested = pins(lock.read_text() if lock.is_file() else "", kept, lacking)
    stay = pins("", kept, lacking)
    if _pip(lacking, tested) and (tested == stay or _pip(lacking, stay)):
        raise ValueError(f"pip could not install {', '.join(lacking)}: see its words above")


def _pip(requirements: list[str], constraints: list[str]) -> int:
    """Its exit code."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "constraints.txt"
        file.write_text("".join(f"{line}\n" for line in constraints))
        environment = {
            **os.environ,
            "PIP_BREAK_SYSTEM_PACKAGES": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        return subprocess.run(
            [*command, "-c", str(file), *requirements], env=environment
        ).returncode


def main(arguments: list[str]) -> int:
    """Do the errand; the exit code is that of `pipeline run`, or 1."""
    started = time.time()
    file = Path(arguments[0])
    errand: dict[str, Any] = json.loads(file.read_text())
    seconds = errand["seconds"]
    if ENDS not in os.environ and seconds is not None:
        os.environ[ENDS] = str(started + seconds)
    try:
        install(errand["store"])
    except ValueError as error:
        print(f"error: {error}", flush=True)
        return 1
    from launchers.box import run

    order = file.with_name("order.json")
    return run(errand, order.read_bytes() if order.is_file() else None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
