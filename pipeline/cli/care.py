"""The verbs that look after a store: gc, verify."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from pipeline.cli.duration import Duration
from pipeline.cli.options import empty, open_store, store_option
from pipeline.cli.show import table
from pipeline.engine import log
from pipeline.engine.clocks import Clocks, read_clocks
from pipeline.engine.engine import Engine
from pipeline.engine.gc import Survey, collect, survey
from pipeline.engine.leftovers import Item
from pipeline.engine.needed import Unreadable, all_blobs, unreadable
from pipeline.engine.remembered import latest
from pipeline.engine.settle import settle
from pipeline.engine.superseded import Superseded, give_up, superseded
from pipeline.errors import StoreError
from pipeline.store.places import trust
from pipeline.store.store import Store
from pipeline.ui import Ui, choose, human_bytes, human_seconds


class Shown:
    """Shows how far a verb is, each unit with its own rate. Told by several threads."""

    def __init__(self, verb: str, as_json: bool) -> None:
        self.verb, self.as_json, self.unit = verb, as_json, ""
        self.ui = self._ui()
        self._lock = threading.Lock()

    def _ui(self) -> Ui:
        return Ui(sys.stderr) if self.as_json else choose()

    def progress(self, done: int, total: int, unit: str) -> None:
        with self._lock:
            if unit != self.unit:
                self.ui.close()
                self.ui, self.unit = self._ui(), unit
            self.ui.progress(self.verb, done, total, unit, {})


@click.command()
@store_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go and when; change nothing.")
@click.option(
    "--superseded",
    "outdated",
    is_flag=True,
    help="Give up results and checkpoints, too, that the last run's recipe does without.",
)
@click.option(
    "--despite-damage",
    "despite",
    is_flag=True,
    help="Give up what log entries that cannot be read may have named.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--grace",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long a blob must have been marked. 0s only if nobody else uses the store now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(
    store: str,
    dry_run: bool,
    outdated: bool,
    despite: bool,
    yes: bool,
    grace: float,
    as_json: bool,
) -> None:
    """Free what nothing can need any more.

    What nothing needs now is marked; a later gc, after the time of grace, deletes what was marked
    and is unneeded still. In between, work that reuses it may come to light. Results stay, and so
    do the newest checkpoints of what is unfinished, unless --superseded gives them up. While a log
    entry cannot be read, all stays that it may have named.

    \b
    pipeline gc -n
    pipeline gc --superseded
    """
    opened, shown = _opened(store), Shown("gc", as_json)
    old = _outdated(opened, shown.ui) if outdated else []
    damage = _damage(opened)
    try:
        if dry_run:  # a guess: writing is what it would take to read the store's clock
            clocks, without = Clocks(time.time(), time.time()), {each.key for each in old}
            without |= {each.name for each in damage if despite}
            found = survey(opened, clocks, grace, without, shown.progress)
            gone = [*found.blobs, *found.rest]
        else:
            old = _give_up(opened, old, yes, shown.ui)
            if despite:
                damage = _settle(opened, damage, yes, shown.ui)
            found = survey(opened, read_clocks(opened), grace, progress=shown.progress)
            gone = collect(opened, found, shown.progress)
    finally:
        shown.ui.close()
    for each in damage:
        click.echo(_said(opened, each, despite and dry_run), err=True)
    if as_json:
        told = _as_json(dry_run, gone, found, old)
        told["unreadable"] = [each.name for each in damage]
        click.echo(json.dumps({"store": opened.place, **told}))
        return
    if dry_run and (rows := _rows(found, old)):
        click.echo(table(("what", "name", "size", "when"), rows))
    click.echo(_totals(dry_run, gone, found))


def _opened(place: str) -> Store:
    """The store. Raises StoreError if nothing is there: a slip must not look like a clean store."""
    store = open_store(place)
    if not log.keys(store) and not all_blobs(store):
        raise StoreError(empty(store))
    return store


def _damage(store: Store) -> list[Unreadable]:
    return [each for each in unreadable(store, log.keys(store)) if not each.settled]


def _said(store: Store, found: Unreadable, goes: bool) -> str:
    what = f"{store.place}/{found.name} of {found.stage} cannot be read"
    if goes:
        return f"{what}: what it may have named would be given up"
    return (
        f"{what}, so all blobs stay that no other entry names: put it back from a copy of the "
        "store, or `pipeline pull` from one, or let `pipeline run` make its result again. Or give "
        "them up: `pipeline gc --despite-damage`"
    )


def _settle(store: Store, damage: list[Unreadable], yes: bool, ui: Ui) -> list[Unreadable]:
    """Take them back, if the user says so; those that are left."""
    if not damage:
        return []
    if not yes:
        for each in damage:
            ui.say(f"{each.name} of {each.stage} cannot be read")
        click.confirm("Give up for good what they may have named?", abort=True, err=True)
    trust(store)
    for key, stage in {each.key: each.stage for each in damage}.items():
        if not settle(store, key, ui.note):
            ui.note(f"{stage} (key {key[:12]}): somebody works on it now, so it stays")
    return _damage(store)


def _outdated(store: Store, ui: Ui) -> list[Superseded]:
    """What other keys have of the stages that the last run's recipe has a result of."""
    recipe = latest(store)
    if recipe is None:
        raise StoreError(f"{store.place} has no last run, so nothing can be superseded by it")
    used = {}
    for planned in Engine(store, recipe).plan():
        if planned.result is not None and planned.key is not None:
            used[planned.stage.name] = planned.key
        else:
            ui.note(f"{planned.stage.name} has no result yet: what other keys have of it is kept")
    return superseded(store, used)


