"""What a stage's result depends on, as one hash that can be explained.

The key of a stage is the sha256 of a *record*: canonical JSON of the stage's name and version, the
digests of the code it depends on, the recipe's fields that it reads, and the digests of the bytes
it takes in. Same record, same key, same result: nothing to do. The record itself is kept beside the
result, so that two keys can be compared and the difference named (``differences``).
"""

import json
from typing import Any

from pipeline.hashing import canonical, digest

FORMAT = 1  # of records: a change here re-runs everything, everywhere


def record(
    stage: str, version: int, code: dict[str, str], recipe: dict[str, Any], inputs: dict[str, str]
) -> dict[str, Any]:
    """All that decides a stage's result. Every record says what it is and in which format."""
    return {
        "type": "ignite stage",
        "format": FORMAT,
        "stage": stage,
        "version": version,
        "code": code,
        "recipe": recipe,
        "inputs": inputs,
    }


def key(record: dict[str, Any]) -> str:
    return digest(canonical(record))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each thing in which two records of a stage differ, settings first."""
    lines = []
    for part, word in (("recipe", ""), ("inputs", "input "), ("code", "code ")):
        before, after = old.get(part, {}), new.get(part, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) == after.get(name):
                continue
            was, now = (_shown(part, side.get(name)) for side in (before, after))
            lines.append(f"{word}{name} {was} -> {now}" if part != "code" else f"{word}{name}")
    lines += [
        f"{name} {old.get(name)} -> {new.get(name)}"
        for name in ("format", "version")
        if old.get(name) != new.get(name)
    ]
    return lines


def _shown(part: str, value: Any) -> str:
    if value is None:
        return "(none)"
    return value[:8] if part == "inputs" else json.dumps(value)
