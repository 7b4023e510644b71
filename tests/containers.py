"""The project's image, and Compose, on the Docker engine that answers here.

IGNITE_TEST_BASE_IMAGE    what to build on, where Docker Hub cannot be reached
"""

import functools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import ROOT, Told

SECRET = "ignite-test-secret-3f9a51"  # must be nowhere in the image


@functools.cache
def no_engine() -> str | None:
    """Why there is no Docker engine to test on; None if there is one."""
    if shutil.which("docker") is None:
        return "no docker command here"
    for words in (("info",), ("compose", "version"), ("buildx", "version")):
        told = docker(*words)
        if told.code:
            return f"docker {' '.join(words)}: {(told.err or told.out).strip().splitlines()[-1]}"
    return None


def docker(*words: object, **environment: str) -> Told:
    """``docker ...``, to its end."""
    command = ["docker", *map(str, words)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1200
    )
    return Told(done.returncode, done.stdout, done.stderr)


def inspected(*words: object) -> Any:
    """What ``docker inspect`` and the like print, as a value."""
    told = docker(*words)
    assert told.code == 0, told.err
    return json.loads(told.out)


def containers(name: str = "") -> list[str]:
    """The names of all containers, dead or alive, that contain ``name``."""
    told = docker("ps", "--all", "--filter", f"name={name}", "--format", "{{.Names}}")
    return told.out.split()


@dataclass(frozen=True)
class Checkout:
    """A copy of the tree as a user has it, on which Compose works."""

    root: Path
    name: str  # of the Compose project

    @property
    def environment(self) -> dict[str, str]:
        base = os.environ.get("IGNITE_TEST_BASE_IMAGE")
        return {
            "COMPOSE_FILE": f"{self.root}/compose.yaml:{self.root}/compose.cpu.yaml",
            "COMPOSE_PROJECT_NAME": self.name,
            "BUILDKIT_PROGRESS": "plain",
            **({"BASE_IMAGE": base} if base else {}),
        }

    def compose(self, *words: object, **environment: str) -> Told:
        """``docker compose ...`` in the checkout, for a machine without a GPU."""
        return docker("compose", *words, **{**self.environment, **environment})

    def run(self, service: str, *words: object, **environment: str) -> Told:
        """``docker compose run --rm SERVICE ...``."""
        return self.compose("run", "--rm", "--no-TTY", service, *words, **environment)

    def started(self, name: str, service: str, *words: object, **environment: str) -> None:
        """``docker compose run`` in the background, as the container ``name``."""
        words = ("run", "--detach", "--name", name, service, *words)
        told = self.compose(*words, **environment)
        assert told.code == 0, told.err


def check_out(target: Path, name: str, owner: int) -> Checkout:
    """Copy the tree, with what git does not know yet and does not ignore, for a user to own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, target / file)
    # what a real checkout may hold and an image must not
    (target / ".git").mkdir()
    (target / ".git" / "config").write_text(f"[remote]\n\turl = https://{SECRET}@example.com\n")
    (target / ".env").write_text(f"HF_TOKEN={SECRET}\n")
    (target / "pipeline" / ".env.local").write_text(SECRET)
    (target / "docker" / "server.key").write_text(SECRET)
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", f"{owner}:{owner}", str(target)], check=True)
    return Checkout(target, name)