def _give_up(store: Store, old: list[Superseded], yes: bool, ui: Ui) -> list[Superseded]:
    """Retire them, if the user says so."""
    if not old:
        return []
    ui.say(table(("superseded", "key", "", "bytes that only it needs"), _superseded_rows(old)))
    size = human_bytes(sum(each.size for each in old))
    if not yes:
        click.confirm(f"Give up {size} for good?", abort=True, err=True)
    trust(store)
    given = []
    for each in old:
        if give_up(store, each):
            given.append(each)
        else:
            ui.note(f"{each.stage} (key {each.key[:12]}): somebody works on it now, so it stays")
    return given


def _superseded_rows(old: Iterable[Superseded]) -> list[tuple[str, ...]]:
    rows = []
    for each in old:
        steps = [f"step {entry.body['step']:,}" for entry in each.state.checkpoints[-1:]]
        what = "result" if each.state.result else (*steps, "")[0]
        rows.append((each.stage, each.key[:12], what, human_bytes(each.size)))
    return rows


def _rows(found: Survey, old: list[Superseded]) -> list[tuple[str, ...]]:
    rows = [
        (f"{what} of {stage}", key, size, "given up now")
        for stage, key, what, size in _superseded_rows(old)
    ]
    rows += [_row(item, "now") for item in (*found.blobs, *found.rest)]
    later = f"{'marked now, ' if found.marking else 'marked, '}{_deleted(found)}"
    rows += [_row(item, later) for item in found.later]
    rows += [_row(item, "marked when those of before go") for item in found.waiting]
    return rows


def _row(item: Item, when: str) -> tuple[str, ...]:
    return item.what, item.name, human_bytes(item.size), when


def _deleted(found: Survey) -> str:
    if found.after <= 0:
        return "deleted by the next gc"
    return f"deleted by a gc after {human_seconds(found.after)}"


def _totals(looking: bool, gone: list[Item], found: Survey) -> str:
    """All in one line."""
    parts = []
    if gone:
        verb = "would free" if looking else "freed"
        parts.append(f"{verb} {_bytes(gone)}: {_counted(gone)}")
    if found.later:
        verb = "would mark " if looking and found.marking else "marked: " if not looking else ""
        parts.append(f"{verb}{_counted(found.later)} ({_bytes(found.later)}), {_deleted(found)}")
    if found.waiting:
        parts.append(f"{_counted(found.waiting)} ({_bytes(found.waiting)}) to be marked then")
    return "; ".join(parts) or "nothing to free"


def _bytes(items: Iterable[Item]) -> str:
    return human_bytes(sum(item.size for item in items))


def _counted(items: Iterable[Item]) -> str:
    """``12 blobs, 1 beat``."""
    counts = Counter(item.what for item in items)
    return ", ".join(f"{n:,} {what}{'s' if n > 1 else ''}" for what, n in counts.items())


def _as_json(
    looking: bool, gone: list[Item], found: Survey, old: list[Superseded]
) -> dict[str, Any]:
    told: dict[str, Any] = {"dry_run": looking, "deleted_after_seconds": max(found.after, 0.0)}
    for name, items in (("freed", gone), ("marked", found.later), ("waiting", found.waiting)):
        told[name] = [asdict(item) for item in items]
        told[f"{name}_bytes"] = sum(item.size for item in items)
    told["superseded"] = [{"stage": o.stage, "key": o.key, "bytes": o.size} for o in old]
    return told


@click.command()
@store_option
@click.option("--quick", is_flag=True, help="Presence and sizes only; read no blob.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(store: str, quick: bool, as_json: bool) -> None:
    """Read every byte of the store and say what is damaged or missing, and what to do.

    Nothing is changed. The exit code is 1 if there is damage.
    """
    from pipeline.engine import verify as walk

    opened, shown = _opened(store), Shown("verify", as_json)
    try:
        verdict = walk.verify(opened, quick, shown.progress)
    finally:
        shown.ui.close()
    if as_json:
        click.echo(json.dumps({"store": opened.place, "quick": quick, **asdict(verdict)}))
    else:
        for problem in verdict.problems:
            click.echo(problem.said, err=True)
        for harmless in verdict.harmless:
            click.echo(f"note: {harmless.said}", err=True)
        seen = f"{verdict.blobs:,} blobs, {human_bytes(verdict.size)}, {verdict.keys:,} keys"
        if verdict.problems:
            click.echo(f"{seen}: {len(verdict.problems):,} to mend")
        elif quick:
            click.echo(f"every blob that is needed is there, with its size ({seen})")
        else:
            click.echo(
                f"every blob matches its sha256, and none that is needed is missing ({seen})"
            )
        if verdict.unneeded:
            free = human_bytes(verdict.unneeded_size)
            click.echo(f"`pipeline gc` frees {free} that nothing needs")
    if verdict.problems:
        raise SystemExit(1)
