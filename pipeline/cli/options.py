"""The options that verbs share, and what they ask for: an engine and a machine."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline import recipe
from pipeline.engine import log
from pipeline.engine.engine import Engine
from pipeline.engine.remembered import latest
from pipeline.errors import StoreError
from pipeline.machine import Machine, duration
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


class _AutoOr(click.IntRange):
    """A whole number, or ``auto``, which is zero."""

    name = "whole number or auto"

    def convert(self, value: Any, *rest: Any) -> Any:
        return 0 if value == "auto" else super().convert(value, *rest)


def machine_options(command: Callable) -> Callable:
    """Options of the machine; they change how fast a run is, never what it trains."""
    for option in (
        click.option(
            "--keep",
            type=click.IntRange(2),
            default=2,
            show_default=True,
            metavar="N",
            help="Keep the newest N checkpoints of an unfinished run.",
        ),
        click.option(
            "--checkpoint-steps",
            type=click.IntRange(0),
            default=0,
            help="Checkpoint every so many steps as well.",
        ),
        click.option(
            "--checkpoint-every",
            default="60s",
            show_default=True,
            help="Time between checkpoints, such as 90s, 5m, 1h30m.",
        ),
        click.option(
            "--workers",
            type=_AutoOr(0, 1024),
            default="auto",
            metavar="N",
            help="Processes that encode; auto: one for each core, if there is much text.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(0, 1024),
            default=0,
            help="CPU threads; 0 leaves the choice to torch.",
        ),
        click.option(
            "--deterministic",
            is_flag=True,
            help="The same bits every time on a GPU as well, where kernels for that are slower.",
        ),
        click.option(
            "--compile",
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            help="Compile what trains; auto: if the run is long enough.",
        ),
        click.option(
            "--activation-checkpointing",
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            help="Keep less and compute it again; auto: where memory is short.",
        ),
        click.option(
            "--micro-batch",
            type=_AutoOr(0),
            default="auto",
            metavar="N",
            help="Sequences worked on at once, or auto: as many as fit.",
        ),
        click.option(
            "--sharding",
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            help="Each process holds but a part of the model; auto: where one cannot hold it.",
        ),
        click.option(
            "--processes",
            type=_AutoOr(0),
            default="1",
            show_default=True,
            metavar="N",
            help="So many train together, or auto: one for each GPU.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default="auto",
            help="auto is what the chip is fast at: bf16, fp16 or fp32.",
        ),
        click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps."),
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


def make_machine(checkpoint_every: str, **told: Any) -> Machine:
    """The machine as it was described. Raises UsageError for what no machine is."""
    try:
        seconds = duration(checkpoint_every)
    except ValueError as error:
        raise click.UsageError(f"--checkpoint-every: {error}") from error
    try:
        return Machine(checkpoint_seconds=seconds, **told)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


MACHINE = (
    "device",
    "precision",
    "micro_batch",
    "activation_checkpointing",
    "compile",
    "deterministic",
    "threads",
    "checkpoint_every",
    "checkpoint_steps",
    "keep",
    "processes",
    "sharding",
    "workers",
)


def engine_and_machine(options: dict[str, Any]) -> tuple[Engine, Machine]:
    """What the options of both kinds ask for; takes the machine's out of ``options``."""
    machine = {name: options.pop(name) for name in MACHINE}
    return make_engine(**options), make_machine(**machine)


def said_of_machine() -> dict[str, Any]:
    """The machine's options that were given to the command that runs, without their defaults."""
    context = click.get_current_context()
    given = {name: value for name, value in context.params.items() if name in MACHINE}
    source = context.get_parameter_source
    return {name: given[name] for name in given if source(name) != ParameterSource.DEFAULT}


def machine_words(options: dict[str, Any]) -> list[str]:
    """The words by which another `pipeline run` is told the same of its machine."""
    return [word for name, value in options.items() for word in _words(name, value)]


def _words(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    return [option, str(value)]
