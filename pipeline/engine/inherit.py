"""Let a key inherit from another, because a person knows more than the keys do.

A key changes with every setting, input and line of code that may decide a result. Two things no
program can know: that a change of code left a result valid (``accept``), and that training may go
on under other settings from where it was (``adopt``). Both are entries in the log of the new key
that say from which key, by whom and when. What was accepted can be taken back (``undo``):

    {"kind": "same", "as": <key>, "because": "...", "files": {...}, "metrics": {...}, ...}
    {"kind": "adopt", "from": <key>, "step": 4000, "files": {...}, ...}

Blobs are not copied: both logs name the same. The old key's log stays as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.engine import keys, log
from pipeline.engine.beat import me
from pipeline.engine.engine import Engine, Planned
from pipeline.engine.log import Claim, Entry, State
from pipeline.engine.remembered import remember
from pipeline.engine.settle import without_bytes
from pipeline.engine.transfer import carry, worked_on
from pipeline.engine.unfinished import reshaped
from pipeline.errors import Lost
from pipeline.store.locks import machine_id
from pipeline.store.storage import Report
from pipeline.store.store import Store
from pipeline.ui import age


@dataclass(frozen=True)
class Old:
    """Another log of the stage, on this store or on one that it may read from."""

    key: str
    state: State
    store: Store

    def differences(self, planned: Planned) -> list[str]:
        """One line for each thing in which its record differs from the stage's as it is now."""
        return keys.differences(self.state.record or {}, planned.record or {})

    @property
    def shown(self) -> str:
        """Its key with what is there, for people."""
        result, checkpoints = self.state.result, self.state.checkpoints
        what = f"step {checkpoints[-1].body['step']:,}" if checkpoints else "nothing"
        at = (result or self.state.entries[0]).body["at"]
        return f"{self.key[:12]} ({'a result' if result else what}, {at})"


def open_stage(engine: Engine, name: str, note: Callable[[str], None]) -> Planned:
    """The stage, whose key may inherit now. Raises ValueError if it may not, with the reason."""
    planned = next(item for item in engine.plan() if item.stage.name == name)
    if planned.key is None or planned.state is None:
        waits = ", ".join(planned.stage.upstream) or "its source"
        raise ValueError(
            f"{name} waits for {waits}, whose result decides its key: bring that about first, with "
            "`pipeline run` or `pipeline accept`"
        )
    if planned.result is not None:
        taken_back = planned.result.kind == "same" and planned.origin is None
        advice = " (`pipeline accept --undo` takes it back)" if taken_back else ""
        raise ValueError(f"{name} has its result: there is nothing to do{advice}")
    if planned.missing:
        raise ValueError(
            f"{name} has a result whose blob {planned.missing[0][:12]} is missing: `pipeline pull` "
            "brings it from a copy of the store, `pipeline run` makes it again"
        )
    if worked_on(engine.store, planned.key, planned.state, note):
        assert planned.state.owner is not None
        owner = planned.state.owner.body["owner"]
        raise ValueError(f"{name} is being worked on by {owner}: stop that first")
    return planned


def others(engine: Engine, planned: Planned, stores: tuple[Store, ...]) -> list[Old]:
    """The logs of other keys of the stage, those with the fewest differences first."""
    found = {}
    for store in reversed(stores):
        for key in log.keys(store):
            state = log.read(store, key)
            if key != planned.key and state.stage == planned.stage.name:
                found[key] = Old(key, state, store)

    def distance(old: Old) -> tuple[int, float]:
        return len(old.differences(planned)), age(old.state.entries[0].body["at"])

    return sorted(found.values(), key=distance)


