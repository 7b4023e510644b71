"""The command line: verbs for people and programs. Heavy libraries load only where they work."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click

from pipeline import log, recipe, show
from pipeline.engine import Engine, Planned
from pipeline.errors import Interrupted
from pipeline.options import (
    engine_and_machine,
    machine_options,
    make_engine,
    recipe_options,
)
from pipeline.places import trust
from pipeline.redact import redacted
from pipeline.show_log import story
from pipeline.stages import STAGES

EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: the same command goes on
TWICE = 0.5  # seconds within which two signals are one: timeout(1) and others send each twice
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")  # as torch says it
NAMES = [stage.name for stage in STAGES]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """Train a language model from raw text to samples, and never lose a step.

    \b
    pipeline run --size tiny --data tinyshakespeare     train, evaluate, sample
    pipeline run                                        go on with the last run
    pipeline status                                     how far is it?
    pipeline explain train                              why does it run (again)?
    pipeline generate --prompt "ROMEO:"                 write with the trained model
    """


@cli.command()
@click.argument("stage", type=click.Choice(NAMES), default="sample", metavar="[STAGE]")
@recipe_options
@machine_options
@click.option("-n", "--dry-run", is_flag=True, help="Say what would run and why; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(stage: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run every stage up to STAGE (all, if not given) that has no result yet.

    STAGE is prepare, tokenizer, encode, train, evaluate or sample.

    \b
    pipeline run                                  the last run's recipe, or tiny on python-stdlib
    pipeline run --size small --data corpus.txt
    pipeline run tokenizer --set tokenizer.vocab_size=4096 --data 'docs/**/*.md'
    """
    engine, machine = engine_and_machine(options)
    if dry_run:
        _dry_run(engine, stage)
        return
    from pipeline import ui as user_interface

    trust(engine.store)
    ui = user_interface.choose() if not as_json else user_interface.Ui(sys.stderr)
    source = redacted(engine.recipe.data.source)
    ui.say(f"{engine.recipe.size} on {source}, store {engine.store.place}")
    try:
        report = engine.run(stage, machine, ui, stop_on_signals())
    except Interrupted as interrupted:
        ui.close()
        command = redacted(shlex.join([_program(), *sys.argv[1:]]))
        click.echo(f"stopped: {interrupted}. Go on with: {command}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        ui.close()
    if as_json:
        click.echo(json.dumps(show.status(engine, [planned for planned, _, _ in report])))
        return
    if not any(ran for _, ran, _ in report):
        ui.say("nothing to do: every stage has its result")
    ui.say("\n" + show.summary(engine, report))


def _dry_run(engine: Engine, upto: str) -> None:
    for planned in engine.plan():
        click.echo("\n".join(show.explain(engine, planned, show.other_logs(engine, planned))))
        if planned.stage.name == upto:
            break


def stop_on_signals() -> Callable[[], bool]:
    """Ctrl-C and SIGTERM set a flag that the work looks at; a second Ctrl-C ends it at once."""
    asked, first = threading.Event(), 0.0

    def handle(number: int, _: Any) -> None:
        nonlocal first
        if not asked.is_set():
            first = time.monotonic()
            asked.set()
            os.write(2, b"\nstopping as soon as all is saved (Ctrl-C again: at once)\n")
        elif number == signal.SIGINT and time.monotonic() - first > TWICE:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return asked.is_set


def _program() -> str:
    """How this program can be called again: by its name, if that finds it, else by its path."""
    called = Path(sys.argv[0])
    found = shutil.which(called.name)
    return called.name if not called.exists() or (found and called.samefile(found)) else str(called)


@cli.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool, **options: Any) -> None:
    """Show every stage: done, running (with its progress), interrupted, to run or waiting."""
    engine = make_engine(**options)
    told = show.status(engine, engine.plan())
    click.echo(json.dumps(told, indent=2) if as_json else show.status_text(told))


@cli.command("explain")
@click.argument("stage", type=click.Choice(NAMES))
@recipe_options
def explain_stage(stage: str, **options: Any) -> None:
    """Say why STAGE is done or must run: what differs from the nearest earlier run of it.

    \b
    pipeline explain train
    pipeline explain train --size tiny --set train.lr=1e-3
    """
    engine = make_engine(**options)
    planned = _planned(engine, stage)
    click.echo("\n".join(show.explain(engine, planned, show.other_logs(engine, planned))))


