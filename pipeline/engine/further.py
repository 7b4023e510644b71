"""What of another log of the same key would bring ours further, if both were worked on."""

from collections.abc import Sequence

from pipeline.engine.log import PARTIAL, Entry, State


def wanted(theirs: State, ours: State) -> list[Entry]:
    """The entries of another log of the same key that would bring ours further.

    Where ours has no checkpoint of its own, those behind the last that it has, though they lead
    back; where both have gone their own ways, those with more steps.
    """
    if ours.result is not None:
        return []
    if theirs.result is not None:
        return [theirs.result]
    reached = ours.checkpoints[-1].body["step"] if ours.checkpoints else -1
    had = _had(ours)
    last = _last(theirs, had)
    if last is None:
        last = -1
    else:
        reached = min([reached, *_returns(theirs, last)])
    return [
        entry
        for entry in theirs.checkpoints
        if entry.position > last and entry.body["step"] > reached and _blobs(entry) not in had
    ]


def _blobs(entry: Entry) -> frozenset[str]:
    return frozenset(entry.digests)


def _had(state: State) -> set[frozenset[str]]:
    """Every checkpoint that a log has ever had, but those that proved damaged."""
    retired = {at for entry in state.entries for at in entry.body.get("positions", ())}
    return {
        _blobs(entry)
        for entry in state.entries
        if entry.kind in PARTIAL and entry.position not in retired
    }


def _last(theirs: State, had: set[frozenset[str]]) -> int | None:
    """Where in another log the last of our checkpoints stands; None if it lacks one of them."""
    found = {
        _blobs(entry): entry.position
        for entry in theirs.entries
        if entry.kind in PARTIAL and _blobs(entry) in had
    }
    return max(found.values(), default=-1) if len(found) == len(had) else None


def _returns(state: State, last: int) -> list[int]:
    """The steps that the stage went back to behind a position of its log."""
    behind = (entry.body for entry in state.entries if entry.position > last)
    return [body["back_to"] for body in behind if "back_to" in body]


def led_back(theirs: State, ours: State, entries: Sequence[Entry]) -> dict[str, int]:
    """What the first of the wanted entries must say in our log if it is no further than one there:
    to where the stage went back. The entry that said so in theirs may have been replaced."""
    newest = max((entry.body["step"] for entry in ours.checkpoints), default=-1)
    first = next(iter(entries), None)
    if first is None or first.kind not in PARTIAL or first.body["step"] > newest:
        return {}
    last = _last(theirs, _had(ours))
    assert last is not None, "else only further ones are wanted"
    return {"back_to": min(_returns(theirs, last))}
