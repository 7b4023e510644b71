"""``launch ps``: what runs, wherever it runs, what it has cost, and what bills now."""

import json
import time
from typing import Any

import click

from launchers.census import Known, Sorted, box_entry, known, named, owners, sorted_out
from launchers.local import verbs as containers
from launchers.local.containers import Run
from launchers.target import Box
from launchers.targets import listed
from pipeline.cli.options import open_store, store_option
from pipeline.cli.presence import how_far, life, moment, presence
from pipeline.cli.show import table
from pipeline.engine import log
from pipeline.store.store import Store

BILLS = 3  # exit code: something bills, and no run lives on it


@click.command()
@store_option
@click.option("--all", "every", is_flag=True, help="Also launches that are over.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(store: str, every: bool, as_json: bool) -> None:
    """Show what works on the store, the launches on it, and every rented machine of yours.

    First every process: stage, owner, where, since when, how far. One on another machine that shows
    no sign of life is silent: it may be dead. Containers of this machine that work on no stage now
    are shown after them. Then launches: what they have cost, and what they cost by the hour now.

    The exit code is 3 if a machine bills without a run that lives on it; `launch reap` destroys it.
    """
    opened = open_store(store)
    found = working(opened)
    idle = [run for run in containers.there() if not any(_inside(run, work) for work in found)]
    services = dict(listed(opened))
    launched = known(opened)
    boxes = [box for told in services.values() if isinstance(told, list) for box in told]
    unasked = {name: told for name, told in services.items() if isinstance(told, str)}
    stray = billing(sorted_out(owners(launched, boxes), boxes))
    shown = [each for each in launched if every or _matters(each, boxes)]
    if as_json:
        workers = [*found, *(run.entry() for run in idle)]
        click.echo(json.dumps(_told(workers, shown, boxes, stray, unasked)))
    else:
        _print(store, found, idle, shown, boxes, stray, unasked)
    if stray:
        raise SystemExit(BILLS)


def billing(found: Sorted) -> list[Box]:
    """Those that cost something although no run that is known here lives on them."""
    return [box for box in (*found.idle, *found.strange) if not box.free]


def _matters(each: Known, boxes: list[Box]) -> bool:
    return each.told.over is None or any(box.launch == each.launch.name for box in boxes)


def _of(each: Known, boxes: list[Box]) -> list[Box]:
    return [box for box in boxes if box.launch == each.launch.name]


def _told(
    workers: list[dict[str, Any]],
    launched: list[Known],
    boxes: list[Box],
    stray: list[Box],
    unasked: dict[str, str],
) -> dict[str, Any]:
    now = time.time()
    return {
        "workers": workers,
        "launches": [each.entry(_of(each, boxes), now) for each in launched],
        "billing_for_nothing": [box_entry(box, False) for box in stray],
        "per_hour": sum(box.per_hour for box in boxes),
        "not_asked": unasked,
    }


def _print(
    store: str,
    found: list[dict[str, Any]],
    idle: list[Run],
    launched: list[Known],
    boxes: list[Box],
    stray: list[Box],
    unasked: dict[str, str],
) -> None:
    if found or idle:
        header = ("stage", "owner", "state", "where", "since", "")
        rows = [_row(work) for work in found]
        rows += [(*_row(run.entry())[:-1], f"{run.size}, store {run.store}") for run in idle]
        click.echo(table(header, rows))
    elif not launched and not boxes:
        click.echo(f"nothing runs on {store}")
    if launched:
        header = ("launch", "target", "state", "on", "attempts", "spent", "an hour", "")
        click.echo(("\n" if found or idle else "") + table(header, [*map_rows(launched, boxes)]))
    for box in stray:
        click.echo(
            f"bills for nothing: {named(box)}: launch reap",
            err=True,
        )
    for name, why in unasked.items():
        click.echo(f"{name} was not asked what bills there: {why}", err=True)


def map_rows(launched: list[Known], boxes: list[Box]) -> list[tuple[str, ...]]:
    """A row for each launch."""
    rows, now = [], time.time()
    for each in launched:
        told = each.entry(_of(each, boxes), now)
        notes = [f"to stop: {told['to_stop']}"] if told["to_stop"] else []
        if told["watched"] and told["state"] not in ("finished", "stopped", "failed"):
            notes.append(f"seen to by {told['watched']['by']}, {moment(told['watched']['at'])}")
        rows.append(
            (
                *(told[name] for name in ("launch", "target", "state", "on")),
                str(told["attempts"]),
                f"${told['spent']:.2f}",
                f"${told['per_hour']:.3f}",
                ", ".join(notes),
            )
        )
    return rows


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
