"""Provenance: what each stage's log says of who made its result, when, where, and from what."""

from dataclasses import asdict
from typing import Any

from pipeline import hashing
from pipeline.engine.log import Entry
from pipeline.machine import Machine
from pipeline.report.facts import Facts
from pipeline.report.markup import Html, join, tag
from pipeline.ui import human_seconds


def provenance(facts: Facts) -> Html:
    """A part for each stage that has a log."""
    parts = []
    for name, planned in facts.plan.items():
        if planned.state is None or not planned.state.entries:
            continue
        assert planned.record is not None and planned.key is not None
        rows = {**_origin(planned.record), **_counts(planned.state.entries)}
        if metrics := facts.metrics(name):
            shown = {key: value for key, value in metrics.items() if not isinstance(value, list)}
            rows["reported"] = ", ".join(f"{key} {told(value)}" for key, value in shown.items())
        pairs = (join(tag("dt", key), tag("dd", value)) for key, value in rows.items())
        parts.append(
            tag(
                "article",
                tag("h3", name, " ", tag("small", planned.key[:12])),
                tag("div", _story(planned.state.entries), class_="wide"),
                tag("dl", *pairs),
            )
        )
    return tag(
        "section",
        tag("h2", "Provenance"),
        tag(
            "p",
            "A key is the sha256 of a stage's settings, code and inputs; hashes are shortened. ",
            class_="quiet",
        ),
        *parts,
    )


def told(value: Any) -> str:
    """A metric as people read it."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _origin(record: dict[str, Any]) -> dict[str, str]:
    code = hashing.digest(hashing.canonical(record["code"]))
    inputs = {name: digest[:12] for name, digest in record["inputs"].items()}
    return {
        "code": f"{code[:12]}, {len(record['code'])} definitions",
        "inputs": ", ".join(f"{name} {digest}" for name, digest in inputs.items()),
    }


def _counts(entries: tuple[Entry, ...]) -> dict[str, str]:
    """Checkpoints and interruptions of a stage that has had either."""
    checkpoints = sum(entry.kind == "checkpoint" for entry in entries)
    counts = {"checkpoints": checkpoints, "interruptions": interruptions(entries)}
    return {name: f"{count:,}" for name, count in counts.items() if any(counts.values())}


def interruptions(entries: tuple[Entry, ...]) -> int:
    """How often work that somebody had begun ended without a result, by a stop or by death."""
    count, working = 0, False
    for entry in entries:
        if entry.kind == "claim":
            count += working  # the one before has no result
            working = entry.body["owner"] is not None
        elif entry.kind == "result":
            working = False
    return count


def _story(entries: tuple[Entry, ...]) -> Html:
    """A row for each entry, but one for all checkpoints between two others."""
    rows, checkpoints = [], []
    for entry in [*entries, None]:
        if entry is not None and entry.kind == "checkpoint":
            checkpoints.append(entry)
            continue
        if checkpoints:
            rows.append(_row(checkpoints[-1], _checkpointed(checkpoints)))
            checkpoints = []
        if entry is not None:
            rows.append(_row(entry, _event(entry)))
    names = tag("tr", tag("th", "when (UTC)", scope="col"), tag("th", "what", scope="col"))
    return tag("table", tag("thead", names), tag("tbody", *rows))


def _row(entry: Entry, what: str) -> Html:
    when = entry.body["at"].replace("T", " ").removesuffix("+00:00")
    return tag("tr", tag("td", when, class_="number"), tag("td", what))


def _checkpointed(checkpoints: list[Entry]) -> str:
    first, last = (f"{entry.body['step']:,}" for entry in (checkpoints[0], checkpoints[-1]))
    if len(checkpoints) == 1:
        return f"checkpoint at step {last}"
    return f"{len(checkpoints):,} checkpoints, steps {first} to {last}"


def _event(entry: Entry) -> str:
    body = entry.body
    if entry.kind == "result":
        return f"result after {human_seconds(body['seconds'])}"
    if entry.kind == "retire":
        return f"taken back: {body['why']}"
    if body["owner"] is None:
        return f"stopped: {body['why']}"
    automatic = asdict(Machine())
    chosen = [f"{k} {v}" for k, v in body["machine"].items() if v != automatic.get(k)]
    return f"begun by {body['owner']}, machine settings: {', '.join(chosen) or 'defaults'}"
