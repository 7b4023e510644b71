"""The one place that takes secrets out of text before it is shown or stored.

What is a secret is known in three ways: by its value, if this process was told of it (``hide``) or
has it in an environment variable whose name says so; by its shape, as services make their keys; and
by where it stands, as the password and the signature in a URL do. A value is also found where it
was quoted for a URL, escaped for JSON, or is part of something in base64.

Cost: 50 to 100 microseconds a line, so it can be called for every line that is printed. Not found:
what was cut in two between calls, compressed, or encrypted.
"""

import base64
import functools
import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote

SHORTEST = 8  # characters of a value that is hidden: "testing" must stay a word
_GONE = "***"
_NAMES = re.compile(
    r"(^|_)(API)?(KEY|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|SAS|AUTH|KEY_ID)(_\d+)?$"
    r"|(^|_)(KEY|SECRET|TOKEN|PASSWORD|CREDENTIALS)_(JSON|STRING|VALUE)$|CONNECTION_STRING$"
    r"|(SECRET|TOKEN|PASSWORD|APIKEY)$|(^|_)(SECRET|PASSWORD)_",
    re.IGNORECASE,
)
_PLACES = re.compile(r"_(FILE|PATH|DIR|NAME|URL|URI|ENDPOINT|HOST)$", re.IGNORECASE)
_WORDS = r"(?:key|secret|sig|signature|token|password|credential)"
_INNER = re.compile(rf"\b\w*{_WORDS}\s*=\s*([^&;\s]{{{SHORTEST},}})", re.IGNORECASE)
_SHAPES = (
    (re.compile(r"://[^/?#\s'\"]+@"), "://"),  # to the last @: passwords may hold one
    (re.compile(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?..."),  # a question mark may end a question
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _GONE),
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|KGAT_[A-Za-z0-9]{8,})"), _GONE),
    (re.compile(r"\b(Bearer|Basic)(\s+)(?=[\w.~+/=-]*\d)[\w.~+/=-]{12,}"), rf"\1\2{_GONE}"),
    (
        re.compile(
            r"\b(AccountKey|SharedAccess(?:Key|Signature)|X-Amz-(?:Credential|Signature|Security"
            r"-Token)|sig|Signature)=[^&;,\s'\"]{8,}"
        ),
        rf"\1={_GONE}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|\Z)", re.S), _GONE),
    (re.compile(r"(\\?\"private_key(?:_id)?\\?\"\s*:\s*)\\?\"[^\"]*\""), rf'\1"{_GONE}"'),
)
_hidden: dict[str, None] = {}  # what this process was told to hide, and never forgets


def hide(value: str) -> None:
    """Let no text of this process show a secret from here on. Too short ones are let be."""
    if len(value) >= SHORTEST:
        _hidden[value] = None


def secret(name: str) -> bool:
    """Does the name of an environment variable say that its value is a secret?"""
    return bool(_NAMES.search(name)) and not _PLACES.search(name)


def redacted(text: str) -> str:
    """Text without secrets; URLs lose their passwords and all of their query strings."""
    values = [value for value in (*_hidden, *_of_environment()) if len(value) >= SHORTEST]
    found = {form for value in values for form in _forms(value) if form in text}
    for form in sorted(found, key=len, reverse=True):  # one may be a part of another
        text = text.replace(form, _GONE)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def redacted_tree(value: Any) -> Any:
    """The same for what will be JSON: all strings in it, but for the names of fields."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: redacted_tree(item) for name, item in value.items()}
    return [redacted_tree(item) for item in value] if isinstance(value, list | tuple) else value


def _of_environment() -> list[str]:
    return [value for name, value in os.environ.items() if _named(name) and not _is_path(value)]


_named = functools.lru_cache(4096)(secret)


@functools.lru_cache(4096)
def _is_path(value: str) -> bool:
    """Names of files help whoever reads a message; a key may begin like one."""
    return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))


@functools.lru_cache(4096)
def _forms(value: str) -> tuple[str, ...]:
    """All that a secret may look like."""
    found = set[str]()
    for each in _parts(value):
        escaped = json.dumps(each)[1:-1]
        found |= {each, escaped, json.dumps(escaped)[1:-1], repr(each)[1:-1]}
        found |= {quote(each), quote(each, safe=""), quote_plus(each)}
        found |= set(_base64(each.encode()))
    return tuple(found)


def _parts(value: str) -> Iterator[str]:
    """The secret, and what in it is one by itself: a field, a line, a signature."""
    yield value
    for inner in _INNER.findall(value):
        yield from (inner, unquote(inner))
    yield from (line for line in value.splitlines() if len(line) >= 32)
    if value.lstrip().startswith("{"):
        try:
            fields = json.loads(value)
        except ValueError:
            return
        for name, field in fields.items():
            if isinstance(field, str) and re.search(_WORDS, name) and len(field) >= SHORTEST:
                yield from _parts(field)


def _base64(data: bytes) -> Iterator[str]:
    """How bytes look inside something in base64, wherever in it they begin: 6 bits a letter, so
    that letters at both ends depend on the neighbours and are left out."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode()
        first, last = (0, 2, 3)[before], (len(data) + before) * 8 // 6
        for form in (text[first:last], text[first:last].translate(str.maketrans("+/", "-_"))):
            if len(form) >= SHORTEST:
                yield form
