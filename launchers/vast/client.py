"""Vast.ai's API, one try a call, with every answer in the words of target.py.

The requests go through the client of the package ``vastai``, told never to repeat any: it would
also repeat the one that rents a machine. Its functions above that layer are left out. They raise
TypeError for instances that are a second old, and return refusals that come with HTTP 200 as if
they were results.

The service answers too many requests of a kind with an error, so those of a kind are kept apart.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from launchers.target import Away, Refused, Spoiled
from pipeline.redact import redacted

EXTRA = "pip install -e '.[vast]'"
SERVICE = "https://console.vast.ai"
# seconds between two requests of a kind, as the service's documentation has them
SPACING = MappingProxyType(
    {"search": 6.0, "create": 4.5, "destroy": 3.0, "show": 2.0, "list": 1.0, "log": 1.0}
)
_PAGE = 25  # instances in one answer, at most
_TRIES, _PAUSE = 30, 0.3  # for a log, which is written somewhere else after it was asked for
_KEYS = "https://cloud.vast.ai/manage-keys/"
_MISSING = ("not_found", "no_such_instance")
_GONE = ("no_such_ask", "invalid_price")  # the offer is rented, or is no longer what was searched


class Client:
    """The calls that launching needs. ``key`` and ``url`` are looked for where not given."""

    def __init__(
        self,
        key: str | None = None,
        url: str | None = None,
        *,
        patience: float = 60.0,
        spacing: Mapping[str, float] = SPACING,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        url = (url or os.environ.get("VAST_URL") or SERVICE).rstrip("/")
        if not re.match(r"https?://[^/]", url):
            raise ValueError(f"VAST_URL={redacted(url)} is no address: give one such as {SERVICE}")
        self._vast = _transport(key, url, patience)
        self._spacing, self._clock, self._sleep = spacing, clock, sleep
        self._next: dict[str, float] = {}

    # offers

    def search(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        """The offers that fit a query, as the service describes them."""
        told = self._ask("search", "POST", "/bundles/", query, doing="search for offers")
        found = told.get("offers")
        if not isinstance(found, list):
            raise Away("cannot search for offers: Vast.ai's answer holds none, and no reason")
        return [each for each in found if isinstance(each, dict)]

    def create(self, offer: str, body: dict[str, Any], hide: Collection[str] = ()) -> str:
        """Take an offer; the id of the instance. ``hide`` must not be in an error's message."""
        told = self._ask(
            "create", "PUT", f"/asks/{offer}/", body, doing=f"rent offer {offer}", hide=hide
        )
        if told.get("new_contract") is None:
            raise Away(f"cannot rent offer {offer}: Vast.ai's answer says neither yes nor no")
        return str(told["new_contract"])

    # instances

    def instances(self) -> list[dict[str, Any]]:
        """Every instance of the account."""
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": _PAGE, "order_by": [{"col": "id", "dir": "asc"}]}
        while True:
            told = self._ask("list", "GET", "/api/v1/instances/", query, doing="list the instances")
            page = told.get("instances")
            if not isinstance(page, list):
                raise Away("cannot list the instances: Vast.ai's answer holds no list")
            found += [each for each in page if isinstance(each, dict)]
            if not told.get("next_token"):
                return found
            query["after_token"] = told["next_token"]

    def destroy(self, id: str) -> None:
        """Destroy an instance; one that is gone is no error."""
        try:
            self._ask("destroy", "DELETE", f"/instances/{id}/", {}, doing=f"destroy instance {id}")
        except _Missing:
            return

    def log(self, id: str, lines: int) -> str:
        """The end of what an instance printed."""
        doing = f"read the log of instance {id}"
        told = self._ask(
            "log", "PUT", f"/instances/request_logs/{id}/", {"tail": str(lines)}, doing=doing
        )
        url = told.get("result_url")
        if not url:
            raise Away(f"cannot {doing}: Vast.ai's answer does not say where it is")
        return self._fetched(str(url), doing)

    def _fetched(self, url: str, doing: str) -> str:
        """What lies at a signed URL, which answers 403 until somebody has written there."""
        import requests

        for _ in range(_TRIES):
            self._sleep(_PAUSE)
            try:
                answer = requests.get(url, timeout=self._vast.timeout)
            except requests.RequestException as error:
                raise Away(self._clean(f"cannot {doing}: {error}")) from None
            if answer.status_code == 200:
                return answer.content.decode(errors="replace")
        raise Away(f"cannot {doing}: it was not there after {_TRIES * _PAUSE:.0f} s")

    # one request

    def _ask(
        self,
        kind: str,
        method: str,
        path: str,
        given: dict[str, Any],
        *,
        doing: str,
        hide: Collection[str] = (),
    ) -> dict[str, Any]:
        import requests

        self._space(kind)
        try:  # causes are dropped: they hold requests, headers and all
            if method == "GET":
                answer = self._vast.get(path, query_args=given)
            else:
                answer = getattr(self._vast, method.lower())(path, json_data=given)
        except requests.RequestException as error:
            why = self._clean(f"cannot {doing}: Vast.ai does not answer ({error})", hide)
            raise Away(why) from None
        return self._judged(kind, answer, doing, hide)

    def _judged(self, kind: str, answer: Any, doing: str, hide: Collection[str]) -> dict[str, Any]:
        """What was answered, if that is a yes."""
        try:
            told = answer.json()
        except ValueError:
            told = None
        body = told if isinstance(told, dict) else {}
        status, code = answer.status_code, str(body.get("error") or "")
        failed = status >= 400 or body.get("success") is False
        if not failed and isinstance(told, dict):
            return body
        words = self._clean(f"cannot {doing}: {_words(answer, body)}", hide)
        if failed and body.get("new_contract") is not None:
            raise Spoiled(words, str(body["new_contract"]))
        if status == 429 and code == "search_quota_exceeded":
            raise Refused(
                f"{words}. Vast.ai lets an account see so many offers a day: {_when(answer)}"
            )
        if not failed or status in (408, 429) or status >= 500:
            raise Away(f"{words} (HTTP {status}{_again(answer)})")
        if kind == "destroy" and (
            status in (404, 410) or code in ("not_found", "no_such_instance")
        ):
            raise _Missing(words)
        if status in (401, 403) or "Invalid user key" in words:
            raise Refused(f"{words}. Is the API key right, and may it do this? See {_KEYS}")
        gone = status in (404, 410) or code in _GONE or any(each in words for each in _GONE)
        raise Refused(words, offer_gone=kind == "create" and gone)

    def _space(self, kind: str) -> None:
        wait = self._next.get(kind, 0.0) - self._clock()
        if kind in self._next and wait > 0:
            self._sleep(wait)
        self._next[kind] = self._clock() + self._spacing.get(kind, 0.0)

    def _clean(self, text: str, hide: Collection[str] = ()) -> str:
        for secret in (self._vast.api_key, *hide):
            text = text.replace(secret, "***")
        return redacted(text)


