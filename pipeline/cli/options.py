"""The options that verbs share, and what they ask for: a store, and an engine of a recipe."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import recipe
from pipeline.cli.machine_options import MACHINE, make_machine
from pipeline.engine import log
from pipeline.engine.engine import Engine
from pipeline.engine.remembered import latest
from pipeline.errors import StoreError
from pipeline.machine import Machine
from pipeline.stages import STAGES
from pipeline.store import places
from pipeline.store.store import Store

NAMES = [stage.name for stage in STAGES]

store_option = click.option(
    "--store",
    envvar="IGNITE_STORE",
    default="artifacts",
    show_default=True,
    metavar="PLACE",
    help="Directory or URL (s3://, gs://, abfs://) of the store; or IGNITE_STORE.",
)


def recipe_options(command: Callable) -> Callable:
    """Options that choose a recipe and the store; all verbs share them."""
    for option in (
        store_option,
        click.option(
            "--from",
            "upstreams",
            multiple=True,
            metavar="PLACE",
            help="Another store to take results and checkpoints from. May be repeated.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change one setting, such as train.lr=3e-4. May be repeated.",
        ),
        click.option("--text-field", help="Field or column of jsonl and parquet with the text."),
        click.option(
            "--data",
            help="tinyshakespeare, python-stdlib, or a file, directory, "
            "glob or URL of text, jsonl or parquet.",
        ),
        click.option(
            "--recipe",
            "file",
            type=click.Path(path_type=Path),
            help="A TOML file laid over the size's recipe, or classic: the original's.",
        ),
        click.option("--size", help="tiny, small, medium or large."),
    ):
        command = option(command)
    return command


def open_store(place: str) -> Store:
    """The store that --store names. Raises UsageError for words by which none can be meant."""
    with _usage("--store"):
        places.check(place)
        return places.open_store(place)


def open_guest(place: str, name: str, *, writing: bool = False) -> Store:
    """A place beside the store, that the argument ``name`` names. Raises the same."""
    with _usage(name):
        places.check(place, writing=writing)
        return places.guest(place)


@contextlib.contextmanager
def _usage(name: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise click.UsageError(f"{name}: {error}") from error


def empty(store: Store) -> str:
    """What to say of a place where nothing is."""
    return f"there is nothing in {store.place}: no stage has ever run there"


def _upstream(place: str) -> Store:
    """A store to take results from; says so if there are none."""
    store = open_guest(place, "--from")
    if store.remote is None and not store.root.is_dir():
        raise click.UsageError(f"--from: there is no directory {place}")
    if not log.keys(store):
        click.echo(f"note: --from: {empty(store)}", err=True)
    return store


def make_engine(
    size: str | None,
    file: Path | None,
    data: str | None,
    text_field: str | None,
    settings: tuple[str, ...],
    store: str,
    upstreams: tuple[str, ...],
) -> Engine:
    """The engine for the chosen recipe.

    Without size, recipe and data it is the last run's, with the settings laid over it; with any of
    them it starts from the defaults, whatever ran before.
    """
    opened = open_store(store)
    try:
        if text_field:
            settings = (*settings, f"data.text_field={text_field}")
        base = None if size or file or data else latest(opened)
        if base is not None:
            chosen = recipe.changed(base, settings)
        else:
            chosen = recipe.load(size, file, data, settings)
    except StoreError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Engine(opened, chosen, tuple(_upstream(place) for place in upstreams))


def engine_and_machine(options: dict[str, Any]) -> tuple[Engine, Machine]:
    """What the options of both kinds ask for; takes the machine's out of ``options``."""
    machine = {name: options.pop(name) for name in MACHINE if name in options}
    return make_engine(**options), make_machine(**machine)
