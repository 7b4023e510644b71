"""``launch reap``: nothing that was rented bills for nothing."""

import time
from collections.abc import Mapping

import click

from launchers.census import Known, Sorted, alive, known, named, owners, sorted_out
from launchers.judging import pace
from launchers.target import Away, Box, Refused
from launchers.targets import connect, listed
from pipeline.cli.options import open_store, store_option
from pipeline.store.store import Store

_TRIES = 10  # looks at whether boxes are gone
_LISTEN = 2.0  # looks: a box says something every ten seconds


@click.command()
@store_option
@click.option("--all", "every", is_flag=True, help="Also those on which a run lives; asks first.")
@click.option("--strangers", is_flag=True, help="Also those of launches unknown here; asks first.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be destroyed, only.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def reap(store: str, every: bool, strangers: bool, dry_run: bool, yes: bool) -> None:
    """Destroy every rented machine of yours that bills without a run that lives on it.

    Whether one lives is judged by what it last said in its store: the one given, or the one that
    this machine remembers. One that seems silent is listened to first, because clocks may differ.
    Exit code 1 if something bills for nothing in the end.

    \b
    launch reap -n
    launch reap --all --store s3://bucket/run
    """
    opened, spared = open_store(store), set[str]()
    for round_ in range(_TRIES):
        services = _billing(opened)
        if round_ == 0:
            spared = alive(opened, _all(services), _listen)
        by_name = owners(known(opened), _all(services))
        wanted = {
            name: _wanted(by_name, told, spared, every, strangers)
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
    _reaped(opened, services, spared, every)


def _billing(store: Store) -> dict[str, list[Box] | str]:
    """By service, what costs something, or why it cannot be told."""
    return {
        name: told if isinstance(told, str) else [box for box in told if not box.free]
        for name, told in listed(store)
    }


def _all(services: dict[str, list[Box] | str]) -> list[Box]:
    return [box for told in services.values() if not isinstance(told, str) for box in told]


def _listen() -> None:
    seconds = _LISTEN * pace().look
    click.echo(f"listening for {seconds:.0f} s to what seems silent", err=True)
    time.sleep(seconds)


def _found(by_name: Mapping[str, Known], boxes: list[Box], spared: set[str]) -> Sorted:
    found = sorted_out(by_name, boxes)
    heard = [box for box in found.idle if box.id in spared]
    idle = [box for box in found.idle if box.id not in spared]
    return Sorted(found.live + heard, idle, found.strange)


def _wanted(
    by_name: Mapping[str, Known],
    boxes: list[Box],
    spared: set[str],
    every: bool,
    strangers: bool,
) -> list[Box]:
    found = _found(by_name, boxes, spared)
    return found.idle + (found.live if every else []) + (found.strange if strangers else [])


def _reaped(
    store: Store, services: dict[str, list[Box] | str], spared: set[str], every: bool
) -> None:
    """Say what is still there; exit code 1 if that bills for nothing, or nobody knows."""
    silent = {name: told for name, told in services.items() if isinstance(told, str)}
    for name, why in silent.items():
        click.echo(f"{name} was not asked: {why}", err=True)
    boxes = _all(services)
    found = _found(owners(known(store), boxes), boxes, spared)
    left = found.idle + (found.live if every else [])
    for box in left:
        click.echo(f"still there: {named(box)}", err=True)
    for box in [] if every else found.live:
        click.echo(f"a run lives on {named(box)}: launch watch {box.launch}")
    for box in found.strange:
        click.echo(
            f"unknown here: {named(box)}; give the --store of {box.launch or 'its launch'}, or "
            "--strangers",
            err=True,
        )
    if left or silent or found.strange:
        raise SystemExit(1)
    click.echo("nothing bills without a run")


def _destroy(store: Store, name: str, boxes: list[Box], dry_run: bool) -> None:
    target = connect(name, store, {}) if boxes and not dry_run else None
    for box in boxes:
        click.echo(f"{'would destroy' if target is None else 'destroying'} {named(box)}")
        if target is None:
            continue
        try:
            target.destroy(box.id)
        except (Away, Refused) as error:
            click.echo(f"  not yet: {error}", err=True)