class _Missing(Refused):
    """There is no such instance."""


def _transport(key: str | None, url: str, patience: float) -> Any:
    """The package's own client, without its retries."""
    try:
        from vastai import VastAI
    except ImportError:
        raise ValueError(
            f"Vast.ai needs the package vastai, which is not installed: {EXTRA}"
        ) from None
    places = "VAST_API_KEY, $XDG_CONFIG_HOME/vastai/vast_api_key and ~/.vast_api_key"
    try:
        client = VastAI(api_key=key, server_url=url, retry=1).client
    except RuntimeError:
        raise ValueError(
            f"there is no API key for Vast.ai in {places}: make one at {_KEYS} and set VAST_API_KEY"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read the API key for Vast.ai: {error}") from None
    client.api_key = (client.api_key or "").strip()
    if not re.fullmatch(r"[!-~]+", client.api_key):  # else an error about headers would show it
        raise ValueError(
            f"the API key for Vast.ai is empty or no key at all; it was looked for in {places}: "
            f"copy it again from {_KEYS}"
        )
    client.timeout = patience
    return client


# what is said of a failure


def _words(answer: Any, body: dict[str, Any]) -> str:
    for name in ("msg", "message", "detail", "error"):
        if body.get(name):
            return str(body[name])[:500]
    return " ".join(answer.text.split())[:200] or "no reason is given"


def _again(answer: Any) -> str:
    wait = answer.headers.get("Retry-After")
    return f", it asks to wait {wait} s" if wait else ""


def _when(answer: Any) -> str:
    try:
        return f"in {float(answer.headers['Retry-After']) / 3600:.1f} hours"
    except (KeyError, ValueError):
        return "after midnight UTC"