@cli.command()
def graph() -> None:
    """Show which stage takes what from which."""
    click.echo(show.graph())


@cli.command("log")
@click.argument("stage", type=click.Choice(NAMES))
@recipe_options
@click.option("--all", "every", is_flag=True, help="Show each of many checkpoints in a row.")
@click.option("--json", "as_json", is_flag=True, help="Print the entries as JSON lines.")
def log_stage(stage: str, every: bool, as_json: bool, **options: Any) -> None:
    """Tell the story of a stage: who worked on it and where, how far, what came out."""
    engine = make_engine(**options)
    planned = _planned(engine, stage)
    entries: tuple[log.Entry, ...] = planned.state.entries if planned.state else ()
    if not entries:
        click.echo(f"{stage} has never run with this recipe on {engine.store.place}", err=True)
    told = [json.dumps(entry.body) for entry in entries] if as_json else story(entries, every)
    for line in told:
        click.echo(line)


@cli.command()
def sizes() -> None:
    """Show the four sizes and their exact parameter counts."""
    vocabularies = {name: recipe.load(name).tokenizer.vocab_size for name in recipe.SIZES}
    click.echo(show.sizes_text(vocabularies))


@cli.command()
@recipe_options
@machine_options
@click.option("--prompt", help="Write four samples of this; without it, show the run's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sample(prompt: str | None, as_json: bool, **options: Any) -> None:
    """Four samples from one prompt: greedy, temperature, top-k, top-p.

    \b
    pipeline sample
    pipeline sample --prompt "ROMEO:"
    """
    engine, machine = engine_and_machine(options)
    if prompt is None:
        told = show.load_json(engine, _planned(engine, "sample"), "samples.json")
    else:
        from pipeline.write import four

        told = four(engine, machine, prompt)
    click.echo(json.dumps(told) if as_json else show.samples_text(told))


@cli.command()
@recipe_options
@machine_options
@click.option("--prompt", default="", help="Text to go on from; nothing starts a new text.")
@click.option("--tokens", type=click.IntRange(1), default=200, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 keeps every token.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="1 keeps every token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same text.")
def generate(
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    **options: Any,
) -> None:
    """Write with the trained model, token by token.

    \b
    pipeline generate --prompt "ROMEO:"
    pipeline generate --prompt "def " --temperature 0
    """
    engine, machine = engine_and_machine(options)
    from model.sampling import SamplerConfig
    from pipeline.write import stream

    try:
        sampler = SamplerConfig(temperature, top_k, top_p, seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    written = stream(engine, machine, prompt, tokens, sampler)
    click.echo(prompt, nl=False)
    for text in written:
        click.echo(text, nl=False)
        sys.stdout.flush()
    click.echo()


@cli.command()
@recipe_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
)
def report(output: Path, **options: Any) -> None:
    """Write one self-contained HTML page: curves, metrics, samples, recipe, provenance."""
    from pipeline.report import write_report

    engine = make_engine(**options)
    write_report(engine, output)
    click.echo(f"wrote {output}")


def _planned(engine: Engine, stage: str) -> Planned:
    return next(planned for planned in engine.plan() if planned.stage.name == stage)


def main() -> None:
    """Entry point: errors that a user can mend are one message, without a traceback."""
    run_command(cli, "pipeline")


def run_command(command: click.Group, name: str) -> None:
    """Run a command line; what its user can mend becomes one message and exit code 1."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # a terminal may not know what a model writes
    try:
        command(prog_name=name, standalone_mode=True)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("IGNITE_DEBUG"):
            raise
        message = str(error)
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(message):
            message = (
                "not enough memory: take a smaller --micro-batch, --size or model.context "
                f"({message.splitlines()[0] if message else 'MemoryError'})"
            )
        elif isinstance(error, RuntimeError):
            raise  # a mistake of ours: whoever mends it needs to see where
        click.echo(f"error: {message}", err=True)
        _give_up_on(sys.stdout)
        raise SystemExit(1) from None


def _give_up_on(stream: TextIO | None) -> None:
    """Close an output that takes nothing more, so that Python does not complain of it at exit."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            stream.close()


import pipeline.cli_care  # noqa: E402 - adds its verbs; it needs what is above
import pipeline.cli_stores  # noqa: E402, F401 - adds its verbs; it needs what is above
