"""What a box is given to open the store: as little, and for as short a time, as the place allows.

Who owns a rented machine can read all that is on it, so the keys of an account never go there. Of
these, the first that fits is what a box gets:

    --credentials FILE   lines of NAME=VALUE with keys that somebody made for this store alone
    --my-credentials     the caller's own, because they said so
    s3://                keys that AWS makes for this bucket and folder, for 36 hours at most
    abfs://              a signature for this container, made here with the account's key

Nothing else is sent. Google's short keys end after an hour and Hugging Face has none that one could
make here, so these need one of the options. All of it lives in memory; every value is told to
``redact``, so that this process cannot show it.
"""

import base64
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from launchers import aws
from pipeline import redact
from pipeline.store import backends

MOST, LEAST, AFTER = 36 * 3600, 15 * 60, 3600  # seconds: what AWS allows, and what is added
PIECE = 240  # characters; Vast refuses values of more than 256
_PIECES = "IGNITE_SECRET_"
_GOOGLE_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_GOOGLE = f"{_GOOGLE_FILE}_JSON"  # what is in that file, for a machine that does not have it
_AZURE = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN")
_AZURE_LOGIN = ("AZURE_STORAGE_CLIENT_ID", "AZURE_STORAGE_CLIENT_SECRET")
_TAKEN = {  # what may be said to a box of each kind of place
    backends.S3: (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
        *("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ),
    backends.GOOGLE: (_GOOGLE_FILE, _GOOGLE),
    backends.AZURE: (
        *(*_AZURE, *_AZURE_LOGIN, "AZURE_STORAGE_TENANT_ID", "AZURE_STORAGE_CONNECTION_STRING"),
    ),
    ("hf",): ("HF_TOKEN", "HF_ENDPOINT"),
}
_OPENS = {  # sets of which one must be there
    backends.S3: (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),),
    backends.GOOGLE: ((_GOOGLE,),),
    backends.AZURE: (
        *(_AZURE[:2], (_AZURE[0], _AZURE[2]), ("AZURE_STORAGE_CONNECTION_STRING",)),
        (_AZURE[0], *_AZURE_LOGIN, "AZURE_STORAGE_TENANT_ID"),
    ),
    ("hf",): (("HF_TOKEN",),),
}
_BEST = {
    backends.S3: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    backends.GOOGLE: f"{_GOOGLE_FILE}, the path of a service account's key",
    backends.AZURE: "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_SAS_TOKEN",
    ("hf",): "HF_TOKEN",
}
_OPEN = (  # that are no secrets, and may stand where everybody reads them
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "HF_ENDPOINT"),
)
_WAYS = (
    "Make keys that open this place and nothing else, write them to a file as NAME=VALUE lines "
    "({names}), and give --credentials FILE. Or say --my-credentials: then those that you use here "
    "are on the box, whose owner can read them"
)


@dataclass(frozen=True)
class BoxSecrets:
    """Environment variables for a box, and when they cease to open the store."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    expires: float | None = None  # seconds since 1970; None: not that we know


def box_secrets(
    store_url: str, seconds: float | None, given: Path | None = None, *, mine: bool = False
) -> BoxSecrets:
    """What a box needs to work on the store for so many seconds (None: nobody knows).

    They may expire before: the caller replaces the box in time. ``given`` is --credentials, and
    ``mine`` --my-credentials. Raises ValueError that says the ways out, and shows no value.
    """
    kind = _kind(store_url)
    if given is not None and mine:
        raise ValueError("--credentials and --my-credentials: give one of them")
    if given is not None:
        made = BoxSecrets(_opening(kind, _with_google(_read(given)), f"--credentials {given}"))
    elif kind is None:
        made = BoxSecrets()
    elif mine:
        made = _own(kind)
    elif kind == backends.S3:
        try:
            made = BoxSecrets(*aws.federated(store_url, _lifetime(seconds, MOST)))
        except ValueError as error:
            why = f"no keys for {store_url} alone can be made: {error}"
            raise ValueError(f"{why}. {_ways(kind)}") from None
    elif kind == backends.AZURE:
        made = _signed(store_url, _lifetime(seconds, None))
    else:
        raise ValueError(
            f"{store_url}: no keys for this place alone can be made from here. {_ways(kind)}"
        )
    for name, value in made.values.items():
        if redact.secret(name):
            redact.hide(value)
    return made


def names(store_url: str) -> tuple[list[list[str]], list[str]]:
    """(sets of variables, one of which opens the store; others that help), for a place that has
    secrets of its own. Raises ValueError for what a box cannot open."""
    kind = _kind(store_url)
    if kind is None:
        return [], []
    ways = [list(names) for names in _OPENS[kind]]
    known = {name for names in ways for name in names} | {_GOOGLE_FILE}
    return ways, [name for name in _TAKEN[kind] if name not in known]


def unhidden(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that say where a store is, and tell no secret."""
    found = {name: environ[name] for name in _OPEN if environ.get(name)}
    return {name: value for name, value in found.items() if redact.redacted(value) == value}


