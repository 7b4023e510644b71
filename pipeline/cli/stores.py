"""The verbs that carry work from one place to another: push, pull, accept, adopt."""

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import click

from pipeline.cli.options import (
    NAMES,
    empty,
    make_engine,
    open_guest,
    open_store,
    recipe_options,
    store_option,
)
from pipeline.cli.process import EXIT_INTERRUPTED, stop_on_signals
from pipeline.engine import inherit, log
from pipeline.engine.beat import me
from pipeline.engine.remembered import LATEST
from pipeline.engine.transfer import Parcel, Skipped, copy_records, deliver, obstacle, pack
from pipeline.errors import Interrupted
from pipeline.store.places import trust
from pipeline.store.store import PATIENCE, Store
from pipeline.ui import Ui, choose, human_bytes, while_away


class Carrying:
    """Shows one bar over all bytes, and stops if somebody asks to. Told by several threads."""

    def __init__(self, ui: Ui, verb: str, stopping: Callable[[], bool]) -> None:
        self.ui, self.verb, self.stopping = ui, verb, stopping
        self.done = self.total = 0
        self._lock = threading.Lock()

    def report(self, count: int) -> None:
        if self.stopping():
            raise Interrupted("what has arrived is skipped next time")
        if count:
            with self._lock:
                self.done += count
                total = max(self.done, self.total) if self.total else None
                self.ui.progress(self.verb, self.done, total, "B", {})


