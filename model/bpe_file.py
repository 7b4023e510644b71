"""A tokenizer as a file: one line of JSON, with the sha256 of what it says.

The same vocabulary gives the same bytes, on any machine. Format 1 had no digest, and is still read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

_KIND, _FORMAT = "Ignite-LLM byte-level BPE", 2


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write what a tokenizer consists of, as JSON values."""
    head = {"kind": _KIND, "format": _FORMAT, "digest": _digest(content)}
    line = json.dumps(head | content, separators=(",", ":"))
    Path(path).write_bytes(line.encode() + b"\n")


def read(path: str | Path) -> dict[str, Any]:
    """What was written. ValueError: another kind of file, another format, damage."""
    try:
        data = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.pop("kind", None) != _KIND:
        raise ValueError(f"{path} is not a tokenizer; Tokenizer.train(...).save(path) makes one")
    found = data.pop("format", None)
    if type(found) is not int or not 1 <= found <= _FORMAT:
        raise ValueError(f"{path} has format {found}; this program reads 1 to {_FORMAT}")
    if found != 1 and data.pop("digest", None) != _digest(data):
        raise ValueError(f"{path} is damaged (its digest is another); copy it again or train again")
    return data


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
