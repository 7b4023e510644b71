"""Whose account it is: the places where Kaggle's own tools keep credentials, in their order.

Nothing is asked over the network here, and no secret leaves a ``Login``: it is not even shown when
one is printed.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launchers.target import Refused

SETTINGS = "https://www.kaggle.com/settings"
PLACES = (
    "KAGGLE_API_TOKEN, ~/.kaggle/access_token, KAGGLE_USERNAME with KAGGLE_KEY, kaggle.json in "
    "~/.kaggle or ~/.config/kaggle (KAGGLE_CONFIG_DIR), ~/.kaggle/credentials.json "
    "(`kaggle auth login`)"
)
EXTRA = "pip install 'ignite-llm[kaggle]'"


@dataclass(frozen=True)
class Login:
    """A token, or a name with its key; ``source`` says where it was found."""

    source: str
    username: str | None = None
    key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.key, self.token)))


def find(environ: Mapping[str, str] = os.environ) -> Login:
    """The credentials of this machine. Raises Refused that says where they were looked for."""
    sdk()
    found = _token() or _key(environ) or _oauth()
    if found is None:
        raise Refused(
            f"no credentials for Kaggle: they are looked for in {PLACES}. Get a token at "
            f"{SETTINGS} (API Tokens), and put it into ~/.kaggle/access_token"
        )
    return found


def sdk() -> Any:
    """Kaggle's package of generated requests. Raises Refused if it is not installed.

    The package ``kaggle`` itself is never imported: it logs in, prints and may end the process
    while it is imported, and it needs ``six``, which it does not ask for.
    """
    try:
        import kagglesdk
    except ImportError as error:
        raise Refused(
            f"Kaggle needs a package that is not installed ({error.name}): {EXTRA}"
        ) from None
    return kagglesdk


def _token() -> Login | None:
    from kagglesdk import get_access_token_from_env

    token, source = get_access_token_from_env()
    return Login(str(source), token=token) if token else None


def _key(environ: Mapping[str, str]) -> Login | None:
    username, key = environ.get("KAGGLE_USERNAME"), environ.get("KAGGLE_KEY")
    if username and key:
        return Login("KAGGLE_USERNAME and KAGGLE_KEY", username, key)
    for file in _files(environ):
        told = _read(file)
        if told.get("username") and told.get("key"):
            return Login(str(file), told["username"], told["key"])
    return None


def _files(environ: Mapping[str, str]) -> list[Path]:
    if "KAGGLE_CONFIG_DIR" in environ:
        return [Path(environ["KAGGLE_CONFIG_DIR"]) / "kaggle.json"]
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path.home() / ".kaggle" / "kaggle.json", config / "kaggle" / "kaggle.json"]


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if there is none. Raises Refused, without its content."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        kind = type(error).__name__  # what it says may quote the file
        raise Refused(f"{file} cannot be read ({kind}): get a new one at {SETTINGS}") from None
    return told if isinstance(told, dict) else {}


def _oauth() -> Login | None:
    """What `kaggle auth login` has left; an access token lives some hours and is renewed."""
    from kagglesdk import KaggleClient, KaggleCredentials

    file = Path(KaggleCredentials.DEFAULT_CREDENTIALS_FILE).expanduser()
    if not _read(file).get("refresh_token"):
        return None
    from requests import RequestException

    try:
        found = KaggleCredentials.load(client=KaggleClient())
        token = found.get_access_token()
    except RequestException as error:
        raise Refused(
            f"{file} is not accepted any more ({type(error).__name__}): `kaggle auth login`"
        ) from None
    return Login(str(file), found.get_username() or None, token=token)
