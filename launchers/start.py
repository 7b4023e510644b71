"""From a yes to a launch that is seen through: prepare, order, attend, fetch, sum up."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from launchers import orders
from launchers.attendance import attended
from launchers.bundle import Bundle
from launchers.census import known
from launchers.credentials import box_secrets
from launchers.history import FINISHED, history
from launchers.launches import Launch, Order
from launchers.target import Target
from launchers.targets import Secrets
from pipeline.cli import show, stores
from pipeline.cli.duration import Duration
from pipeline.cli.options import make_engine
from pipeline.cli.process import EXIT_INTERRUPTED
from pipeline.engine.engine import Engine
from pipeline.errors import Interrupted
from pipeline.machine import Machine
from pipeline.recipe import Recipe
from pipeline.ui import human_seconds


def launch_options(command: Callable) -> Callable:
    """Options that all targets share which start something from here."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON."),
        click.option("-n", "--dry-run", is_flag=True, help="Show the requests; make nothing."),
        click.option("-d", "--detach", is_flag=True, help="Return when a machine is asked for."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask before anything is started."),
        click.option(
            "--deadline", type=Duration(), help="All must be over so long from now: 12h, 90m."
        ),
    ):
        command = option(command)
    return command


def credential_options(command: Callable) -> Callable:
    """Options that say what a rented machine is given to open the store."""
    for option in (
        click.option(
            "--my-credentials",
            is_flag=True,
            help="Let the machine have the keys that you use here; its owner can read them.",
        ),
        click.option(
            "--credentials",
            type=click.Path(path_type=Path),
            help="File of NAME=VALUE lines: keys for this store alone, for the machine.",
        ),
    ):
        command = option(command)
    return command


def secrets_of(store: str, file: Path | None, mine: bool) -> Secrets:
    """What makes the variables for each box. Raises ValueError if it could not, before any is."""

    def secrets(seconds: float | None) -> Mapping[str, str]:
        return box_secrets(store, seconds, file, mine=mine).values

    secrets(None)
    return secrets


def kind_of(file: Path | None, mine: bool) -> str:
    """How an order calls the keys that its boxes get: those that were made have an end."""
    return "mine" if mine else "file" if file else "made"


def estimator(recipe: Recipe) -> Callable[[str, int], float | None]:
    """Hours that a recipe takes on so many GPUs of a name."""
    from launchers.estimate import corpus_bytes, hours

    length = corpus_bytes(recipe.data.source)
    return lambda gpu, gpus: hours(recipe, gpu, gpus, corpus=length)


def open_one(engine: Engine, target: str) -> Launch | None:
    """The launch that the same command goes on with: one of this recipe on this target that is not
    over, or else one that is finished with nothing left to compute, of which a box or the results
    may still be elsewhere."""
    tree, finished = orders.recipe_of(engine), None
    for each in known(engine.store):
        if each.order.target == target and each.order.recipe == tree:
            if each.told.over is None:
                return each.launch
            if each.told.over.body["outcome"] == FINISHED:
                finished = each.launch
    done = finished is not None and all(item.result is not None for item in engine.plan())
    return finished if done else None


def within(order: Order) -> str:
    """The limits of a launch, for whoever goes on with it and may have given others."""
    limits = [f"${order.budget:.2f}"] if order.budget is not None else []
    limits += [f"{human_seconds(order.seconds)} from its start"] if order.seconds else []
    return " and ".join(limits) or "no limits"


def bring(engine: Engine, machine: Machine) -> None:
    """Bring a text of this machine into the store, where boxes can read it."""
    if not orders.is_here(engine.recipe.data.source):
        return
    try:
        orders.prepare(engine, machine)
    except Interrupted:
        click.echo("launch: nothing was started; the same command goes on", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None


def begin(engine: Engine, machine: Machine, order: Order, packed: Bundle) -> Launch:
    """Place the order, and what it needs; or the launch that somebody else has begun meanwhile, for
    a prompt may stand there for hours."""
    bring(engine, machine)
    return open_one(engine, order.target) or orders.place(engine, order, packed)


def checked(dry_run: bool, as_json: bool) -> None:
    """Raises UsageError for an option that would do nothing."""
    if as_json and not dry_run:
        raise click.UsageError("--json goes with --dry-run (-n); `launch ps --json` tells the rest")


def see_through(launch: Launch, target: Target, detach: bool) -> int:
    """Attend it; what is finished is fetched and summed up. The exit code."""
    name, store = launch.name, launch.store.place
    click.echo(f"launch: {name} on {store}", err=True)
    code = attended(launch, target, detach)
    if code is None:
        click.echo(
            f"{name} is on its way; nobody replaces a machine that is lost until you watch it\n"
            f"  watch: launch watch {name} --store {store}\n"
            f"  stop:  launch stop {name} --store {store}"
        )
        return 0
    if code == 0:
        finish(launch)
    elif code == EXIT_INTERRUPTED:
        click.echo("launch: the same command goes on with it", err=True)
    return code


def finish(launch: Launch) -> None:
    """Fetch what was made, and say what it is and what it has cost."""
    from pipeline import recipe

    place = launch.store.place
    if launch.store.remote is not None:
        stores.fetch(place, "artifacts")
        place = "artifacts"
    tree = launch.order().recipe
    engine = make_engine(None, None, None, None, (), place, ())
    engine.recipe = recipe.from_tree(tree)
    click.echo(show.status_text(show.status(engine, engine.plan())))
    told = history(launch.events())
    cost = told.cost(time.time())
    spent = f", ${cost:.2f} by the hour (traffic comes on top)" if cost else ""
    click.echo(f"{launch.name}: {len(told.attempts)} machines{spent}; all is in {place}")


def show_plan(told: dict[str, Any], as_json: bool) -> None:
    """What --dry-run prints."""
    click.echo(json.dumps(told, indent=None if as_json else 2))
