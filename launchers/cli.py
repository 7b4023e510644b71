"""The command line of ``launch``: runs on machines, whichever they are."""

import json
from typing import Any

import click

from pipeline.cli.options import store_option
from pipeline.cli.presence import how_far, life, moment, presence
from pipeline.cli.process import run_command
from pipeline.cli.show import table
from pipeline.engine import log
from pipeline.store.places import open_store
from pipeline.store.store import Store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """See what trains, wherever it trains. To train on this machine: pipeline run --help."""


@cli.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(store: str, as_json: bool) -> None:
    """Show every process that works on the store: stage, owner, where, since when, how far.

    One on another machine that shows no sign of life is silent: it may be dead.
    """
    found = working(open_store(store))
    if as_json:
        click.echo(json.dumps(found))
    elif not found:
        click.echo(f"nothing runs on {store}")
    else:
        header = ("stage", "owner", "state", "where", "since", "")
        click.echo(table(header, [_row(work) for work in found]))


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


def main() -> None:
    """Entry point."""
    run_command(cli, "launch")
