"""A distinct word in every secret, and a search for each in all that has left the process.

The search knows nothing of how ``pipeline.redact`` works: it undoes encodings instead of making
them (quoting of URLs, base64 at any offset, gzip, zip, and each inside another) and looks for the
plain words in what comes out.
"""

import base64
import contextlib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

SECRETS = (
    *("VAST_API_KEY", "CONTAINER_API_KEY", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "HF_TOKEN"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"),
)
_RUN = re.compile(rb"[A-Za-z0-9+/_-]{12,}")


def _word(name: str) -> str:
    """The same in every run; with a / and a +, as keys have, which URLs must quote."""
    drawn = hashlib.sha256(name.encode()).hexdigest()
    if name == "AWS_ACCESS_KEY_ID":
        return f"AKIA{drawn[:16].upper()}"
    return f"canary{drawn[:10]}/{drawn[10:20]}+{drawn[20:30]}"


class Canaries:
    """What was planted: name -> word."""

    def __init__(self) -> None:
        self.words = {name: _word(name) for name in SECRETS}
        for name in ("google key", "url password", "url signature"):
            self.words[name] = _word(name)

    def url(self, plain: str) -> str:
        """The URL with a password and a signature in it."""
        scheme, _, rest = plain.partition("://")
        quoted = {name: self.words[name].replace("/", "%2F").replace("+", "%2B") for name in _URL}
        word, signature = (quoted[name] for name in _URL)
        return f"{scheme}://ada:{word}@{rest}?X-Amz-Signature={signature}"

    def values(self) -> dict[str, str]:
        """The environment variables, each with its word in it."""
        found = {name: self.words[name] for name in SECRETS}
        key = base64.b64encode(found["AZURE_STORAGE_ACCOUNT_KEY"].encode()).decode()
        found["AZURE_STORAGE_ACCOUNT_KEY"] = key  # must be base64
        found["AZURE_STORAGE_SAS_TOKEN"] = f"sv=2026&sig={self.words['AZURE_STORAGE_SAS_TOKEN']}"
        text = f"AccountName=ada;AccountKey={self.words['AZURE_STORAGE_CONNECTION_STRING']};"
        found["AZURE_STORAGE_CONNECTION_STRING"] = text
        return found

    def google(self) -> str:
        """A service account's key file."""
        ends = (f"-----{word} PRIVATE KEY-----\n" for word in ("BEGIN", "END"))
        key = f"{self.words['google key']}\n".join(ends)
        return json.dumps({"type": "service_account", "project_id": "play", "private_key": key})

    def found_in(self, *things: Any) -> list[str]:
        """``NAME in THING`` for each word that is there in any form. Things are paths (all below
        them, names too), text, bytes, and what JSON can hold."""
        hits = set[str]()
        for name, data in (pair for thing in things for pair in _all(thing)):
            for view in _views(data):
                hit = (each for each, word in self.words.items() if word.encode() in view)
                hits |= {f"{each} in {name}" for each in hit}
        return sorted(hits)

    def assert_none_in(self, *things: Any) -> None:
        assert self.found_in(*things) == []


_URL = ("url password", "url signature")


def plant(patch: pytest.MonkeyPatch, folder: Path) -> Canaries:
    """Canaries in the environment, and in a key file of Google's below ``folder``."""
    canaries = Canaries()
    for name, value in canaries.values().items():
        patch.setenv(name, value)
    file = folder / "google-key.json"
    file.write_text(canaries.google())
    patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    return canaries


def _all(thing: Any) -> Iterator[tuple[str, bytes]]:
    if isinstance(thing, Path):
        for path in [thing, *thing.rglob("*")]:
            yield "the name of a file", str(path.relative_to(thing)).encode()
            if path.is_file():
                yield path.name, path.read_bytes()
    elif isinstance(thing, bytes):
        yield "bytes", thing
    elif isinstance(thing, str):
        yield "text", thing.encode()
    else:
        yield type(thing).__name__, json.dumps(thing, default=repr).encode()
        yield type(thing).__name__, repr(thing).encode()


def _views(data: bytes, depth: int = 4) -> Iterator[bytes]:
    """The data, and all that it may be an encoding of."""
    yield data
    if not depth:
        return
    if b"%" in data:
        yield from _views(unquote_to_bytes(data), depth - 1)
    if data[:2] == b"\x1f\x8b" or data[:1] == b"x":
        with contextlib.suppress(zlib.error):
            yield from _views(zlib.decompressobj(47).decompress(data), depth - 1)
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from _views(archive.read(name), depth - 1)
    for text in {data, re.sub(rb"(\\[nr]|\s)+", b"", data)}:  # base64 is often in short lines
        for run in _RUN.findall(text):
            yield from _decoded(run, depth)


def _decoded(run: bytes, depth: int) -> Iterator[bytes]:
    run = run.translate(bytes.maketrans(b"-_", b"+/"))
    for begin in range(4):
        part = run[begin:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        yield from _views(base64.b64decode(part + b"=" * (-len(part) % 4)), depth - 1)