def transfer_options(command: Callable) -> Callable:
    """Options that push and pull share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("-n", "--dry-run", is_flag=True, help="Say what there is to carry, only."),
        store_option,
        click.argument("place"),
    ):
        command = option(command)
    return command


@click.command()
@transfer_options
def push(place: str, store: str, dry_run: bool, as_json: bool) -> None:
    """Copy to PLACE what the store has and PLACE has not.

    Carried are results and, of what is unfinished, the newest checkpoints. PLACE is a directory or
    a URL. It may be one that cannot serve as a store (sftp://, hf://, a mounted drive), if only
    one process at a time pushes to it.

    \b
    pipeline push s3://bucket/runs
    pipeline push hf://buckets/me/runs --store s3://bucket/runs
    pipeline push /media/usb/runs -n
    """
    source, target = open_store(store), open_guest(place, "PLACE", writing=True)
    _transfer("push", source, target if dry_run else writable(target), dry_run, as_json)


@click.command()
@transfer_options
def pull(place: str, store: str, dry_run: bool, as_json: bool) -> None:
    """Copy from PLACE what it has and the store has not.

    After it, status, sample and run go on here where they were there. Blobs that the store has
    lost come back, too.

    \b
    pipeline pull s3://bucket/runs
    pipeline pull sftp://host/runs --store /data/artifacts
    """
    fetch(place, store, dry_run, as_json)


def fetch(place: str, store: str, dry_run: bool = False, as_json: bool = False) -> None:
    """What ``pipeline pull`` does, for other programs."""
    source, target = open_guest(place, "PLACE"), open_store(store)
    _transfer("pull", source, target if dry_run else trust(target), dry_run, as_json)


def writable(store: Store) -> Store:
    """A place to push to: as a mirror, where names cannot be created exclusively."""
    if store.remote is None:
        store.exclusive = _has_links(store)
        return store
    from pipeline.store.remote import NotExclusive

    with contextlib.suppress(NotExclusive):
        return trust(store)
    store.exclusive = False
    return store


def _has_links(store: Store) -> bool:
    with store.scratch() as scratch:
        (scratch / "one").touch()
        try:
            os.link(scratch / "one", scratch / "two")
        except OSError:
            return False
    return True


def _transfer(verb: str, source: Store, target: Store, dry_run: bool, as_json: bool) -> None:
    if _same(source, target):
        raise click.UsageError(f"{source.place} is the store itself: name another PLACE")
    ui = Ui(sys.stderr) if as_json else choose()
    carrying = Carrying(ui, verb, stop_on_signals())
    away = while_away(ui, carrying.stopping)
    source, target = (store.patient(PATIENCE, away) for store in (source, target))
    try:
        told = _carried(source, target, carrying, dry_run)
    except Interrupted as interrupted:
        ui.close()
        click.echo(f"stopped: {interrupted}. Go on with the same command", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        ui.close()
    click.echo(json.dumps(told) if as_json else _line(verb, told))
    if any(each["lost"] for each in told["skipped"]):
        raise SystemExit(1)


def _carried(source: Store, target: Store, carrying: Carrying, dry_run: bool) -> dict[str, Any]:
    """Carry all that there is to carry, or only look; says what that was, as JSON values."""
    keys = log.keys(source)
    if not keys:
        raise ValueError(empty(source))
    parcels, skipped = _planned(source, target, keys, carrying)
    if not dry_run:
        carrying.total = sum(_sizes(parcels).values())
        left = deliver(source, target, parcels, me(), carrying.report, carrying.ui.note)
        behind = {each.parcel.key for each in left}
        parcels = [parcel for parcel in parcels if parcel.key not in behind]
        skipped += left
        sources = [f"ref/source/{name}" for name in source.names("ref/source")]
        copy_records(source, target, [*sources, LATEST])
    counts = _counts(parcels)
    return {
        "from": source.place,
        "to": target.place,
        "dry_run": dry_run,
        **counts,
        "unchanged": len(keys) - counts["keys"] - len(skipped),
        "skipped": [
            {"key": one.parcel.key, "stage": one.parcel.stage, "why": one.why, "lost": one.lost}
            for one in skipped
        ],
    }


def _planned(
    source: Store, target: Store, keys: list[str], carrying: Carrying
) -> tuple[list[Parcel], list[Skipped]]:
    parcels, skipped = [], []
    for parcel in pack(source, target, keys, carrying.report):
        hindered = obstacle(source, target, parcel, carrying.ui.note)
        if hindered is None:
            parcels.append(parcel)
        else:
            skipped.append(hindered)
    return parcels, skipped


def _same(one: Store, other: Store) -> bool:
    if one.remote is not None or other.remote is not None:
        return one.place == other.place
    return one.root.resolve() == other.root.resolve()


def _sizes(parcels: list[Parcel]) -> dict[str, int]:
    return {blob: size for parcel in parcels for blob, size in parcel.blobs.items()}


def _counts(parcels: list[Parcel]) -> dict[str, int]:
    results = sum(parcel.finishes for parcel in parcels)
    sizes = _sizes(parcels)
    return {
        "keys": sum(bool(parcel.entries or parcel.blobs) for parcel in parcels),
        "results": results,
        "checkpoints": sum(len(parcel.entries) for parcel in parcels) - results,
        "healed": sum(bool(parcel.blobs and not parcel.entries) for parcel in parcels),
        "files": len(sizes),
        "bytes": sum(sizes.values()),
    }


def _line(verb: str, told: dict[str, Any]) -> str:
    """The same as one line."""
    way = f"to {told['to']}" if verb == "push" else f"from {told['from']}"
    words = {"results": "result", "checkpoints": "checkpoint", "healed": "lost result"}
    what = [_count(told[name], word) for name, word in words.items() if told[name]]
    carried = f"{_count(told['files'], 'file')}, {human_bytes(told['bytes'])}"
    done = f"would {verb}" if told["dry_run"] else f"{verb}ed"
    parts = [f"{done} {', '.join(what)} ({carried}) {way}" if what else f"nothing to {verb} {way}"]
    if told["unchanged"]:
        parts.append(f"{_count(told['unchanged'], 'key')} as they are")
    for each in told["skipped"]:
        parts.append(f"skipped {each['stage']} {each['key'][:12]}: {each['why']}")
    return "; ".join(parts)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("s" if number != 1 else "")


# what a person knows


def _prefix(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch("[0-9a-f]{6,64}", given.lower()):
        raise click.BadParameter(f"{given!r}: give at least 6 digits of a key (0-9, a-f)")
    return given and given.lower()


@click.command()
@click.argument("stage", type=click.Choice(NAMES))
@click.option("--because", required=True, help="Why the result is (not) valid; it is recorded.")
@click.option(
    "--as", "key", metavar="KEY", callback=_prefix, help="Whose result; its first digits."
)
@click.option("--undo", is_flag=True, help="Take back what was accepted; STAGE is to run again.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@recipe_options
def accept(
    stage: str, because: str, key: str | None, undo: bool, yes: bool, **options: Any
) -> None:
    """Say that STAGE's earlier result is still valid though its key has changed.

    For a change of code that changes no result. Without --as it is the result of the nearest
    earlier key: `pipeline explain STAGE` names it. Where more than code differs, it asks first.

    \b
    pipeline accept tokenizer --because "renamed a function"
    pipeline accept train --as 3f9a1c20 --because "only a message changed"
    pipeline accept train --undo --because "it was more than a message"
    """
    if not because.strip():
        raise click.UsageError("--because is empty: say why the result is still valid")
    if undo and key:
        raise click.UsageError("--undo takes back what was accepted, whosever it was: no --as")
    engine = make_engine(**options)
    if undo:
        trust(engine.store)
        old_key = inherit.undo(engine, stage, because.strip())
        click.echo(f"{stage}: the result of {old_key[:12]} does not count any more")
        return
    planned = inherit.open_stage(engine, stage, click.echo)
    old = inherit.acceptable(engine, planned, key)
    _show_differences(old, planned)
    if not yes and not inherit.only_code(old, planned):
        click.confirm("More than code differs. Is it the same result all the same?", abort=True)
    trust(engine.store)
    inherit.accept(engine, planned, old, because.strip())
    click.echo(f"{stage}: the result of {old.key[:12]} counts for {(planned.key or '')[:12]} now")


@click.command()
@click.argument("key", metavar="FROM", callback=_prefix)
@click.argument("stage", type=click.Choice(NAMES), default="train", metavar="[STAGE]")
@recipe_options
def adopt(key: str, stage: str, **options: Any) -> None:
    """Let the next run go on from the checkpoints that were made under the key FROM.

    For training that goes on under other settings (or code) instead of starting anew. FROM is the
    beginning of a key, six digits at least; STAGE is train, if not given.

    \b
    pipeline adopt 3f9a1c20 --set train.lr=1e-4
    pipeline adopt 3f9a1c20 --set train.lr=1e-4 --from s3://bucket/runs
    """
    engine = make_engine(**options)
    planned = inherit.open_stage(engine, stage, click.echo)
    old, checkpoints = inherit.adoptable(engine, planned, key, click.echo)
    _show_differences(old, planned)
    trust(engine.store)
    ui = choose()
    try:
        report = Carrying(ui, "adopt", lambda: False).report
        inherit.adopt(engine, planned, old, checkpoints, report)
    finally:
        ui.close()
    step = checkpoints[-1].body["step"]
    click.echo(f"{stage}: the next `pipeline run` goes on from step {step:,} of {old.key[:12]}")


def _show_differences(old: inherit.Old, planned: Any) -> None:
    click.echo(f"compared with {old.shown}:")
    for line in old.differences(planned):
        click.echo(f"  {line}")
