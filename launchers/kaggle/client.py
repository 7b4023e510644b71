"""The few calls to Kaggle that a launch needs, by the requests that Kaggle's own package generates.

Each is one try with a timeout. What can come back is told apart as target.py wants it: ``Away`` if
the same call may succeed later, ``Refused`` with what a person can do. Kaggle says no in three
ways: by a status, by a ``code`` in an answer with status 200, and by an ``error`` beside the rest.
What it says is quoted, without the secrets that we know of and without the queries of URLs, which
are signatures.
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from launchers.kaggle import account
from launchers.kaggle.account import SETTINGS, Login
from launchers.target import Away, Refused
from pipeline.redact import hide, redacted

TIMEOUT = (10.0, 60.0)  # seconds to connect, and for each piece of an answer
LISTEN = 5.0  # seconds for which a log that grows is listened to
_PIECE = 1 << 20
_PAGE = 100


class Denied(Refused):
    """There is no such thing, or this account may not see it: Kaggle tells the two not apart."""


@dataclass(frozen=True)
class Quota:
    """Seconds of GPU time in this week; ``refresh`` is when the next one begins, in ISO format."""

    left: float
    allowed: float
    refresh: str | None


@dataclass(frozen=True)
class Kernel:
    """A version of a kernel. ``since`` is when the newest one was run last."""

    slug: str
    number: int
    source: str = ""
    since: float | None = None


@dataclass(frozen=True)
class Status:
    """What Kaggle says of the session of a version."""

    word: str  # QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_REQUESTED, CANCEL_ACKNOWLEDGED, ...
    why: str = ""


@dataclass(frozen=True)
class Dataset:
    """The newest version of a data set."""

    number: int | None
    subtitle: str


class Transport:
    """What the services of kagglesdk ask of whoever carries their requests: ``call``."""

    def __init__(self, login: Login) -> None:
        from kagglesdk import KaggleEnv
        from kagglesdk.kaggle_env import get_endpoint
        from requests import Session

        self.login, self.session = login, Session()
        for secret in login.secrets:
            hide(secret)
        self.base = f"{get_endpoint(KaggleEnv.PROD)}/v1"
        self.session.headers["User-Agent"] = "ignite-llm"

    def call(self, service_name: str, request_name: str, request: Any, response_type: Any) -> Any:
        """Send one of the generated requests; its answer, or the open response of a download."""
        from kagglesdk.common.types.file_download import FileDownload

        streamed = response_type is FileDownload
        url = f"{self.base}/{service_name}/{request_name}"
        headers = {"Accept": "text/event-stream, */*"} if streamed else {}
        timeout = (TIMEOUT[0], 2 * LISTEN) if streamed else TIMEOUT
        with self.explained(request_name):
            response = self.session.post(
                url,
                json=type(request).to_dict(request),
                headers=headers,
                auth=self._signed,
                timeout=timeout,
                stream=streamed,
                allow_redirects=False,
            )
            self.check(response, request_name)
            try:
                if not streamed and not isinstance(response.json(), dict):
                    raise TypeError
                return response_type.prepare_from(response)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # a page of a proxy, say, or a word that is newer than the package
                raise Away(
                    f"Kaggle's answer to {request_name} makes no sense ({type(error).__name__}). "
                    f"If that stays so, upgrade its package: {account.EXTRA}"
                ) from None

    def _signed(self, request: Any) -> Any:
        """Signs a request; a callable, so that no ~/.netrc gets in between."""
        from requests.auth import HTTPBasicAuth

        if self.login.token is None:
            return HTTPBasicAuth(self.login.username or "", self.login.key or "")(request)
        request.headers["Authorization"] = f"Bearer {self.login.token}"
        return request

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Failures of the network as Away. What they say holds whole URLs, so only their kind."""
        from requests import RequestException

        try:
            yield
        except RequestException as error:
            raise Away(f"Kaggle cannot be reached: {doing} ({type(error).__name__})") from None

    def check(self, response: Any, doing: str) -> None:
        """Raise what an answer means, unless it is a good one."""
        told: Any = {}
        if "json" in response.headers.get("Content-Type", ""):
            with contextlib.suppress(ValueError):
                told = response.json()
        told = told if isinstance(told, dict) else {}
        code = told.get("code")
        status = code if isinstance(code, int) and code >= 400 else response.status_code
        if status >= 300:
            words = told.get("message") or response.reason or ""
            raise self.failure(status, str(words), doing)

    def failure(self, status: int, words: str, doing: str) -> ValueError:
        """What a refusal means, and what to do about it."""
        said = f"{doing}: {self.clean(words)} ({status})"
        if status == 429 or status >= 500:
            return Away(f"Kaggle is too busy: {said}")
        if status == 401:
            return Refused(
                f"Kaggle does not accept the credentials of {self.login.source}: {said}. Get a new "
                f"token at {SETTINGS} (API Tokens); they are looked for in {account.PLACES}"
            )
        if "phone" in words.lower() or "verif" in words.lower():
            return Refused(
                f"Kaggle lends GPUs and the internet to verified accounts only: {said}. Verify "
                f"your phone number once, at {SETTINGS}"
            )
        if status in (403, 404):
            return Denied(f"Kaggle says no: {said}")
        return Refused(f"Kaggle says no: {said}")

    def clean(self, words: str) -> str:
        """Words of Kaggle's that may be shown."""
        return " ".join(redacted(words).split())[:400]


