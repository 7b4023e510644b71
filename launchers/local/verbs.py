"""What the verbs do for a container of this machine."""

import sys
from typing import Any

import click

from launchers.local.attend import Log, Unheard
from launchers.local.attend import stop as end
from launchers.local.container import GRACE
from launchers.local.containers import Run, chosen, remove, runs, watched
from launchers.local.engine import connect, plainly


def _chosen(run: str | None) -> tuple[Any, Run]:
    client = connect()
    return client, chosen(runs(client), run)


def there() -> list[Run]:
    """All there are; none where there is no engine, or no SDK."""
    try:
        return runs(connect(timeout=5))
    except ValueError:
        return []


def is_one(name: str) -> bool:
    """Is there a container of ours whose name begins so?"""
    return any(run.name.startswith(name) for run in there())


def any_runs() -> bool:
    return any(run.runs for run in there())


def logs(run: str | None, follow: bool) -> None:
    """Print its log."""
    client, found = _chosen(run)
    log = Log(client, found.name, sys.stdout.buffer)
    with plainly(f"read the log of {found.name}"):
        try:
            (log.follow if follow else log.copy)()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Unheard as error:
            raise error.__cause__ or error from None


def stop(run: str | None, now: bool) -> None:
    """Let it save all and end, and remove it."""
    client, found = _chosen(run)
    if found.runs and not now:
        click.echo(f"{found.name}: checkpointing... (killed after {GRACE} s, or with --now)")
    code = end(client, found.name, now)
    ended = "has ended" if code is None else f"ended with exit code {code}"
    click.echo(f"{found.name}: {ended}")
    if not watched(found.name):  # else its launcher looks at it and removes it
        remove(client, found.name)


def name_and_place(run: str | None) -> tuple[str, str]:
    """Its name, and the store that it works on."""
    _, found = _chosen(run)
    return found.name, found.store
