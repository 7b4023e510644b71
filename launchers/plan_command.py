"""``launch plan``: what the recipe would take on each target, as people and programs read it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click

from launchers import asking
from launchers.estimate import GB, OFTEN, corpus_bytes, operations, passes, state_bytes, tokens
from launchers.plan import GPUS, Offers, Row, places, survey
from launchers.target import Away, Refused
from pipeline.cli.duration import Duration
from pipeline.cli.options import make_engine, recipe_options
from pipeline.cli.show import table
from pipeline.recipe import MANY, Recipe

Quota = Callable[[], float]  # hours of GPU time that Kaggle gives this week; raises Away, Refused

NEEDS = {
    "local": "this machine",
    "kaggle": "account with a verified phone, API token; a store by URL if there is one",
    "colab": "Google account and a browser; a store by URL, or Drive",
    "vast": "VAST_API_KEY, credit, a store by URL",
}

_WEEKLY = 30.0  # hours of GPU time on Kaggle
_MUCH = 50 * GB  # of traffic, from where it is worth a line
_SELDOM = 1800.0  # seconds between checkpoints that send little


def spoken_hours(hours: float) -> str:
    """``25 min``, ``3.5 h``, ``38 h``, ``6 days``, ``5 months``."""
    if hours < 0.95:
        return f"{max(1, round(hours * 60))} min"
    if hours < 72:
        return f"{_short(hours)} h"
    if hours < 60 * 24:
        return f"{round(hours / 24)} days"
    months = round(hours / 730)
    return f"{months} months" if months < 24 else f"{round(months / 12)} years"


def _short(number: float) -> str:
    """Two digits that count: 0.30, 3.5, 38, 120."""
    if number < 0.995:
        return f"{number:.2f}"
    return f"{number:.1f}" if number < 9.95 else f"{float(f'{number:.2g}'):,.0f}"


def spoken_dollars(row: Row) -> str:
    if row.dollars is None:
        return "?"
    if row.price == "free":
        return "free"
    least, most = map(_short, row.dollars)
    return f"${least}" if least == most else f"${least} to {most}"


def shown(rows: Sequence[Row]) -> str:
    """The table. A time that rests on an assumption is ``~``, one that was measured is not."""
    header = ("target", "card", "fits", "time", "sessions", "cost", "traffic", "speed rests on")
    return table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    start = (row.target, row.card, row.fits)
    if row.hours is None:
        return (*start, *[""] * 4, row.basis)
    return (
        *start,
        f"{'' if row.measured else '~'}{spoken_hours(row.hours)}",
        str(row.sessions),
        spoken_dollars(row),
        "" if row.gigabytes is None else f"{_short(row.gigabytes)} GB",
        row.basis,
    )


def remarks(recipe: Recipe, rows: Sequence[Row], every: float) -> list[str]:
    """What the table does not say."""
    vocabulary = recipe.tokenizer.vocab_size
    lines = [
        f"the vocabulary is taken at its ceiling, {vocabulary:,}: a small text's ends below it, "
        "and its model is smaller and faster",
    ]
    known = corpus_bytes(recipe.data.source)
    if known is None:
        lines.append("how long the text is, is unknown here: reading and scoring it come on top")
    elif (times := passes(recipe, known)) > MANY:
        lines.append(f"the text is read some {_short(times)} times: it is short for this recipe")
    if any(row.fits == "recomputing" for row in rows):
        lines.append("recomputing: with activation checkpointing, for a third more work")
    weeks = [math.ceil(row.hours / _WEEKLY) for row in rows if row.target == "kaggle" and row.hours]
    if weeks and weeks[0] > 1:
        lines.append(f"kaggle gives some {_WEEKLY:g} hours a week: {weeks[0]} weeks of them")
    if any(row.target == "colab" and row.hours for row in rows):
        lines.append("colab promises neither a GPU nor the 12 hours")
    if unpriced := [row.card for row in rows if row.hours and row.dollars is None]:
        lines.append(f"what this costs an hour is unknown here: {', '.join(unpriced)}")
    if any(row.price == "typical" for row in rows):
        lines.append("prices are typical ones of 2026 for on-demand; disk and traffic are assumed")
    if any((row.gigabytes or 0) * GB > _MUCH for row in rows) and every < _SELDOM:
        size = state_bytes(recipe) / GB
        lines.append(
            f"a checkpoint is {_short(size)} GB, and one goes to the store as often as the network "
            "takes it: --checkpoint-every 30m sends less"
        )
    return lines


def _heading(recipe: Recipe) -> str:
    vocabulary = recipe.tokenizer.vocab_size
    return (
        f"{recipe.size}: {recipe.model.parameters(vocabulary):,} parameters, "
        f"{recipe.train.steps:,} steps, {tokens(recipe):,} tokens, "
        f"{operations(recipe):.2g} operations"
    )


# the command


def _known(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in given) or GPUS


def command(offers: Offers | None = None, quota: Quota | None = None) -> click.Command:
    """``launch plan``. With who knows today's offers or quota it can be told to ask them."""

    @click.command()
    @recipe_options
    @click.option(
        "--gpu",
        "gpus",
        multiple=True,
        callback=_known,
        metavar="NAME",
        help='A card to rent, as Vast.ai calls it, such as "RTX 4090". May be repeated.',
    )
    @click.option(
        "--hours-per-session",
        "session",
        type=click.FloatRange(min=0.5),
        help="Sessions end after so many, or after the target's own limit.",
    )
    @click.option(
        "--checkpoint-every",
        "every",
        type=Duration(),
        help="Time between checkpoints, which are most of the traffic: 60s to 30m, by the size.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def plan(
        gpus: tuple[str, ...],
        session: float | None,
        every: float | None,
        as_json: bool,
        live: bool = False,
        **options: Any,
    ) -> None:
        """Say what the recipe would take here, on Kaggle, on Colab and on Vast.ai.

        Will it fit, how long, in how many sessions, for how much with disk and traffic. A time
        with ~ rests on an assumed speed: see docs/launch.md.

        \b
        launch plan --size medium --data corpus.txt
        launch plan --size large --gpu "RTX 4090" --gpu H200 --json
        """
        recipe = make_engine(**options).recipe
        every = OFTEN[recipe.size] if every is None else every
        rows, notes = survey(recipe, places(gpus, session), every, offers if live else None)
        notes += remarks(recipe, rows, every)
        if live and quota:
            notes.append(_left(quota))
        _print(recipe, rows, notes, as_json)

    if offers or quota:
        asks = "Ask Vast.ai for its offers and Kaggle for the quota."
        plan = click.option("--live", is_flag=True, help=asks)(plan)
    return plan


def _left(quota: Quota) -> str:
    try:
        return f"kaggle: {_short(quota())} h of GPU time are left this week"
    except (Away, Refused) as error:
        return f"kaggle: {error}"


def _print(recipe: Recipe, rows: list[Row], notes: list[str], as_json: bool) -> None:
    if as_json:
        told = {
            "size": recipe.size,
            "parameters": recipe.model.parameters(recipe.tokenizer.vocab_size),
            "tokens": tokens(recipe),
            "operations": operations(recipe),
            "targets": [{**asdict(row), "needs": NEEDS[row.target]} for row in rows],
            "notes": notes,
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{_heading(recipe)}\n\n{shown(rows)}\n")
    needs = [(name, NEEDS[name]) for name in dict.fromkeys(row.target for row in rows)]
    click.echo(table(("target", "needs"), needs))
    click.echo("\n" + "\n".join(f"* {note}" for note in notes))


plan = command(asking.offers, asking.quota)
