"""``launch reap``: nothing that was rented bills for nothing."""

import time
from typing import Any

import click

from launchers.census import owners, sorted_out
from launchers.judging import pace
from launchers.target import Away, Box, Refused
from launchers.targets import connect, listed
from pipeline.cli.options import open_store, store_option
from pipeline.store.store import Store

_TRIES = 10  # looks at whether boxes are gone


@click.command()
@store_option
@click.option("--all", "every", is_flag=True, help="Also those on which a run lives; asks first.")
@click.option("--strangers", is_flag=True, help="Also those of launches unknown here; asks first.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be destroyed, only.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def reap(store: str, every: bool, strangers: bool, dry_run: bool, yes: bool) -> None:
    """Destroy every rented machine of yours that bills without a run that lives on it.

    Whether one lives is judged by what it last said in its store: the one given, or the one that
    this machine remembers. Exit code 1 if something bills for nothing in the end.

    \b
    launch reap -n
    launch reap --all --store s3://bucket/run
    """
    opened = open_store(store)
    for round_ in range(_TRIES):
        services = dict(listed(opened))
        wanted = {
            name: _wanted(opened, told, every, strangers)
            for name, told in services.items()
            if not isinstance(told, str)
        }
        if not any(wanted.values()):
            break
        if round_ == 0 and (every or strangers) and not (dry_run or yes):
            number = sum(map(len, wanted.values()))
            click.confirm(f"destroy {number} machines, whatever runs on them?", abort=True)
        for name, boxes in wanted.items():
            _destroy(opened, name, boxes, dry_run)
        if dry_run:
            return
        time.sleep(pace().look / 5)
    _reaped(opened, services, wanted)


def _wanted(store: Store, boxes: list[Box], every: bool, strangers: bool) -> list[Box]:
    found = sorted_out(owners(store, boxes), boxes)
    return found.idle + (found.live if every else []) + (found.strange if strangers else [])


def _reaped(store: Store, services: dict[str, Any], wanted: dict[str, list[Box]]) -> None:
    """Say what is still there; exit code 1 if that bills for nothing, or nobody knows."""
    silent = {name: told for name, told in services.items() if isinstance(told, str)}
    for name, why in silent.items():
        click.echo(f"{name} was not asked: {why}", err=True)
    left = [box for boxes in wanted.values() for box in boxes]
    for box in left:
        click.echo(f"still there: {_named(box)}", err=True)
    there = [box for told in services.values() if not isinstance(told, str) for box in told]
    found = sorted_out(owners(store, there), there)
    for box in found.live:
        click.echo(f"a run lives on {_named(box)}: launch watch {box.launch}")
    for box in found.strange:
        click.echo(
            f"unknown here: {_named(box)}; give the --store of {box.launch or 'its launch'}, or "
            "--strangers",
            err=True,
        )
    if left or silent or found.strange:
        raise SystemExit(1)
    click.echo("nothing bills without a run")


def _named(box: Box) -> str:
    return f"{box.label or box.id} ({box.id}, {box.gpu} {box.state}), ${box.per_hour:.3f} an hour"


def _destroy(store: Store, name: str, boxes: list[Box], dry_run: bool) -> None:
    target = connect(name, store, {}) if boxes and not dry_run else None
    for box in boxes:
        click.echo(f"{'would destroy' if target is None else 'destroying'} {_named(box)}")
        if target is None:
            continue
        try:
            target.destroy(box.id)
        except (Away, Refused) as error:
            click.echo(f"  not yet: {error}", err=True)