class Client:
    """Kernels and quota of one account; data sets are in datasets.py."""

    def __init__(self, login: Login | None = None) -> None:
        account.sdk()
        from kagglesdk.kernels.services.kernels_api_service import KernelsApiClient

        self.transport = Transport(login or account.find())
        self.kernels = KernelsApiClient(self.transport)
        self._owner = self.transport.login.username

    @property
    def owner(self) -> str:
        """The name of the account, of which a token says nothing. Raises Refused, Away."""
        if self._owner is None:
            from kagglesdk.security.services.oauth_service import OAuthClient
            from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

            request = IntrospectTokenRequest()
            request.token = self.transport.login.token
            told = OAuthClient(self.transport).introspect_token(request)
            if not told.active or not told.username:
                raise self.transport.failure(401, "the token is not active", "IntrospectToken")
            self._owner = told.username
        return self._owner

    def quota(self) -> Quota | None:
        """What is left of this week; None if Kaggle does not say."""
        told = self.kernels.get_accelerator_quota_statistics()
        gpu, refresh = told.gpu_quota, told.quota_refresh_time
        if gpu is None or gpu.total_time_allowed is None:
            return None
        spent = [each.total_seconds() for each in (gpu.time_used, gpu.time_reserved) if each]
        allowed = gpu.total_time_allowed.total_seconds()
        when = refresh.replace(tzinfo=UTC).isoformat(timespec="minutes") if refresh else None
        return Quota(max(0.0, allowed - sum(spent)), allowed, when)

    # kernels

    def save(self, request: dict[str, Any]) -> Any:
        """Save a version of a kernel and run it. What it answers may hold an ``error``."""
        from kagglesdk.kernels.types.kernels_api_service import ApiSaveKernelRequest

        return self.kernels.save_kernel(ApiSaveKernelRequest.from_dict(request))

    def listed(self, search: str) -> list[Kernel]:
        """The kernels of this account with those letters, last run first."""
        from kagglesdk.kernels.types import kernels_enums as enums
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelsRequest

        request = ApiListKernelsRequest()
        request.group = enums.KernelsListViewType.PROFILE
        request.sort_by = enums.KernelsListSortType.DATE_RUN
        request.search, request.page_size = search, _PAGE
        found = []
        while True:
            told = self.kernels.list_kernels(request)
            for each in told.kernels:
                slug = each.ref.rpartition("/")[2] or each.slug
                found.append(Kernel(slug, each.current_version_number or 0, since=_when(each)))
            if not told.next_page_token:
                return found
            request.page_token = told.next_page_token

    def kernel(self, slug: str, number: int | None = None) -> Kernel:
        """A version with its source; the newest, if no number is given. Raises Denied."""
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

        told = self.kernels.get_kernel(self._of(ApiGetKernelRequest(), slug, number))
        newest = (told.metadata.current_version_number if told.metadata else None) or 1
        source = (told.blob.source if told.blob else None) or ""
        return Kernel(slug, number or newest, source, _when(told.metadata))

    def status(self, slug: str, number: int) -> Status:
        """Raises Denied."""
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest

        request = self._of(ApiGetKernelSessionStatusRequest(), slug, number)
        told = self.kernels.get_kernel_session_status(request)
        return Status(told.status.name, self.transport.clean(told.failure_message or ""))

    def files(self, slug: str, number: int) -> Iterator[tuple[str, str]]:
        """(name, URL) of each file that a session has left. Raises Denied."""
        for page in self._outputs(slug, number):
            yield from ((each.file_name, each.url) for each in page.files)

    def log(self, slug: str, number: int) -> str:
        """What a session that has ended has printed. Raises Denied."""
        told = next(self._outputs(slug, number)).log or ""
        try:
            events = json.loads(told)
            return "".join(each["data"] for each in events)
        except (ValueError, KeyError, TypeError):
            return told

    def stream(self, slug: str, number: int, most: int = 1 << 16) -> str:
        """The end of what a session that runs has printed, as far as it is told in some seconds.

        Kaggle plays it from the start and then waits for more: a pause ends it here.
        """
        from kagglesdk.kernels.types import kernels_api_service as types
        from requests import RequestException

        request = self._of(types.ApiGetKernelSessionLogsStreamRequest(), slug, number)
        request.wait_for_logs_url_seconds = int(LISTEN)
        response = self.kernels.get_kernel_session_logs_stream(request)
        response.encoding = "utf-8"
        pieces, size = deque[str](), 0
        until = time.monotonic() + LISTEN
        with contextlib.closing(response), contextlib.suppress(RequestException):
            for line in response.iter_lines(decode_unicode=True):
                if line == "data: END_OF_LOG" or time.monotonic() > until:
                    break
                pieces.append(_printed(line))
                size += len(pieces[-1])
                while size > most:
                    size -= len(pieces.popleft())
        return "".join(pieces)

    def _outputs(self, slug: str, number: int) -> Iterator[Any]:
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest

        request = self._of(ApiListKernelSessionOutputRequest(), slug, number)
        request.page_size = _PAGE
        while True:
            told = self.kernels.list_kernel_session_output(request)
            yield told
            if not told.next_page_token:
                return
            request.page_token = told.next_page_token

    def _of(self, request: Any, slug: str, number: int | None = None) -> Any:
        """A request about a kernel of ours. A version is called v3; a bare 3 finds nothing."""
        request.user_name, request.kernel_slug = self.owner, slug
        if number is not None:
            request.version_label = f"v{number}"
        return request

    # files

    def download(self, url: str, file: Path) -> None:
        """Bring a file here, piece by piece; it has its name when it is whole."""
        part = file.with_name(f"{file.name}.part")
        file.parent.mkdir(parents=True, exist_ok=True)
        doing = f"download {file.name}"
        with self.transport.explained(doing):
            # no credentials: such a URL is signed, and it is not Kaggle's own server
            response = self.transport.session.get(
                url, stream=True, timeout=TIMEOUT, auth=lambda request: request
            )
            with contextlib.closing(response), part.open("wb") as out:
                self.transport.check(response, doing)
                for piece in response.iter_content(_PIECE):
                    out.write(piece)
        os.replace(part, file)


def _when(metadata: Any) -> float | None:
    when = metadata.last_run_time if metadata else None
    return when.replace(tzinfo=UTC).timestamp() if when else None


def _printed(line: str) -> str:
    """What an event of a log says was printed."""
    if not line.startswith("data:"):
        return ""
    words = line.removeprefix("data:").strip()
    try:
        return str(json.loads(words)["data"])
    except (ValueError, KeyError, TypeError):
        return f"{words}\n"
