"""The Docker engine of this machine: how it is found, what it can do, and errors in plain words.

The SDK is an extra, and it and the engine may both be missing: nothing here loads it before it is
asked for. Both SDK and ``docker`` command find the engine by DOCKER_HOST, else by the context that
`docker context use` chose, so a build and its container meet on the same one.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

EXTRA = "pip install -e '.[docker]'"
TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit"
PATIENCE = 60.0  # seconds for one answer of the engine; following a log waits forever
_CDI = "nvidia.com/gpu="


class EngineAway(ValueError):
    """The engine does not answer; what it ran may still run."""


def connect(timeout: float = PATIENCE) -> Any:
    """A client of the engine, which has answered. Raises ValueError with what to do about it."""
    try:
        # by name: a folder called docker, as ours, is a module as well, but an empty one
        from docker.errors import DockerException

        from docker import from_env
    except ImportError:
        raise ValueError(
            f"containers need the Docker SDK for Python, which is not installed: {EXTRA}"
        ) from None
    try:
        return from_env(timeout=timeout)
    except DockerException as error:
        raise EngineAway(_no_answer(str(error))) from error


def _no_answer(why: str) -> str:
    host = os.environ.get("DOCKER_HOST")
    tried = f"DOCKER_HOST={host}" if host else "the socket of this machine, DOCKER_HOST is not set"
    if "Permission denied" in why:
        fix = (
            "this user may not speak to it: join its group (`sudo usermod -aG docker $USER`, then "
            "log in again)"
        )
    elif "No such file" in why or "refused" in why:
        fix = "is it installed and started? (`sudo systemctl start docker`, or Docker Desktop)"
    else:
        fix = why
    return f"no Docker engine answers ({tried}): {fix}"


@contextlib.contextmanager
def plainly(doing: str) -> Iterator[None]:
    """Errors of the SDK as ValueErrors that say what the engine was asked to do."""
    from docker.errors import APIError, DockerException
    from requests import RequestException

    try:
        yield
    except APIError as error:
        raise ValueError(f"cannot {doing}: {error.explanation or error}") from error
    except (DockerException, RequestException) as error:
        raise EngineAway(f"cannot {doing}: the Docker engine does not answer ({error})") from error


def user(info: dict[str, Any]) -> str | None:
    """Who a container must be for the files that it makes to belong to the caller."""
    if any(option.startswith("name=rootless") for option in info.get("SecurityOptions") or ()):
        return "0:0"  # root inside is the caller outside
    return f"{os.getuid()}:{os.getgid()}" if hasattr(os, "getuid") else None


def device_request(info: dict[str, Any], gpus: tuple[str, ...]) -> dict[str, Any]:
    """How to ask this engine for GPUs: ``("all",)`` or indices. Raises ValueError if it has none.

    The engine itself would only say so at the start, in words that name no fix. The directories
    in which it looks for CDI devices prove nothing: newer engines list them, empty or not.
    """
    devices = [each.get("ID", "") for each in info.get("DiscoveredDevices") or ()]
    if any(each.startswith(_CDI) for each in devices):
        return {"driver": "cdi", "device_ids": [_CDI + gpu for gpu in gpus]}
    if "nvidia" in (info.get("Runtimes") or ()):
        which = {"count": -1} if gpus == ("all",) else {"device_ids": list(gpus)}
        return {**which, "capabilities": [["gpu"]]}
    raise ValueError(
        "this Docker engine can hand out no GPU: it has neither NVIDIA's runtime nor CDI devices. "
        f"Install the NVIDIA Container Toolkit ({TOOLKIT}), or train on the CPU with --cpu"
    )
