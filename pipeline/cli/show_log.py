"""The story of a key in words, a line for each entry of its log: who came, how far, what for."""

from collections.abc import Iterable
from typing import Any

from pipeline.engine.log import Entry
from pipeline.ui import human_bytes, human_seconds

_FOLD = 8  # more checkpoints in a row than this are one line


def story(entries: Iterable[Entry], every: bool = False) -> list[str]:
    """The lines; with ``every`` each checkpoint has its own."""
    teller, lines = _Teller(), []
    for run in _runs(entries):
        told = [_line(entry, teller.words(entry)) for entry in run]
        segments = _segments(run[-1])
        if len(segments) == 1:
            told[-1] += f", {segment(segments[0])}"
        else:
            told += [f"{'':45}{segment(each)}" for each in segments]
        if len(told) > _FOLD and not every:
            first = run[0].body["step"]
            told = [f"{told[-1]}, the last of {len(run)} from step {first:,} on (--all shows each)"]
        lines += told
    return lines


def _segments(entry: Entry) -> list[dict[str, Any]]:
    return entry.body["metrics"].get("segments", []) if entry.kind == "result" else []


def segment(told: dict[str, Any]) -> str:
    """Who computed a part of a run, as ``segments.json`` says it: where, on what, how fast."""
    parts = [f"on {told['machine']}, {told['device']}", told["precision"]]
    if told["device"] == "cpu":
        parts.append(f"threads {told['threads']}")
    if told["world_size"] > 1:
        parts.append(f"{told['world_size']} processes")
    for name in ("compiled", "sharded", "deterministic"):
        if told.get(name):  # older runs did not say
            parts.append(name)
    parts.append(f"micro-batch {told['micro_batch']}")
    if told.get("activation_checkpointing"):
        parts.append("activation checkpointing")
    parts.append(f"{told['tokens_per_second']:,} tokens/s in {human_seconds(told['seconds'])}")
    if told["mfu"] is not None:
        measured = " of a measured peak" if told["peak_measured"] else ""
        parts.append(f"MFU {told['mfu']:.1%}{measured}")
    for name, words in (("skipped", "updates skipped"), ("rollbacks", "returns to a checkpoint")):
        if told[name]:
            parts.append(f"{words} {told[name]:,}")
    return f"steps {told['from']:,} to {told['to']:,} {', '.join(parts)}"


def _runs(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Checkpoints in a row together, every other entry alone."""
    runs: list[list[Entry]] = []
    for entry in entries:
        if entry.kind == "checkpoint" and runs and runs[-1][-1].kind == "checkpoint":
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _line(entry: Entry, words: str) -> str:
    at = entry.body["at"] if entry.kind != "damaged" else "at an unknown time"
    return f"{entry.position:>4}  {at:<25}  {entry.kind:<10}  {words}".rstrip()


class _Teller:
    """Knows what came before an entry."""

    def __init__(self) -> None:
        self.owner: str | None = None
        self.start = 0  # the step from which the owner went on
        self.steps: dict[int, int] = {}  # position -> step, of the checkpoints that stand

    def words(self, entry: Entry) -> str:
        kind, body = entry.kind, entry.body
        if kind == "claim":
            words = self._claim(body) if body["owner"] else self._release(body)
        elif kind == "retire":
            words = self._retire(body)
        elif kind == "checkpoint":
            words = f"step {body['step']:,}, {_bytes(entry)}" + self._went_back(body)
            self.steps[entry.position] = body["step"]
        elif kind == "adopt":  # others have done these steps
            self.steps[entry.position] = self.start = body["step"]
            words = f"step {body['step']:,} of key {body['from'][:8]}..., {_bytes(entry)}"
        elif kind == "result":
            words = f"{_bytes(entry)} after {human_seconds(body['seconds'])}{self._finished(body)}"
            self.owner = None
        elif kind == "same":
            words = f"same as key {body['as'][:8]}...: {body['because']}"
            self.owner = None
        elif kind == "damaged":
            words = "it cannot be read, and holds its position"
        else:
            words = body.get("why", "")
        brought = "from" in body and kind != "adopt"
        return f"{words}, brought from {body['from']}" if brought else words

    def _claim(self, body: dict[str, Any]) -> str:
        words = [f"by {body['owner']}"]
        machine = body.get("machine", {})
        told = {name: machine.get(name, "auto") for name in ("device", "precision")}
        words += [f"{name} {value}" for name, value in told.items() if value != "auto"]
        if self.owner is not None:
            words.append(f"takes over from {self.owner}" + self._did(", which did"))
        self.owner, self.start = body["owner"], self._reached()
        return ", ".join(words)

    def _release(self, body: dict[str, Any]) -> str:
        word = "failed" if body.get("failed") else "released"
        words = f"{word}: {body.get('why', '')}" + self._did(", after")
        self.owner = None
        return words

    def _retire(self, body: dict[str, Any]) -> str:
        for position in body["positions"]:
            self.steps.pop(position, None)
        self.start = min(self.start, self._reached())
        positions = " ".join(map(str, body["positions"]))
        return f"takes back {positions}: {body.get('why', '')}"

    def _went_back(self, body: dict[str, Any]) -> str:
        """To where, if it did so before this checkpoint: what stood behind stands no more."""
        if (to := body.get("back_to")) is None:
            return ""
        self.steps = {position: step for position, step in self.steps.items() if step <= to}
        self.start = min(self.start, to)
        return f", after a return to step {to:,}"

    def _reached(self) -> int:
        return max(self.steps.values(), default=0)

    def _did(self, word: str) -> str:
        """The steps that the owner has brought to the log."""
        reached = self._reached()
        return f"{word} steps {self.start + 1:,} to {reached:,}" if reached > self.start else ""

    def _finished(self, body: dict[str, Any]) -> str:
        """The steps of the owner that ended the work, if it was not the only one."""
        steps = body["metrics"].get("steps")
        return f", with steps {self.start + 1:,} to {steps:,}" if self.start and steps else ""


def _bytes(entry: Entry) -> str:
    return human_bytes(sum(entry.digests.values()))
