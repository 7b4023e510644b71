"""What the errors of storage backends mean for the user: the one place that knows them by name.

Every backend has errors of its own, and wraps those of the libraries below it. What they have in
common is a chain of causes, and somewhere in it a code, a status of HTTP, or at least the name of
a class. These are collected first and judged afterwards, without importing any backend.

Only the words of an error are shown: never a request, whose headers hold signatures.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import StoreAway, StoreError
from pipeline.redact import redacted
from pipeline.store.backends import looks

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "RepositoryNotFoundError"}
_NO_BUCKET |= {"BucketNotFoundError", "RevisionNotFoundError"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed"}
_DENIED = {"AccessDenied", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId"}
_DENIED |= {"InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired", "NotSignedUp"}
_DENIED |= {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "SSOError"}
_DENIED |= {"CredentialRetrievalError", "TokenRetrievalError", "ProfileNotFound"}
_DENIED |= {"DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"}
_DENIED |= {"PermissionDenied", "SFTPPermissionDenied", "LocalTokenNotFoundError"}
_FULL = {"QuotaExceeded", "SFTPNoSpaceOnFilesystem", "SFTPQuotaExceeded"}
_AWAY = {"SlowDown", "RequestTimeout", "RequestTimeoutException", "InternalError", "ServerBusy"}
_AWAY |= {"ServiceUnavailable", "OperationAborted", "OperationTimedOut", "Throttling"}
_AWAY |= {"ConditionalRequestConflict", "TimeoutError", "ConnectionError", "HTTPClientError"}
_AWAY |= {"gaierror", "ClientConnectionError", "ClientPayloadError", "ContentLengthError"}
_AWAY |= {"ResponseStreamingError", "IncompleteReadError", "IncompleteRead", "RequestException"}
_AWAY |= {"TransportError", "ServiceRequestError", "ServiceResponseError", "DisconnectError"}
_AWAY |= {"ChannelOpenError", "SFTPConnectionLost", "SFTPNoConnection", "EOFError"}
_AWAY_NUMBERS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
_AWAY_NUMBERS |= {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}

_FULL_WORDS = re.compile(r"quota|storage cap|insufficient storage|no space left", re.IGNORECASE)
_DENIED_WORDS = re.compile(r"^Forbidden|Anonymous caller|credential|account_name", re.IGNORECASE)
_UNTRUSTED_WORDS = re.compile(r"certificate.verify.failed", re.IGNORECASE)

AGAIN = "Nothing is lost; the same command goes on"


@dataclass(frozen=True)
class _Facts:
    names: frozenset[str]  # error codes of services and names of classes, of all causes
    status: int  # of HTTP; 0 if it was not about HTTP
    number: int  # errno
    words: str


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__  # not __context__: it may be long mended


def _facts(error: BaseException) -> _Facts:
    names, statuses, numbers, told = set(), [], [], ""
    for cause in _causes(error):
        names |= {kind.__name__ for kind in type(cause).__mro__}
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):  # botocore
            names.add(code := str(answer.get("Error", {}).get("Code")))
            told = told or f"{answer.get('Error', {}).get('Message')} ({code})"
            statuses.append(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        names.add(str(getattr(getattr(cause, "error_code", None), "value", None)))  # azure
        names.add(str(getattr(cause, "error_code", None)))
        statuses += [getattr(cause, name, None) for name in ("status_code", "status", "code")]
        statuses.append(getattr(answer, "status_code", None))
        numbers.append(getattr(cause, "errno", None))
    status = next((one for one in statuses if isinstance(one, int) and 300 <= one < 600), 0)
    number = next((one for one in numbers if isinstance(one, int)), 0)
    words = told or re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
    words = redacted(" ".join(words.splitlines()[:2]))[:300].rstrip(". ")
    return _Facts(frozenset(names), status, number, words)


def taken(error: BaseException) -> bool:
    """Does the error of an exclusive create say that the name exists? Not every server says why."""
    facts = _facts(error)
    return facts.status == 412 or "PreconditionFailed" in facts.names


def unable(error: BaseException) -> bool:
    """Does the error of an exclusive create say that the server does not know how?"""
    return _facts(error).status == 501


def bucket_is_missing(error: BaseException) -> bool:
    return bool(_facts(error).names & _NO_BUCKET)


def explain(error: BaseException, place: str, protocol: str) -> StoreError:
    """What a failed call means for the user, and what to do; a StoreAway if waiting may help.

    A FileNotFoundError means that not even the bucket is there.
    """
    facts = _facts(error)
    look = looks(protocol)
    if "HostKeyNotVerifiable" in facts.names:
        return StoreError(
            f"{place}: the key of that host is not in ~/.ssh/known_hosts, or is another one: check "
            f"it, and let `ssh` to that host add it. {AGAIN}"
        )
    if "RequestTimeTooSkewed" in facts.names:
        return StoreError(
            f"{place}: this machine's clock is wrong by more than 15 minutes: set it. {AGAIN}"
        )
    if facts.names & _NO_BUCKET or isinstance(error, FileNotFoundError):
        return StoreError(
            f"{place}: the bucket, container or repository does not exist, or you may not see it: "
            f"create it, or mend the URL. Credentials are looked for in {look}. {AGAIN}"
        )
    if facts.names & _ELSEWHERE or facts.status in (301, 307):
        return StoreError(
            f"{place}: the bucket is in another region: name that in AWS_DEFAULT_REGION. "
            f"{facts.words}. {AGAIN}"
        )
    if _UNTRUSTED_WORDS.search(facts.words):
        return StoreError(f"{place}: its certificate is not trusted: {facts.words}. {AGAIN}")
    if (
        facts.names & _FULL
        or facts.status == 507
        or facts.number in (errno.ENOSPC, errno.EDQUOT)
        or (not _is_away(facts) and _FULL_WORDS.search(facts.words))
    ):
        return StoreError(
            f"no space left in {place}: {facts.words}. Free some, or have its quota raised. {AGAIN}"
        )
    if facts.names & _DENIED or facts.status in (401, 403):
        return _denied(facts, place, look)
    if _is_away(facts):
        return StoreAway(f"{place} cannot be reached or is too busy: {facts.words}. {AGAIN}")
    if _DENIED_WORDS.search(facts.words):
        return _denied(facts, place, look)
    if "NotImplementedError" in facts.names:
        return StoreError(f"{place}: {protocol} cannot do what a store needs: {facts.words}")
    return StoreError(f"{place} failed: {facts.words}. {AGAIN}")


def _is_away(facts: _Facts) -> bool:
    return bool(
        facts.names & _AWAY
        or facts.number in _AWAY_NUMBERS
        or facts.status in (408, 409, 425, 429)
        or (facts.status >= 500 and facts.status != 501)
    )


def _denied(facts: _Facts, place: str, look: str) -> StoreError:
    return StoreError(
        f"{place} refused: {facts.words}. The account must be allowed to list, read, write and "
        f"delete there; credentials are looked for in {look}. {AGAIN}"
    )
