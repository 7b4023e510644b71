"""``launch vast``: rent a GPU at Vast.ai, train on it, and leave nothing that bills."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from launchers import orders, start
from launchers.credentials import MOST
from launchers.history import history
from launchers.judging import Pace, pace
from launchers.launches import Launch, Order
from launchers.target import Errand, Offer
from launchers.targets import Secrets, seen_to
from launchers.vast.order import VastOptions
from pipeline.cli.machine_options import machine_options
from pipeline.cli.options import engine_and_machine, recipe_options
from pipeline.cli.show import table
from pipeline.recipe import from_tree

_SHOWN = 5  # offers
_UNKNOWN = 5.0  # dollars of budget where nobody can tell how long it takes
_MARGIN = 2.0  # times what a run is estimated to cost
_RENEWED = MOST - 1800.0  # seconds after which a box is replaced, whose keys were made for it


def target(options: Mapping[str, Any], secrets: Secrets) -> Any:
    """Vast.ai for an order's options. Raises ValueError if its package or the key is missing."""
    from launchers.vast.client import SPACING, Client
    from launchers.vast.target import Vast

    wanted = VastOptions(**options.get("vast", {}))
    hours = start.estimator(from_tree(options["recipe"])) if "recipe" in options else _nobody_knows
    session = _RENEWED if options.get("credentials") == "made" else None
    haste, patience = pace().look / Pace().look, pace().answer
    spacing = {kind: haste * seconds for kind, seconds in SPACING.items()}
    return Vast(Client(patience=patience, spacing=spacing), wanted, hours, secrets, session)


def _nobody_knows(gpu: str, gpus: int) -> float | None:
    return None


