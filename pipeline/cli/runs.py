"""Verbs that run the stages, say how far they are, and use what they made."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from pipeline import recipe
from pipeline.cli import show
from pipeline.cli.duration import Duration, spelled
from pipeline.cli.machine_options import machine_options, said_of_machine, writing_options
from pipeline.cli.options import NAMES, engine_and_machine, make_engine, recipe_options
from pipeline.cli.process import EXIT_INTERRUPTED, again, stop_on_signals
from pipeline.cli.show_log import story
from pipeline.engine import log
from pipeline.engine.engine import Engine, Planned
from pipeline.engine.stopping import Stopping
from pipeline.errors import Interrupted
from pipeline.machine import Machine, torchrun
from pipeline.redact import redacted
from pipeline.store.places import trust


@click.command()
@click.argument("stage", type=click.Choice(NAMES), default="sample", metavar="[STAGE]")
@recipe_options
@machine_options
@click.option(
    "--stop-after",
    type=Duration(above=0),
    help="Checkpoint and end (exit 75) so that all is saved this long after the start, "
    "such as 11h30m.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would run and why; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(stage: str, stop_after: float | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run every stage up to STAGE (all, if not given) that has no result yet.

    STAGE is prepare, tokenizer, encode, train, evaluate or sample.

    \b
    pipeline run                                  the last run's recipe, or tiny on python-stdlib
    pipeline run --size small --data corpus.txt
    pipeline run tokenizer --set tokenizer.vocab_size=4096 --data 'docs/**/*.md'
    """
    stopping = _stopping(stop_after)
    if (torchrun() or (0, 1))[0]:
        _follow(dry_run)
        return
    engine, machine = engine_and_machine(options)
    if dry_run:
        _check(engine, machine, stage)
        _dry_run(engine, stage, as_json)
        return
    from pipeline import ui as user_interface

    trust(engine.store)
    stopping.signalled = stop_on_signals()
    _check(engine, machine, stage)  # it loads torch, and Ctrl-C may come meanwhile
    ui = user_interface.choose() if not as_json else user_interface.Ui(sys.stderr)
    source = redacted(engine.recipe.data.source)
    ui.say(f"{engine.recipe.size} on {source}, store {engine.store.place}")
    try:
        with _leading():
            report = engine.run(stage, machine, ui, stopping)
    except Interrupted as interrupted:
        ui.close()
        stopped = f"stopped {stopping.why}".strip()
        click.echo(f"{stopped}: {interrupted}. Go on with: {again()}", err=True)
        if as_json:
            told: dict[str, Any] = {"stopped": f"{stopped}: {interrupted}"}
            with contextlib.suppress(Interrupted, OSError, ValueError):  # a store may be away
                told |= show.status(engine, _plan(engine, stage))
            click.echo(json.dumps(told))
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        ui.close()
    if as_json:
        click.echo(json.dumps(show.status(engine, [planned for planned, _ in report])))
        return
    if not any(ran for _, ran in report):
        ui.say("nothing to do: every stage has its result")
    ui.say("\n" + show.summary(engine, report))


_COMPUTING = {"device", "precision", "compile", "sharding", "processes"}


def _check(engine: Engine, machine: Machine, upto: str) -> None:
    """Refuse what this machine cannot do now, and not when it comes to training."""
    if not said_of_machine().keys() & _COMPUTING or NAMES.index(upto) < NAMES.index("train"):
        return
    from pipeline.stages.train import check

    try:
        check(machine, engine.recipe)
    except ValueError:
        train = next(planned for planned in engine.plan() if planned.stage.name == "train")
        if train.result is None:
            raise


def _follow(dry_run: bool) -> None:
    """Be one of torchrun's processes that the first one leads."""
    if not dry_run:
        from pipeline.follow import follow_torchrun

        follow_torchrun()


def _leading() -> contextlib.AbstractContextManager[None]:
    """Be the first of torchrun's processes; nothing, if it has started none."""
    if torchrun() is None:
        return contextlib.nullcontext()
    from pipeline.team import leading_torchrun

    os.environ.setdefault("IGNITE_AGAIN", "the same torchrun command")
    return leading_torchrun()


def _stopping(after: float | None) -> Stopping:
    """When to stop; its time begins now."""
    if after is None:
        return Stopping(lambda: False)
    return Stopping(lambda: False, after, f"after {spelled(after)}")


def _plan(engine: Engine, upto: str) -> list[Planned]:
    return engine.plan()[: NAMES.index(upto) + 1]


def _dry_run(engine: Engine, upto: str, as_json: bool) -> None:
    plan = _plan(engine, upto)
    why = {
        planned.stage.name: show.explain(engine, planned, show.other_logs(engine, planned))
        for planned in plan
    }
    if as_json:
        told = show.status(engine, plan)
        for name, lines in why.items():
            told["stages"][name]["why"] = lines
        click.echo(json.dumps({"dry_run": True, **told}))
        return
    for lines in why.values():
        click.echo("\n".join(lines))


@click.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool, **options: Any) -> None:
    """Show every stage: done, running (with its progress), interrupted, to run or waiting."""
    engine = make_engine(**options)
    told = show.status(engine, engine.plan())
    click.echo(json.dumps(told, indent=2) if as_json else show.status_text(told))


@click.command("explain")
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


@click.command()
def graph() -> None:
    """Show which stage takes what from which."""
    click.echo(show.graph())


@click.command("log")
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


@click.command()
def sizes() -> None:
    """Show the four sizes and their exact parameter counts."""
    vocabularies = {name: recipe.load(name).tokenizer.vocab_size for name in recipe.SIZES}
    click.echo(show.sizes_text(vocabularies))


@click.command()
@click.option("--prompt", help="Write four samples of this; without it, show the run's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@recipe_options
@writing_options
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

        told = four(engine, machine, prompt, _note)
    click.echo(json.dumps(told) if as_json else show.samples_text(told))


@click.command()
@click.option("--prompt", default="", help="Text to go on from; nothing starts a new text.")
@click.option("--tokens", type=click.IntRange(1), default=200, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 keeps every token.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="1 keeps every token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same text.")
@recipe_options
@writing_options
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
    written = stream(engine, machine, prompt, tokens, sampler, _note)
    click.echo(prompt, nl=False)
    for text in written:
        click.echo(text, nl=False)
        sys.stdout.flush()
    click.echo()


@click.command()
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


def _note(text: str) -> None:
    click.echo(text, err=True)
