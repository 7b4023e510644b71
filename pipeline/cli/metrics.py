"""The verb that shows what a training run measured, a line a step: as a table, lines or events."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import make_engine, recipe_options
from pipeline.cli.presence import presence
from pipeline.engine import log
from pipeline.engine.engine import Engine, Planned
from pipeline.journal import is_part, last_step
from pipeline.ui import human_bytes

_COLUMNS = ("step", "loss", "gradient norm", "lr", "tokens/s", "memory", "MFU", "")
_WIDTHS = (10, 9, 13, 10, 9, 10, 7, 0)
_LOOK_EVERY = 2.0, 10.0  # seconds: a store in a directory, and one elsewhere
_SELDOM = 30  # looks at the log, to one at who is there

Lines = Iterator[dict[str, Any]]


@click.command()
@recipe_options
@click.option("--follow", is_flag=True, help="Go on with each new checkpoint until the result.")
@click.option("--every", type=click.IntRange(1), help="Show one step in so many; looks all.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they are stored.")
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write event files for TensorBoard into this directory.",
)
def metrics(
    follow: bool, every: int | None, as_json: bool, tensorboard: Path | None, **options: Any
) -> None:
    """Show loss, gradient norm, learning rate, speed and memory of each step.

    From the result or, while there is none, as far as the newest checkpoint goes.

    \b
    pipeline metrics --every 100
    pipeline metrics --follow --json
    pipeline metrics --tensorboard runs/tiny
    """
    engine = make_engine(**options)
    lines = _follow(engine) if follow else _all(engine, _train(engine))
    lines = (line for line in lines if "lr" not in line or line["step"] % (every or 1) == 0)
    first = next(lines, None)
    if first is None:
        click.echo(f"no step of this run is stored on {engine.store.place} yet", err=True)
        return
    lines = itertools.chain([first], lines)
    if tensorboard is not None:
        _write_events(lines, tensorboard)
    elif as_json:
        for line in lines:
            click.echo(json.dumps(line))
    else:
        click.echo(_row(_COLUMNS))
        for line in lines:
            click.echo(_row(_cells(line)))


# reading


def _train(engine: Engine) -> Planned:
    return next(planned for planned in engine.plan() if planned.stage.name == "train")


def _all(engine: Engine, train: Planned, after: int = 0) -> Lines:
    """The lines of steps after ``after``; no step twice."""
    for path in _files(engine, train, after):
        with path.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                if line["step"] > after or (line["step"] == after and "back_from" in line):
                    yield line


def _files(engine: Engine, train: Planned, after: int) -> list[Path]:
    """The files with the lines, in order: the result's one, or the newest checkpoint's parts."""
    if train.result is not None:
        known = "metrics.jsonl" in train.result.body["files"]  # not in results of older versions
        return [engine.file(train, "metrics.jsonl")] if known else []
    checkpoints = train.state.checkpoints if train.state else ()
    files = checkpoints[-1].body["files"] if checkpoints else {}
    wanted = [name for name in sorted(filter(is_part, files)) if last_step(name) > after]
    return [engine.store.blob(files[name]["digest"]) for name in wanted]


def _follow(engine: Engine) -> Lines:
    """Lines as checkpoints bring them, until there is a result.

    Raises ValueError if the training fails meanwhile. That nobody works on it is said once, and
    somebody is waited for.
    """
    reached, seen, nobody = 0, tuple[log.Entry, ...](), _Nobody(engine)
    for looks in itertools.count():
        train = _train(engine)
        before, seen = seen, train.state.entries if train.state else ()
        backs = [entry.body.get("back_to", reached) for entry in seen[len(before) :]]
        reached = min([reached, *backs])
        for line in _all(engine, train, reached):
            yield line
            reached = line["step"]
        if train.result is not None:
            return
        why = train.state and train.state.failure
        if why and looks:  # at the first, it had failed before
            raise ValueError(f"the training has failed: {why}")
        while True:
            nobody.look(why)
            time.sleep(_LOOK_EVERY[engine.store.remote is not None])
            if not train.key or len(log.read(engine.store, train.key).entries) > len(seen):
                break


class _Nobody:
    """Says, once, that nobody works on a run; a look in so many, since it costs several reads."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.looks, self.alone, self.said = engine, 0, 0, False

    def look(self, failed: str | None) -> None:
        self.looks += 1
        if self.said or (self.looks % _SELDOM and not self.alone and self.looks > 2):
            return
        self.alone = 0 if any(map(self._worked_on, self.engine.plan())) else self.alone + 1
        if self.alone == 2:  # between two stages there is nobody for a moment
            self.said = True
            why = f", and it has failed: {failed}. Waiting" if failed else ": waiting"
            click.echo(f"nobody works on this run{why} for somebody (Ctrl-C ends this)", err=True)

    def _worked_on(self, planned: Planned) -> bool:
        owner = planned.state.owner if planned.state else None
        if owner is None or not planned.key:
            return False
        return presence(self.engine.store, planned.key, owner)["state"] != "interrupted"


# showing


def _row(cells: Iterable[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS)).rstrip()


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    step = f"{line['step']:,}"
    if "validation_loss" in line:
        told = f"validation {line['validation_loss']}, {line['bits_per_byte']} bits per byte"
        return (step, *[""] * 6, told)
    if "back_from" in line:
        told = f"back here from step {line['back_from']:,}, learning rate x {line['peak']:g}"
        return (step, *[""] * 6, told)
    return (
        step,
        f"{line['loss']:.4f}",
        _shown(line["gradient_norm"], "{:.4g}"),
        f"{line['lr']:.3g}",
        _shown(line["tokens_per_second"], "{:,}"),
        "" if line["memory"] is None else human_bytes(line["memory"]),
        _shown(line["mfu"], "{:.1%}"),
        "skipped" if line["skipped"] else "",
    )


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _write_events(lines: Lines, folder: Path) -> None:
    """One scalar for each number of each line."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install 'ignite-llm[tensorboard]'"
        ) from None
    count = 0
    # of what an earlier export has left in the folder nothing is shown
    with SummaryWriter(str(folder), purge_step=0) as writer:
        for line in lines:
            left_out = {"step"} | ({"loss"} if "back_from" in line else set())  # it was undone
            for name, value in line.items():
                if name not in left_out and value is not None:
                    writer.add_scalar(name, float(value), line["step"])
            count += 1
    click.echo(f"wrote {count:,} lines to {folder}: tensorboard --logdir {folder}")