def _options(command: Callable) -> Callable:
    for option in reversed(
        (
            click.option("--gpu", default="RTX 4090", show_default=True, help="Vast.ai's name."),
            click.option("--gpus", type=click.IntRange(1), default=1, show_default=True),
            click.option(
                "--max-price", type=click.FloatRange(0.0, min_open=True), default=0.5,
                show_default=True, help="Dollars an hour, disk included.",
            ),
            click.option(
                "--budget", type=click.FloatRange(0.0, min_open=True),
                help="Dollars for everything; if not given, twice the estimate.",
            ),
            click.option("--disk", type=int, default=40, show_default=True, help="GB."),
            click.option("--interruptible", is_flag=True, help="Bid: cheaper, and taken away."),
            click.option("--bid", type=float, help="Dollars an hour, with --interruptible."),
            click.option("--reliability", type=click.FloatRange(0, 1), default=0.98),
            click.option("--region", default="", help="Countries, such as DE,NL."),
            click.option("--image", help="Docker image with torch; any public one."),
            click.option("--cuda", type=float, help="That the driver must know, for --image."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@recipe_options
@machine_options
@_options
@start.credential_options
@start.launch_options
def vast(
    gpu: str, gpus: int, max_price: float, budget: float | None, disk: int, interruptible: bool,
    bid: float | None, reliability: float, region: str, image: str | None, cuda: float | None,
    credentials: Path | None, my_credentials: bool, deadline: float | None, yes: bool, detach: bool,
    dry_run: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Rent a GPU at Vast.ai and train on it; nothing is left that bills.

    The store must be one that the machine can reach. Offers are ranked by what the whole run is
    estimated to cost, and nothing is rented before you say yes. A machine that is taken away, does
    not boot or is not healthy is replaced from the last checkpoint. Limits are kept here and by the
    machine itself, which destroys itself when its time or your money is over.

    \b
    launch vast --size large --store s3://bucket/run
    launch vast --size large --store s3://bucket/run --interruptible --budget 10 -y
    launch vast --size small --store s3://bucket/run --gpu "RTX 3060" --max-price 0.10 -n
    """
    start.checked(dry_run, as_json)
    engine, machine = engine_and_machine(options)
    if engine.store.remote is None:
        raise click.UsageError(
            "--store: a rented machine must reach it: give a bucket, such as s3://bucket/run"
        )
    wanted = _wanted(
        gpu=gpu, gpus=gpus, disk=disk, max_price=max_price, reliability=reliability,
        interruptible=interruptible, bid=bid, region=region, cuda=cuda,
        **({"image": image} if image else {}),
    )  # fmt: skip
    words = orders.rented(engine)
    how = start.kind_of(credentials, my_credentials)
    secrets = start.secrets_of(options["store"], credentials, my_credentials)
    told = {"store": options["store"], "vast": asdict(wanted), "credentials": how}
    told["floors"] = {"gpus": 0 if "cpu" in words else gpus}
    market = target({**told, "recipe": engine.recipe.tree()}, secrets)
    launch = start.open_one(engine, "vast")
    if launch is None:
        offers = market.offers(())
        limit = budget if budget is not None else _budget(offers[0])
        order, packed = orders.new_order(engine, "vast", words, told, limit, deadline)
        if dry_run:
            start.show_plan(_described(market, order, offers), as_json)
            return
        _ask(offers, limit, yes)
        launch = start.begin(engine, machine, order, packed)
        if launch.name == order.name:
            raise SystemExit(start.see_through(launch, market, detach))
    if dry_run:
        raise ValueError(f"{launch.name} is under way or done: see `launch ps --all`")
    _go_on(launch)
    market = seen_to(launch, secrets, credentials=how)
    raise SystemExit(start.see_through(launch, market, detach))


def _wanted(**typed: Any) -> VastOptions:
    """Raises UsageError for what Vast.ai does not take."""
    try:
        return VastOptions(**typed)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _go_on(launch: Launch) -> None:
    """Say within which limits the same command goes on with a launch, if it is the same."""
    _as_ordered(launch)
    limits = start.within(launch.order())
    click.echo(f"launch: going on with {launch.name}, within {limits}", err=True)


def _as_ordered(launch: Launch) -> None:
    """Raises UsageError if other terms were typed than those to which somebody has said yes."""
    context, order = click.get_current_context(), launch.order()
    ordered = {**order.options["vast"], "budget": order.budget, "deadline": order.seconds}
    typed = {name: context.params[name] for name in ordered if name in context.params}
    for name, value in typed.items():
        given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if given and value != ordered[name] and history(launch.events()).over is None:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} {value}: {launch.name} is under way with {ordered[name]}. Leave it out "
                f"to go on with that, or end it first: launch stop {launch.name}"
            )


def _budget(offer: Offer) -> float:
    """What a run may cost if nobody has said it."""
    return _UNKNOWN if offer.total is None else round(max(1.0, _MARGIN * offer.total), 2)


def _ask(offers: list[Offer], budget: float, yes: bool) -> None:
    """Show what there is and what it would cost; abort without a yes."""
    header = ("GPU", "an hour", "hours", "in all", "machine", "where", "reliability")
    rows = [
        (
            f"{each.gpus} x {each.gpu}",
            f"${each.per_hour:.3f}",
            f"{each.hours:.1f}" if each.hours is not None else "?",
            f"${each.total:.2f}" if each.total is not None else "?",
            each.machine,
            *(str(each.facts.get(name) or "?") for name in ("where", "reliability")),
        )
        for each in offers[:_SHOWN]
    ]
    click.echo(table(header, rows), err=True)
    click.echo(f"\nIt ends at the latest when it has cost ${budget:.2f} (--budget).", err=True)
    if not yes:
        click.confirm(
            "Rent the first of these, and the next ones if it is lost?", abort=True, err=True
        )


def _described(market: Any, order: Order, offers: list[Offer]) -> dict[str, Any]:
    errand = Errand(order.name, 1, order.options["store"], order.bundle, None)
    return {
        "requests": market.describe(errand, offers[0]),
        "offers": [asdict(each) for each in offers[:_SHOWN]],
        "budget": order.budget,
        "machine": order.machine,
    }
