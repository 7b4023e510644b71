"""The image of a run: built from the sources beside this package, or one that is named.

BuildKit builds, through the ``docker`` command, because the SDK cannot. What has not changed is
taken from its cache, so a second build costs a second or two.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click

from launchers.local.engine import plainly

ROOT = Path(__file__).parents[2]
VARIANTS = ("cu130", "cu126", "cpu")
_OTHERWISE = "or use an image that is ready, with --image NAME"
_PATIENCE = 20.0  # seconds for a build that was stopped to end by itself


def build_command(variant: str) -> list[str]:
    """The command that builds a variant. Raises ValueError if it cannot be built here."""
    if not (ROOT / "Dockerfile").is_file():
        raise ValueError(
            f"there is no Dockerfile in {ROOT}: build from a checkout of the sources, {_OTHERWISE}"
        )
    if shutil.which("docker") is None or _output(["docker", "buildx", "version"]) is None:
        raise ValueError(
            "building an image needs the docker command and its plugin buildx: install them "
            f"(Debian: docker-cli docker-buildx; Docker Desktop has them), {_OTHERWISE}"
        )
    arguments = {"TORCH_VARIANT": variant}
    if "BASE_IMAGE" in os.environ:
        arguments["BASE_IMAGE"] = os.environ["BASE_IMAGE"]
    if revision := _revision():
        arguments["REVISION"] = revision
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    return ["docker", "buildx", "build", "--load", "-t", f"ignite-llm:{variant}", *given, str(ROOT)]


def _revision() -> str | None:
    revision = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changes = _output(["git", "-C", str(ROOT), "status", "--porcelain"])
    return None if not revision else revision.strip() + ("-dirty" if changes else "")


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def build(command: list[str]) -> None:
    """Build, with the progress on this process's own stderr. KeyboardInterrupt ends the build."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code:
        raise ValueError(f"the image could not be built: docker ended with exit code {code}")


def fetch(client: Any, image: str) -> None:
    """See that the engine has an image: it is pulled if it has not."""
    from docker.errors import ImageNotFound

    with plainly(f"use --image {image}, which is not here and cannot be pulled"):
        try:
            client.api.inspect_image(image)
        except ImageNotFound:
            click.echo(f"pulling {image}", err=True)
            client.images.pull(image)
