"""The command line of ``launch``: runs on machines, whichever they are."""

import json
from typing import Any

import click

from pipeline import log
from pipeline.beat import Watch
from pipeline.cli import run_command
from pipeline.options import store_option
from pipeline.places import open_store
from pipeline.show import how_far, table
from pipeline.store import Store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """See what trains, wherever it trains. To train on this machine: pipeline run --help."""


@cli.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(store: str, as_json: bool) -> None:
    """Show every process that works on the store now: stage, owner, since when, how far."""
    found = working(open_store(store))
    if as_json:
        click.echo(json.dumps(found))
    elif not found:
        click.echo(f"nothing runs on {store}")
    else:
        rows = [
            (
                work["stage"],
                work["owner"],
                work["since"],
                how_far(work["progress"]) if work["progress"] else "",
            )
            for work in found
        ]
        click.echo(table(("stage", "owner", "since", "progress"), rows))


def working(store: Store) -> list[dict[str, Any]]:
    """The claims in force whose owners live."""
    found: list[dict[str, Any]] = []
    for key in log.keys(store):
        state = log.read(store, key)
        if state.owner is None or state.record is None:
            continue
        watch = Watch(store, key, state.owner)
        if watch.alive():
            found.append(
                {
                    "stage": state.record["stage"],
                    "key": key,
                    "owner": state.owner.body["owner"],
                    "since": state.owner.body["at"],
                    "progress": watch.progress(),
                }
            )
    return found


def main() -> None:
    """Entry point."""
    run_command(cli, "launch")