def _kind(url: str) -> tuple[str, ...] | None:
    """The kind of place; None for a directory. Raises ValueError for what a box cannot open."""
    if "://" not in url or url.startswith("file://"):
        return None
    protocol = backends.checked(url)
    for kind in _TAKEN:
        if protocol in kind:
            return kind
    raise ValueError(
        f"{redact.redacted(url)}: a box cannot be given what opens {protocol}://. Use a store on "
        "s3://, gs:// or abfs://"
    )


def _lifetime(seconds: float | None, most: int | None) -> int:
    """An hour more than the box may take, for what comes late."""
    wanted = MOST if seconds is None else max(LEAST, int(seconds) + AFTER)
    return wanted if most is None else min(wanted, most)


def _ways(kind: tuple[str, ...]) -> str:
    return _WAYS.format(names=_BEST[kind])


# from a file, and the caller's own


def _read(file: Path) -> dict[str, str]:
    """The variables of a file. No message repeats a line: it may be a key without its name."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"--credentials {file}: cannot read it: {why}") from None
    known = {name for names in _TAKEN.values() for name in names}
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"--credentials {file}, line {number}: it must say NAME=VALUE")
        if name not in known:
            raise ValueError(
                f"--credentials {file}, line {number}: {name} does not go to a box, which is to "
                f"open its store and nothing else. Remove the line; taken are "
                f"{', '.join(sorted(known))}"
            )
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found


def _own(kind: tuple[str, ...]) -> BoxSecrets:
    """What this process would use itself."""
    values = {name: os.environ[name] for name in _TAKEN[kind] if os.environ.get(name)}
    if kind == backends.S3:
        values |= aws.own()
    values = _opening(kind, _with_google(values), "--my-credentials")
    return BoxSecrets(values, _moment(os.environ.get("AWS_CREDENTIAL_EXPIRATION")))


def _moment(at: str | None) -> float | None:
    try:
        return datetime.fromisoformat(at).timestamp() if at else None
    except ValueError:
        return None


def _with_google(values: dict[str, str]) -> dict[str, str]:
    """The content in place of the path, which means nothing elsewhere."""
    values = dict(values)
    if (path := values.pop(_GOOGLE_FILE, None)) is None:
        return values
    try:
        content = json.loads(Path(os.path.expanduser(path)).read_bytes())
    except (OSError, ValueError):
        raise ValueError(
            f"{_GOOGLE_FILE} must name a JSON file with a key, and {path} is none that can be read"
        ) from None
    return {**values, _GOOGLE: json.dumps(content)}


def _opening(kind: tuple[str, ...] | None, values: dict[str, str], said: str) -> dict[str, str]:
    """The values, if they can open a place of that kind."""
    enough = kind is None or any(all(map(values.get, names)) for names in _OPENS[kind])
    if not enough:
        assert kind is not None
        raise ValueError(f"{said}: to open {kind[0]}:// it takes {_BEST[kind]}")
    return values


# Microsoft


def _signed(url: str, seconds: int) -> BoxSecrets:
    """A signature for the container (Azure signs for no folder), made without asking anybody."""
    try:
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas
    except ImportError as error:
        raise ValueError("abfs:// needs a package: pip install 'ignite-llm[azure]'") from error
    name, key = (os.environ.get(each, "") for each in _AZURE[:2])
    container, at, host = url.partition("://")[2].partition("/")[0].partition("@")
    name = host.partition(".")[0] if at else name
    if not name or not key:
        raise ValueError(
            f"no signature for {url} can be made without {' and '.join(_AZURE[:2])}. "
            f"{_ways(backends.AZURE)}"
        )
    expires = time.time() + seconds
    try:
        signature = generate_container_sas(
            name,
            container,
            account_key=key,
            permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True),
            expiry=datetime.fromtimestamp(expires, UTC),
        )
    except ValueError:  # of base64; it would show the key
        raise ValueError(f"{_AZURE[1]} is no key of an account: it must be base64") from None
    return BoxSecrets({_AZURE[0]: name, _AZURE[2]: signature}, expires)


# on their way to the box


def pieces(values: Mapping[str, str]) -> dict[str, str]:
    """The same as variables IGNITE_SECRET_0, _1 and so on, whose values are short."""
    text = base64.b64encode(json.dumps(dict(values), separators=(",", ":")).encode()).decode()
    parts = [text[at : at + PIECE] for at in range(0, len(text), PIECE)] if values else []
    for part in parts:
        redact.hide(part)
    return {f"{_PIECES}{number}": part for number, part in enumerate(parts)}


def together(environment: Mapping[str, str]) -> dict[str, str]:
    """On the box: what the pieces in its environment say; nothing if there are none."""
    parts = []
    while (part := environment.get(f"{_PIECES}{len(parts)}")) is not None:
        parts.append(part)
    try:
        return json.loads(base64.b64decode("".join(parts), validate=True)) if parts else {}
    except ValueError:
        raise ValueError(f"{_PIECES}0 to {len(parts) - 1} are not what was sent") from None


def settle(values: Mapping[str, str], folder: Path) -> dict[str, str]:
    """On the box: the variables as libraries want them. A key of Google's must be a file."""
    settled = dict(values)
    if (content := settled.pop(_GOOGLE, None)) is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "google.json"
        file.unlink(missing_ok=True)  # another's file would keep its mode
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(content)
        settled[_GOOGLE_FILE] = str(file)
    return settled
