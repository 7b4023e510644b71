"""The command line of ``launch``: runs on machines, whichever they are."""

import json
from pathlib import Path

import click

from pipeline import log
from pipeline.beat import Watch
from pipeline.cli import run_command
from pipeline.show import table
from pipeline.store import Store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """See what trains, wherever it trains. To train on this machine: pipeline run --help."""


@cli.command()
@click.option("--store", envvar="IGNITE_STORE", default="artifacts", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(store: str, as_json: bool) -> None:
    """Show every process that works on the store now: stage, owner, since when, how far."""
    found = working(Store(Path(store)))
    if as_json:
        click.echo(json.dumps(found))
    elif not found:
        click.echo(f"nothing runs on {store}")
    else:
        rows = [(work["stage"], work["owner"], work["since"], _far(work)) for work in found]
        click.echo(table(("stage", "owner", "since", "progress"), rows))


def working(store: Store) -> list[dict[str, object]]:
    """The claims in force whose owners live."""
    found: list[dict[str, object]] = []
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


def _far(work: dict) -> str:
    progress = work["progress"]
    return f"{progress['done']:,} of {progress['total']:,} {progress['unit']}" if progress else ""


def main() -> None:
    """Entry point."""
    run_command(cli, "launch")
