"""``launch kaggle``: train on Kaggle's two T4s, session after session, for nothing."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from launchers import orders, start
from launchers.target import Errand, Offer
from pipeline.cli.machine_options import machine_options
from pipeline.cli.options import engine_and_machine, recipe_options
from pipeline.recipe import from_tree
from pipeline.store.store import Store


def target(store: Store, options: Mapping[str, Any]) -> Any:
    """Kaggle for an order's options. Raises ValueError if its package or a token is missing."""
    from launchers.kaggle.target import Kaggle

    known = {"hours": start.estimator(from_tree(options["recipe"]))} if "recipe" in options else {}
    return Kaggle(store, note=lambda line: click.echo(f"launch: {line}", err=True), **known)


@click.command()
@recipe_options
@machine_options
@start.launch_options
def kaggle(
    deadline: float | None, yes: bool, detach: bool, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Train in Kaggle's sessions with two T4s: twelve hours at most, thirty a week, free.

    With a store elsewhere (s3://...) a session takes its keys from the secrets that you attach to
    the notebook once, and saves as it goes. With a store on this machine it needs none: what is
    known of the run is sent as a private data set, and what a session has made is fetched when it
    has ended. A session ends by itself before Kaggle cuts it off, and the next one goes on.

    \b
    launch kaggle --size small --data tinyshakespeare
    launch kaggle --size medium --store s3://bucket/run --detach
    launch kaggle --size small -n
    """
    start.checked(dry_run, as_json)
    engine, machine = engine_and_machine(options)
    words = orders.rented(engine)
    native = engine.store.remote is None
    told = {"store": "" if native else options["store"], "floors": {}}
    sessions = target(engine.store, {**told, "recipe": engine.recipe.tree()})
    launch = start.open_one(engine, "kaggle")
    if launch is None:
        offer = sessions.offers()[0]
        order, packed = orders.new_order(engine, "kaggle", words, told, None, deadline)
        if dry_run:
            errand = Errand(order.name, 1, told["store"], order.bundle, deadline)
            requests = sessions.describe(errand, offer, order, packed.data)
            start.show_plan({"requests": requests, "offer": asdict(offer)}, as_json)
            return
        _ask(offer, yes)
        launch = start.begin(engine, machine, order, packed)
    elif dry_run:
        raise ValueError(f"{launch.name} is under way: see `launch ps`")
    raise SystemExit(start.see_through(launch, sessions, detach))


def _ask(offer: Offer, yes: bool) -> None:
    """Say what it takes of this week's quota; abort without a yes."""
    left = offer.facts.get("quota_hours")
    takes = f"about {offer.hours:.1f} h" if offer.hours is not None else "nobody knows how long"
    has = f", of {left:.1f} h that are left this week" if left is not None else ""
    click.echo(f"{offer.gpus} x {offer.gpu}: {takes}{has}, free of charge", err=True)
    if warning := offer.facts.get("warning"):
        click.echo(f"note: {warning}", err=True)
    if not yes:
        click.confirm("Push it?", default=True, abort=True, err=True)
