"""``launch local``: train in a container on this machine.

What can be wrong is found out first, in the order of what it costs: the recipe, the engine, its
GPUs, the files. Then the image is built, the container started and watched. However that ends, the
container is removed: all that counts is in the store. Only a launcher that is killed, or told to
go (--detach), leaves one behind, and the next launch removes it when it has ended.
"""

import json
import re
import shlex
import signal
import sys
from typing import Any

import click

from launchers.local import image as images
from launchers.local.attend import Asked, attend
from launchers.local.container import Order, order
from launchers.local.containers import remove, sweep, watching
from launchers.local.engine import EngineAway, connect, device_request, plainly, user
from pipeline.cli.machine_options import machine_options, machine_words, said_of_machine
from pipeline.cli.options import engine_and_machine, recipe_options
from pipeline.cli.process import EXIT_INTERRUPTED, again

_CTRL_C = 128 + signal.SIGINT


def _gpus(_: click.Context, __: click.Parameter, given: str | None) -> tuple[str, ...] | None:
    if given is None or given == "all":
        return given and ("all",)
    found = tuple(given.split(","))
    if not re.fullmatch(r"\d+(,\d+)*", given) or len(set(found)) < len(found):
        raise click.BadParameter(f"{given!r}: give all, or indices such as 0 or 0,1")
    return found


@click.command()
@recipe_options
@machine_options
@click.option("--cpu", is_flag=True, help="Train on the CPU.")
@click.option(
    "--gpus",
    callback=_gpus,
    metavar="LIST",
    help="all (if not given), or indices such as 0,1: one process for each.",
)
@click.option(
    "--variant",
    type=click.Choice(images.VARIANTS),
    help="Image to build: cu130 (drivers from 580; if not given), cu126 (from 525) or cpu.",
)
@click.option("--image", metavar="NAME", help="Use this image; build none.")
@click.option("-d", "--detach", is_flag=True, help="Return when it has started.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be built and run, only.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
def local(
    cpu: bool,
    gpus: tuple[str, ...] | None,
    variant: str | None,
    image: str | None,
    detach: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train in a container on this machine: `pipeline run` in the project's image.

    The store is mounted, or reached, from inside: all results are where they would be without a
    container, and the same command goes on with an interrupted run.

    \b
    launch local --size small --data corpus.txt
    launch local --size tiny --data tinyshakespeare --cpu
    launch local --size small --gpus 0,1 --detach
    """
    if as_json and not dry_run:
        raise click.UsageError("--json goes with --dry-run")
    if image and variant:
        raise click.UsageError("--variant says what to build, --image what to use: not both")
    variant, gpus = _wanted(cpu, gpus, variant, options["device"])
    engine, _ = engine_and_machine(options)  # takes the machine's out
    words = _machine_words(gpus)
    client = connect()
    with plainly("ask the Docker engine what it can do"):
        info = client.info()
    request = device_request(info, gpus) if gpus else None
    build = None if image else images.build_command(variant)
    name = image or f"ignite-llm:{variant}"
    made = order(engine, options, words, name, user(info), request)
    if dry_run:
        _show(build, made, as_json)
    elif code := _launch(client, build, made, detach):
        raise SystemExit(code)


def _wanted(
    cpu: bool, gpus: tuple[str, ...] | None, variant: str | None, device: str
) -> tuple[str, tuple[str, ...] | None]:
    """The variant of the image, and the GPUs; None for the CPU."""
    if device == "mps":
        raise click.UsageError("--device mps: containers have no such device")
    if cpu or variant == "cpu" or device == "cpu":
        if gpus or variant not in (None, "cpu") or device not in ("auto", "cpu"):
            raise click.UsageError(
                "--cpu (or --variant cpu, or --device cpu) goes with no option for GPUs: leave out "
                "one or the other"
            )
        return "cpu", None
    return variant or "cu130", gpus or ("all",)


def _machine_words(gpus: tuple[str, ...] | None) -> list[str]:
    """What was said of the machine, for `pipeline run` inside."""
    given = said_of_machine()
    if gpus is None:
        given["device"] = "cpu"
    elif len(gpus) > 1 or gpus == ("all",):
        given.setdefault("processes", "auto")  # inside there are no other GPUs
    return machine_words(given)


def _show(build: list[str] | None, made: Order, as_json: bool) -> None:
    told = made.shown()
    if as_json:
        click.echo(json.dumps({"build": build, "container": told}, indent=2))
        return
    click.echo(f"build: {shlex.join(build) if build else 'nothing, the image is given'}")
    for name, value in told.items():
        if name == "command":
            lines = [shlex.join(value)]
        elif name == "mounts":
            lines = [
                f"{each['source']} at {each['target']}{', read-only' * each['read_only']}"
                for each in value
            ]
        elif name in ("environment", "labels"):
            lines = [f"{key}={each}" for key, each in value.items()]
        else:
            lines = [json.dumps(value) if isinstance(value, dict) else str(value)]
        click.echo(f"{name}: " + f"\n{' ' * (len(name) + 2)}".join(lines))


def _launch(client: Any, build: list[str] | None, made: Order, detach: bool) -> int:
    """Build and run it; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for run in sweep(client):
            click.echo(f"removed {run.name}, {run.state}: its launcher is gone", err=True)
        if build:
            images.build(build)
        else:
            images.fetch(client, made.image)
    except KeyboardInterrupt:
        click.echo("stopped before the run has begun", err=True)
        return _CTRL_C
    for mount in made.mounts:
        if not mount.read_only:  # the engine would make it, as root
            mount.source.mkdir(parents=True, exist_ok=True)
    with Asked() as asked, watching(made.name):
        code = _run(client, made, asked, detach)
    if code == EXIT_INTERRUPTED or asked.times:
        click.echo(f"stopped. Go on with: {again()}", err=True)
    return code


def _run(client: Any, made: Order, asked: Asked, detach: bool) -> int:
    keep = False
    try:
        with plainly(f"start the container {made.name}"):
            made.create(client)
            if asked.times:
                return EXIT_INTERRUPTED
            client.api.start(made.name)
        if detach:
            keep = True
            click.echo(f"{made.name} has started\n  watch: launch logs -f {made.name}")
            click.echo(f"  stop:  launch stop {made.name}")
            return 0
        sys.stdout.flush()
        state = attend(client, made.name, asked, sys.stdout.buffer)
    except EngineAway:
        keep = True  # nobody knows whether it runs
        raise
    finally:
        if not keep:
            remove(client, made.name)
    if state["ExitCode"] not in (0, EXIT_INTERRUPTED):
        why = ": the machine had no more memory" if state.get("OOMKilled") else ""
        click.echo(f"{made.name} ended with exit code {state['ExitCode']}{why}", err=True)
    return state["ExitCode"]
