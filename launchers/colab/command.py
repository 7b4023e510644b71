"""``launch colab``: a notebook that trains on Colab's GPU, and how to open it."""

import os
import re
import time
from pathlib import Path
from typing import Any

import click

from launchers import bundle, orders, start
from launchers.colab.notebook import GPUS, Told, notebook, sources
from launchers.credentials import names, unhidden
from launchers.launches import Launch
from pipeline.cli.duration import Duration
from pipeline.cli.machine_options import machine_options, machine_words, said_of_machine
from pipeline.cli.options import engine_and_machine, recipe_options
from pipeline.engine.engine import Engine
from pipeline.machine import Machine

_FOLDER = "ignite"  # of Drive, if none is named
_VM = "/content/"  # where a path means one of Colab's machine


def _folder(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"[\w][\w .-]*(/[\w][\w .-]*)*", given):
        raise click.BadParameter(f"{given!r}: give a folder inside My Drive, such as ignite")
    return given


@click.command()
@recipe_options
@machine_options
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where to write the notebook; NAME.ipynb, if not given.",
)  # fmt: skip
@click.option(
    "--drive", callback=_folder, metavar="FOLDER",
    help=f"Keep the run in this folder of Google Drive; without a --store elsewhere: {_FOLDER}.",
)  # fmt: skip
@click.option("--gpu", type=click.Choice(GPUS), default="T4", show_default=True)
@click.option("--deadline", type=Duration(), help="All must be over so long from now: 12h.")
@click.option("--via", type=click.Choice(["colab-cli"]), help="Run it now, without a browser.")
@start.credential_options
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
def colab(
    output: Path | None, drive: str | None, gpu: str, deadline: float | None, via: str | None,
    credentials: Path | None, my_credentials: bool, dry_run: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a notebook that trains on Colab, and say how to open it. Free of charge with a T4.

    All is in the notebook: the program, and what it is to do. "Run all" begins the run, and goes on
    with it when Colab has taken the machine away. With a store elsewhere (s3://...) everything is
    there while it trains; else the run is copied to your Google Drive every few minutes.

    \b
    launch colab --size small --data tinyshakespeare
    launch colab --size medium --store s3://bucket/run --gpu L4
    launch colab --size medium --store s3://bucket/run --via colab-cli
    """
    start.checked(dry_run, as_json)
    engine, machine = engine_and_machine(options)
    drive = _checked(engine, drive, via, credentials or my_credentials)
    words = machine_words(said_of_machine())
    place = "" if drive else options["store"]
    floors = {"gpus": 0 if "cpu" in words else 1}
    told = _told(engine, place, drive, gpu, words, floors, deadline)
    if via:
        from launchers.colab.unattended import Unattended

        job = Unattended(told, credentials, my_credentials)
        if dry_run:
            start.show_plan({"requests": job.described()}, as_json)
            return
        job.check()
        raise SystemExit(job.run(_placed(engine, machine, told)))
    text, file = notebook(told), output or Path(f"{told.order.name}.ipynb")
    if dry_run:
        start.show_plan(_described(told, file, text), as_json)
        return
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise click.UsageError(f"{file} is there already: remove it, or give another --output")
    if place:
        _placed(engine, machine, told)
    file.write_text(text, encoding="utf-8")
    click.echo(_opening(told, file))


def _checked(engine: Engine, drive: str | None, via: str | None, keys: Any) -> str:
    """The folder of Drive; nothing, if the store is elsewhere. Raises UsageError."""
    remote, source = engine.store.remote is not None, engine.recipe.data.source
    if remote and drive is not None:
        raise click.UsageError("--drive goes with no --store elsewhere: Colab reaches that itself")
    if keys and not via:
        raise click.UsageError(
            "--credentials and --my-credentials go with --via colab-cli: a notebook takes them "
            "from the secrets of your account"
        )
    if remote:
        names(engine.store.place)  # raises for a place that Colab could not open
        return ""
    if via:
        raise click.UsageError(
            "--via colab-cli needs a --store elsewhere, such as s3://bucket/run: Drive asks a "
            "person for consent"
        )
    if orders.is_here(source) and not source.startswith(_VM):
        raise click.UsageError(
            f"--data {source} lies on this machine, where Colab cannot read it. Give a --store "
            "elsewhere (s3://bucket/run), and it is brought there; or put the text on your Drive, "
            "and give --data /content/drive/MyDrive/..."
        )
    return drive or _FOLDER


def _told(
    engine: Engine, place: str, drive: str, gpu: str, words: list[str], floors: dict[str, int],
    seconds: float | None,
) -> Told:  # fmt: skip
    """What the notebook is told: of the launch that is under way already, if there is one."""
    environment = unhidden(os.environ) if place else {}
    open_one = start.open_one(engine, "colab") if place else None
    if open_one is not None:
        order = open_one.order()
        late = order.seconds is not None and time.time() > order.at + order.seconds
        data = engine.store.read(bundle.name_of(order.bundle))
        if data is not None and not late:
            packed = bundle.Bundle(order.bundle, data)
            return Told(order, packed, place, drive, gpu, environment)
    options = {"store": place, "drive": drive, "floors": floors}
    order, packed = orders.new_order(engine, "colab", words, options, None, seconds)
    return Told(order, packed, place, drive, gpu, environment)


def _placed(engine: Engine, machine: Machine, told: Told) -> Launch:
    """The launch in the store elsewhere, with a text of this machine and the order in it."""
    if told.order.name in engine.store.names("launch"):
        return Launch(engine.store, told.order.name)
    if not engine.recipe.data.source.startswith(_VM):
        start.bring(engine, machine)
    return orders.place(engine, told.order, told.bundle)


def _described(told: Told, file: Path, text: str) -> dict[str, Any]:
    ways, others = names(told.store) if told.store else ([], [])
    return {
        "notebook": str(file),
        "bytes": len(text.encode()),
        "cells": list(sources(told)),
        "gpu": told.gpu,
        "store": told.store or f"Google Drive, {told.drive}/{told.order.name}",
        "secrets": {"one_of": ways, "and_if_there": others},
        "order": vars(told.order),
    }


def _opening(told: Told, file: Path) -> str:
    name, ways = told.order.name, names(told.store)[0] if told.store else []
    lines = [
        f"wrote {file}",
        "",
        "  open   https://colab.research.google.com/#create=true, File > Upload notebook",
        f"         (or put {file.name} on your Drive, and double-click it)",
    ]
    if ways:
        wanted = ", or ".join(" and ".join(each) for each in ways)
        lines.append(f"  allow  the key on the left (Secrets): {wanted}")
    lines.append("  begin  Runtime > Run all; the same goes on after Colab took the machine away")
    if told.store:
        lines.append(f"  watch  launch ps --store {told.store}")
        lines.append(f"  stop   launch stop {name} --store {told.store}, or the stop button")
        lines.append(f"  fetch  pipeline pull {told.store}")
    else:
        lines.append("  stop   the stop button of the cell that trains")
        lines.append(f"  fetch  pipeline pull FOLDER, when {told.drive}/{name} of Drive is there")
    return "\n".join(lines)
