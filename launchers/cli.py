"""The command line of ``launch``: runs on machines, whichever they are."""

import json
import sys
from typing import Any

import click

from launchers.local.attend import Log, Unheard
from launchers.local.attend import stop as end
from launchers.local.command import local
from launchers.local.container import GRACE
from launchers.local.containers import Run, chosen, remove, runs, watched
from launchers.local.engine import connect, plainly
from launchers.plan_command import command as plan
from pipeline.cli import stores
from pipeline.cli.options import open_store, store_option
from pipeline.cli.presence import how_far, life, moment, presence
from pipeline.cli.process import run_command
from pipeline.cli.show import table
from pipeline.engine import log
from pipeline.store.store import Store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """Train in containers, and see what trains, wherever it trains.

    To train on this machine without a container: pipeline run --help.

    \b
    launch local --size small --data corpus.txt     train in a container on this machine
    launch ps                                       what runs, and how far it is
    launch stop                                     save all, and stop
    """


cli.add_command(local)
cli.add_command(plan())


@cli.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(store: str, as_json: bool) -> None:
    """Show every process that works on the store: stage, owner, where, since when, how far.

    One on another machine that shows no sign of life is silent: it may be dead. Containers of this
    machine that work on no stage of the store now are shown after them.
    """
    found = working(open_store(store))
    idle = [run for run in _containers() if not any(_inside(run, work) for work in found)]
    if as_json:
        click.echo(json.dumps([*found, *(run.entry() for run in idle)]))
    elif not found and not idle:
        click.echo(f"nothing runs on {store}")
    else:
        header = ("stage", "owner", "state", "where", "since", "")
        rows = [_row(work) for work in found]
        rows += [(*_row(run.entry())[:-1], f"{run.size}, store {run.store}") for run in idle]
        click.echo(table(header, rows))


def _containers() -> list[Run]:
    """None where there is no engine, or no SDK."""
    try:
        return runs(connect(timeout=5))
    except ValueError:
        return []


def _inside(run: Run, work: dict[str, Any]) -> bool:
    return work["owner"].startswith(f"{run.name}-")


def _row(work: dict[str, Any]) -> tuple[str, ...]:
    parts = list(filter(None, [life(work)]))
    parts += [how_far(work["progress"])] if work["progress"] else []
    names = ("stage", "owner", "state", "where")
    return (*(work[name] for name in names), moment(work["since"]), ", ".join(parts))


def working(store: Store) -> list[dict[str, Any]]:
    """The claims in force, but for those whose owners are known to be dead."""
    found: list[dict[str, Any]] = []
    for key in log.keys(store):
        state = log.read(store, key)
        if state.owner is None or state.record is None:
            continue
        told = presence(store, key, state.owner)
        if told["state"] != "interrupted":
            found.append({"stage": state.record["stage"], "key": key, **told})
    return found


# runs in containers

run_argument = click.argument("run", required=False, metavar="[RUN]")


def _chosen(run: str | None) -> tuple[Any, Run]:
    client = connect()
    return client, chosen(runs(client), run)


@cli.command()
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends; Ctrl-C leaves it.")
def logs(run: str | None, follow: bool) -> None:
    """Show what RUN has printed: a container of `launch ps`, or the beginning of its name.

    Without RUN it is the only one that runs.
    """
    client, found = _chosen(run)
    log = Log(client, found.name, sys.stdout.buffer)
    with plainly(f"read the log of {found.name}"):
        try:
            (log.follow if follow else log.copy)()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Unheard as error:
            raise error.__cause__ or error from None


@cli.command()
@run_argument
@click.option("--now", is_flag=True, help="Kill it: what is not saved is computed again.")
def stop(run: str | None, now: bool) -> None:
    """Let RUN save all and stop, and remove its container; the same `launch local` goes on.

    RUN is a container of `launch ps`, or the beginning of its name; without it, the only one that
    runs.
    """
    client, found = _chosen(run)
    if found.runs and not now:
        click.echo(f"{found.name}: checkpointing... (killed after {GRACE} s, or with --now)")
    code = end(client, found.name, now)
    ended = "has ended" if code is None else f"ended with exit code {code}"
    click.echo(f"{found.name}: {ended}")
    if not watched(found.name):  # else its launcher looks at it and removes it
        remove(client, found.name)


@cli.command()
@run_argument
@click.pass_context
def pull(context: click.Context, run: str | None) -> None:
    """Fetch the results and newest checkpoints of RUN into ./artifacts, as `pipeline pull` does.

    RUN is a container of `launch ps`, or the beginning of its name; without it, the only one that
    runs. One that works on a directory of this machine has nothing that is not there.
    """
    _, found = _chosen(run)
    if "://" not in found.store:
        click.echo(f"all of {found.name} lies in {found.store} already")
        return
    context.invoke(stores.pull, place=found.store, store="artifacts", dry_run=False, as_json=False)


def main() -> None:
    """Entry point."""
    run_command(cli, "launch")
