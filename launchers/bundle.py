"""What is sent to a machine elsewhere: our sources and what they need, as one archive.

The archive is a function of what is in it: names are sorted, and times, owners and modes are the
same for all. So its sha256 says which code a run was computed by, and a box can tell that it has
got just that. In it lie

    model/ pipeline/ launchers/     of a checkout what git tracks, as it stands in the working tree
    constraints.txt                 the versions this was tested with
    requirements.json               {"": [...], "s3": [...], ...}: what we need, and for what

Files of a user's that lie around in a checkout are not tracked and so never sent.
"""

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipeline.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "pipeline", "launchers")
_KINDS = (".py", ".toml")


@dataclass(frozen=True)
class Bundle:
    """The archive, and the sha256 by which it is known."""

    digest: str
    data: bytes


def make(root: Path = ROOT) -> Bundle:
    """The bundle of this very program."""
    contents = {name: (root / name).read_bytes() for name in sorted(_tracked(root))}
    contents["requirements.json"] = json.dumps(requirements(root), indent=1).encode()
    if (root / "constraints.txt").is_file():
        contents["constraints.txt"] = (root / "constraints.txt").read_bytes()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(contents):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(contents[name]), 0o644
            archive.addfile(member, io.BytesIO(contents[name]))
    data = gzip.compress(raw.getvalue(), compresslevel=9, mtime=0)
    return Bundle(hashlib.sha256(data).hexdigest(), data)


def _tracked(root: Path) -> Iterator[str]:
    """Our files: what git tracks or, where this is installed and no checkout, what is there."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--", *ROOMS]
        try:
            listed = subprocess.run(command, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"{root} is a checkout, and git cannot say which files belong to it ({error}): "
                "install git, or install the package (pip install .)"
            ) from error
        names = [name for name in listed.decode().split("\0") if name]
    else:
        found = (path for room in ROOMS for path in (root / room).rglob("*"))
        names = [path.relative_to(root).as_posix() for path in found]
    yield from (name for name in names if name.endswith(_KINDS) and (root / name).is_file())


def requirements(root: Path = ROOT) -> dict[str, list[str]]:
    """What must be installed: under "" always, under the name of an extra for what it is for."""
    if (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {"": []}
    for line in metadata.requires("ignite-llm") or []:
        wanted, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        found.setdefault(extra[1] if extra else "", []).append(wanted.strip())
    return found


def name_of(digest: str) -> str:
    """The name of a bundle in a store."""
    return f"bundle/{digest}"


def send(bundle: Bundle, store: Store) -> None:
    """Bring it to where boxes look for it."""
    if not store.create(name_of(bundle.digest), bundle.data):
        store.replace(name_of(bundle.digest), bundle.data)  # what lay there was damaged
