"""The containers of runs that the engine knows, and whose launchers still watch them.

    <cache>/launch/NAME.lock    locked by the launcher of the container NAME while it lives

A launcher removes its container when that has ended. One that was killed cannot; then the lock is
free, and the next launch removes the container once it has ended. Where there is no such file,
the container is another user's, or another machine's: it is left alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.local.container import LABEL
from launchers.local.engine import plainly
from pipeline.store.locks import alone
from pipeline.store.places import caches


@dataclass(frozen=True)
class Run:
    """A container of ours."""

    name: str
    state: str  # running, created, exited (75), ...
    since: str  # when it was started, as entries of a log tell a time
    size: str
    store: str
    data: str

    @property
    def runs(self) -> bool:
        return self.state in ("running", "paused", "restarting")

    def entry(self) -> dict[str, Any]:
        """The same with the keys of who works on a store."""
        return {
            "stage": "-",
            "key": None,
            "state": self.state,
            "owner": self.name,
            "where": "docker",
            "since": self.since,
            "here": True,
            "last_beat": None,
            "progress": {},
        }


def runs(client: Any) -> list[Run]:
    """All containers of ours, the oldest first."""
    from docker.errors import NotFound

    found = []
    with plainly("list the containers"):
        for each in client.api.containers(all=True, filters={"label": f"{LABEL}store"}):
            with contextlib.suppress(NotFound):  # removed in between
                found.append(_run(client.api.inspect_container(each["Id"])))
    return sorted(found, key=lambda run: run.since)


def _run(container: dict[str, Any]) -> Run:
    state, labels = container["State"], container["Config"]["Labels"]
    exited = state["Status"] == "exited"
    started = state["StartedAt"]
    since = container["Created"] if started.startswith("0001") else started
    return Run(
        name=container["Name"].removeprefix("/"),
        state=f"exited ({state['ExitCode']})" if exited else state["Status"],
        since=f"{since[:19]}+00:00",
        **{name: labels.get(f"{LABEL}{name}", "?") for name in ("size", "store", "data")},
    )


def chosen(found: list[Run], name: str | None) -> Run:
    """The run of that name, or with a name that begins so; without one, the only one that runs.

    Raises ValueError that lists those there are.
    """
    if not found:
        raise ValueError("there is no run in a container: `launch local` starts one")
    if name is None:
        fitting, why = [run for run in found if run.runs], "name the one you mean"
    else:
        exact = [run for run in found if run.name == name]
        fitting = exact or [run for run in found if run.name.startswith(name)]
        why = f"{name!r} is {'the beginning of several' if fitting else 'none of them'}"
    if len(fitting) != 1:
        listed = ", ".join(f"{run.name} ({run.state})" for run in found)
        raise ValueError(f"{why}: {listed}")
    return fitting[0]


# who watches


def _mark(name: str) -> Path:
    return caches() / "launch" / name


@contextlib.contextmanager
def watching(name: str) -> Iterator[None]:
    """Show others that this process sees to the container."""
    _mark(name).parent.mkdir(parents=True, exist_ok=True)
    with alone(_mark(name), lambda: None):
        yield


def watched(name: str) -> bool:
    """Does a launcher see to it?"""
    if not _lock(name).exists():
        return False
    try:
        with alone(_mark(name), _busy):
            return False
    except BlockingIOError:
        return True


def _lock(name: str) -> Path:
    return _mark(name).with_name(f"{name}.lock")


def _busy() -> None:
    raise BlockingIOError


def remove(client: Any, name: str) -> None:
    """Remove a container, however it is, with the volumes that were made for it."""
    from docker.errors import APIError

    with plainly(f"remove the container {name}"):
        try:
            client.api.remove_container(name, v=True, force=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # somebody has done it, or is doing it
                raise
    with contextlib.suppress(PermissionError):  # Windows, while it is open
        _lock(name).unlink(missing_ok=True)


def sweep(client: Any) -> list[Run]:
    """Remove what launchers left behind that were killed, or left it running; says what it was."""
    left = [run for run in runs(client) if not run.runs and _lock(run.name).exists()]
    left = [run for run in left if not watched(run.name)]
    for run in left:
        remove(client, run.name)
    return left