def chosen(candidates: list[Old], prefix: str, planned: Planned) -> Old:
    """The log whose key begins so. Raises ValueError with what there is, unless it is one."""
    found = [old for old in candidates if old.key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    name = planned.stage.name
    if not found and (planned.key or "").startswith(prefix):
        raise ValueError(f"{prefix} is the key that {name} has now: `pipeline run` goes on with it")
    count = len(found) or "no other"
    shown = "; ".join(old.shown for old in (found or candidates)[:8]) or "nothing"
    raise ValueError(f"{count} keys of {name} begin with {prefix}. There is: {shown}")


# accept


def acceptable(engine: Engine, planned: Planned, prefix: str | None) -> Old:
    """The log whose result may be accepted: the nearest one, or the one whose key begins so."""
    store = engine.store
    candidates = others(engine, planned, (store,))
    if prefix is not None:
        candidates = [chosen(candidates, prefix, planned)]
    for old in candidates:
        if old.state.result is not None and not store.missing(old.state.result.digests):
            of = f"the result of {old.key[:12]} is of no use here (--as names another)"
            _check_shape(old, planned, (store,), of)
            return old
    of = f"{candidates[0].shown} has no" if prefix is not None else "no earlier key has a"
    raise ValueError(
        f"there is nothing to accept for {planned.stage.name}: {of} result with all its bytes in "
        f"{store.place}"
    )


def only_code(old: Old, planned: Planned) -> bool:
    """Does nothing but code differ?"""
    before, after = old.state.record or {}, planned.record or {}
    return {**before, "code": None} == {**after, "code": None}


def accept(engine: Engine, planned: Planned, old: Old, because: str) -> Entry:
    """Declare the result of another key to be as good as one of the stage's key now."""
    result = old.state.result
    assert result is not None
    copied = {name: result.body[name] for name in ("files", "metrics", "seconds")}
    return _inherit(engine, planned, [("same", {"as": old.key, "because": because, **copied})])


def undo(engine: Engine, name: str, because: str) -> str:
    """Take back the result of another key that was accepted; returns that key.

    With it go the checkpoints of the stage's own whose bytes are gone by now.
    """
    planned = next(item for item in engine.plan() if item.stage.name == name)
    result = planned.state.result if planned.state else None
    if result is None or result.kind != "same" or planned.origin is not None:
        raise ValueError(f"{name} has no result that was accepted: there is nothing to take back")
    assert planned.state is not None
    positions = [result.position, *without_bytes(engine.store, planned.state)]
    _inherit(engine, planned, [("retire", {"positions": positions, "why": because})])
    return result.body["as"]


# adopt


def adoptable(
    engine: Engine, planned: Planned, prefix: str, note: Callable[[str], None]
) -> tuple[Old, list[Entry]]:
    """The log whose key begins so, and its newest whole checkpoints, oldest first.

    Raises ValueError if there are none, or if the stage could not go on from them.
    """
    stores = (engine.store, *engine.upstreams)
    old = chosen(others(engine, planned, stores), prefix, planned)
    if old.state.result is not None:
        raise ValueError(
            f"{old.shown} is finished, and its checkpoints are gone. `pipeline accept "
            f"{planned.stage.name} --as {old.key[:12]}` takes its result instead"
        )
    if worked_on(old.store, old.key, old.state, note):
        raise ValueError(
            f"{old.shown} is being worked on, and its checkpoints are replaced all the time: stop "
            "that first"
        )
    newest = old.state.checkpoints
    whole = [entry for entry in newest if not old.store.missing(entry.digests)]
    if not whole:
        raise ValueError(f"{old.shown} has no checkpoint with all its bytes in {old.store.place}")
    _check_shape(old, planned, stores, "training cannot go on from them")
    _check_steps(planned, whole[-1].body["step"])
    return old, whole


def _check_shape(old: Old, planned: Planned, stores: tuple[Store, ...], so: str) -> None:
    before, after = (old.state.record or {}), (planned.record or {})
    was, now = before["recipe"], after["recipe"]
    # a checkpoint holds the optimizer's tensors, too
    if (name := reshaped(was, now, optimizer=old.state.result is None)) is not None:
        raise ValueError(
            f"{name} is {was[name]} there and {now[name]} here: these are tensors of another "
            f"shape or meaning, and {so}"
        )
    vocabularies = {_vocabulary(record["inputs"], stores) for record in (before, after)} - {None}
    if len(vocabularies) == 2:
        raise ValueError(
            f"the tokenizer there is another than here: its tokens mean other text, and {so}"
        )


def _vocabulary(inputs: dict[str, str], stores: tuple[Store, ...]) -> str | None:
    """The digest of the tokenizer that made the tokens, if the log that says so is at hand."""
    tokens = inputs.get("encode/train.tokens")
    for store in stores:
        for key in log.keys(store):
            state = log.read(store, key)
            if state.record is None or state.record["stage"] != "encode" or state.result is None:
                continue
            if state.result.body["files"]["train.tokens"]["digest"] == tokens:
                return state.record["inputs"]["tokenizer/tokenizer.json"]
    return None


def _check_steps(planned: Planned, step: int) -> None:
    assert planned.state is not None and planned.record is not None
    own = planned.state.checkpoints[-1].body["step"] if planned.state.checkpoints else -1
    if own >= step:
        raise ValueError(
            f"{planned.stage.name} has a checkpoint of step {own:,} of its own, and there is step "
            f"{step:,}: `pipeline run` goes on from its own"
        )
    steps = planned.record["recipe"].get("train.steps", step + 1)
    if step >= steps:
        raise ValueError(
            f"the checkpoint is of step {step:,}, and the recipe ends at step {steps:,}: raise it "
            f"with --set train.steps=..."
        )


def adopt(
    engine: Engine, planned: Planned, old: Old, checkpoints: list[Entry], report: Report
) -> None:
    """Put checkpoints of another key into the log of the stage's key; the next run goes on there.

    The recipe becomes the one that verbs without options speak of.
    """
    blobs = {blob: size for entry in checkpoints for blob, size in entry.digests.items()}
    if old.store is not engine.store:
        missing = engine.store.missing(blobs)
        damaged = carry(old.store, engine.store, {blob: blobs[blob] for blob in missing}, report)
        if damaged:
            raise ValueError(f"blob {min(damaged)[:12]} of {old.key[:12]} is damaged: try again")
    kept = ("step", "files", "seconds")
    bodies = [{"from": old.key} | {k: e.body[k] for k in kept} for e in checkpoints]
    _inherit(engine, planned, [("adopt", body) for body in bodies])
    remember(engine.store, engine.recipe)


def _inherit(engine: Engine, planned: Planned, entries: list[tuple[str, dict[str, Any]]]) -> Entry:
    """Append entries to the log of the stage's key, as a claim of our own that is over at once."""
    assert planned.key is not None and planned.state is not None
    body: dict[str, Any] = {"machine_id": machine_id()}
    if planned.state.record is None:
        body["record"] = planned.record
    try:
        claim = Claim.take(engine.store, planned.key, planned.state, me(), body)
        for kind, each in entries:
            entry = claim.append(kind, each)
    except Lost:
        raise ValueError(
            f"another process began to work on {planned.stage.name} just now: stop that first"
        ) from None
    if entry.kind != "same":  # that ends the work by itself
        claim.release("adopted" if entry.kind == "adopt" else "taken back")
    return entry
