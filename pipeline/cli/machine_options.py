"""Options of the machine, in the order of ``--help``; they change how fast a run is, never what it
trains."""

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from pipeline.cli.duration import Duration, spelled
from pipeline.machine import Machine


class _AutoOr(click.IntRange):
    """A whole number, or ``auto``, which is zero."""

    name = "whole number or auto"

    def convert(self, value: Any, *rest: Any) -> Any:
        return 0 if value == "auto" else super().convert(value, *rest)


_AUTO_ON_OFF = {"type": click.Choice(["auto", "on", "off"]), "default": "auto"}

_DEVICE = (
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        help="auto is what the chip is fast at: bf16, fp16 or fp32.",
    ),
)
_TRAINING = (
    click.option(
        "--processes",
        type=_AutoOr(0),
        default="1",
        show_default=True,
        metavar="N",
        help="So many train together, or auto: one for each GPU.",
    ),
    click.option(
        "--sharding",
        **_AUTO_ON_OFF,
        help="Each process holds but a part of the model; auto: where one cannot hold it.",
    ),
    click.option(
        "--micro-batch",
        type=_AutoOr(0),
        default="auto",
        metavar="N",
        help="Sequences worked on at once, or auto: as many as fit.",
    ),
    click.option(
        "--activation-checkpointing",
        **_AUTO_ON_OFF,
        help="Keep less and compute it again; auto: where memory is short.",
    ),
    click.option(
        "--compile", **_AUTO_ON_OFF, help="Compile what trains; auto: if the run is long enough."
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help="The same bits every time on a GPU as well, where kernels for that are slower.",
    ),
)
_THREADS = click.option(
    "--threads",
    type=_AutoOr(0, 1024),
    default="auto",
    metavar="N",
    help="CPU threads of each process; auto: as many as there are cores, shared out.",
)
_STAGES = (
    click.option(
        "--workers",
        type=_AutoOr(0, 1024),
        default="auto",
        metavar="N",
        help="Processes that encode; auto: one for each core, if there is much text.",
    ),
    click.option(
        "--checkpoint-every",
        type=Duration(),
        default="60s",
        show_default=True,
        help="Time between checkpoints, such as 90s, 5m, 1h30m.",
    ),
    click.option(
        "--checkpoint-steps",
        type=click.IntRange(0),
        default=0,
        help="Checkpoint every so many steps as well.",
    ),
    click.option(
        "--keep",
        type=click.IntRange(2),
        default=2,
        show_default=True,
        metavar="N",
        help="Keep the newest N checkpoints of an unfinished run.",
    ),
)
MACHINE = (
    "device",
    "precision",
    "processes",
    "sharding",
    "micro_batch",
    "activation_checkpointing",
    "compile",
    "deterministic",
    "threads",
    "workers",
    "checkpoint_every",
    "checkpoint_steps",
    "keep",
)


def machine_options(command: Callable) -> Callable:
    """All of them, for what runs stages."""
    return _with((*_DEVICE, *_TRAINING, _THREADS, *_STAGES), command)


def writing_options(command: Callable) -> Callable:
    """Those that matter to a model that only writes."""
    return _with((*_DEVICE, _THREADS), command)


def _with(options: tuple[Callable, ...], command: Callable) -> Callable:
    for option in reversed(options):
        command = option(command)
    return command


def make_machine(checkpoint_every: float = 60.0, **told: Any) -> Machine:
    """The machine as it was described. Raises UsageError for what no machine is."""
    try:
        return Machine(checkpoint_seconds=checkpoint_every, **told)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


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
    return [option, spelled(value) if isinstance(value, float) else str(value)]
