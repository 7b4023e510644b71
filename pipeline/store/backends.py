"""What must be known of each kind of remote place, so that ``remote.py`` treats them all alike.

fsspec gives every backend the same calls, but not the same promises, defaults or arguments. Those
that matter are here: which can create a name exclusively, which write in place, what keeps a cache,
and how to make each notice a dead line. Cost: no backend is imported before it is asked for.
"""

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import StoreError

S3, GOOGLE, AZURE, SFTP = ("s3", "s3a"), ("gs", "gcs"), ("abfs", "abfss", "az"), ("sftp", "ssh")
EXCLUSIVE = (*S3, *GOOGLE, *AZURE, "memory")
WHOLE = (*EXCLUSIVE, "hf")  # a name appears there when all its bytes have arrived
PIECE = 8 << 20  # bytes in one request of a transfer
AT_ONCE = 4  # such requests at once: memory is about their product

_TIMES = ("LastModified", "mtime", "last_modified", "created")  # as they call it
_PARTS = 9_000  # S3 takes 10,000 in one upload
_EXTRAS = {
    **dict.fromkeys(S3, "s3"),
    **dict.fromkeys(GOOGLE, "gcs"),
    **dict.fromkeys(AZURE, "azure"),
    **dict.fromkeys(SFTP, "sftp"),
    "hf": "hf",
}
# where the tools of each look for credentials
_AWS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or ~/.aws (`aws configure`)"
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`"
_AZURE = (
    "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or "
    "AZURE_STORAGE_CONNECTION_STRING, or `az login`"
)
_SSH = "the ssh-agent, ~/.ssh and ~/.ssh/config (`ssh` to that host must not ask for anything)"
_LOOKS = {
    **dict.fromkeys(S3, _AWS),
    **dict.fromkeys(GOOGLE, _GOOGLE),
    **dict.fromkeys(AZURE, _AZURE),
    **dict.fromkeys(SFTP, _SSH),
    "hf": "HF_TOKEN, or `hf auth login`",
}


def looks(protocol: str) -> str:
    """Where credentials are looked for, for people."""
    return _LOOKS.get(protocol, f"the places where other programs for {protocol}:// keep them")


def checked(url: str) -> str:
    """The protocol of a URL that may name a place; no message repeats a secret."""
    protocol, slashes, rest = url.partition("://")
    try:
        parts = urlsplit(url)
        # a password with a slash in it looks like a port that is no number: a ValueError
        secret = "?" in url or parts.password is not None or not isinstance(parts.port, int | None)
    except ValueError:
        secret = True
    if secret:
        raise StoreError(
            f"{protocol}://...: the URL of a place holds no password and no query, because it is "
            f"shown and logged. Credentials are looked for in {looks(protocol)}"
        )
    if not slashes or not rest.strip("/") or "::" in url:
        raise StoreError(f"{url!r} is no remote place: give one such as s3://bucket/folder")
    return protocol


def implementation(protocol: str) -> Any:
    """The class of fsspec's filesystem for a protocol."""
    # else gcsfs speaks gRPC to ask about each bucket first, which stalls where that is not answered
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise StoreError(
            f"{protocol}:// is no protocol that fsspec knows; it knows {known}"
        ) from error
    except ImportError as error:
        raise _not_installed(protocol, str(error)) from error
    if protocol in SFTP and not kind.__module__.startswith("sshfs"):
        raise _not_installed(protocol, "sshfs is missing, and paramiko would trust any host")
    return kind


def _not_installed(protocol: str, why: str) -> StoreError:
    extra = _EXTRAS.get(protocol)
    fix = f": pip install 'ignite-llm[{extra}]'" if extra else f" ({why})"
    return StoreError(f"{protocol}:// needs a package that is not installed{fix}")


def connected(kind: Any, protocol: str, url: str, connect: float, read: float) -> Any:
    """A filesystem of our own that remembers no listing and gives up after so many seconds."""
    for logger in ("gcsfs", "azure.identity"):  # print what they raise
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in S3:
        import fsspec

        users = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        retries = {"mode": "standard", "total_max_attempts": 2}
        ours = {"connect_timeout": connect, "read_timeout": read, "retries": retries}
        # max_concurrency 1: a read is one request, and does not ask for the size before
        options |= {"config_kwargs": ours | users, "max_concurrency": 1}
    elif protocol in GOOGLE:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=connect, sock_read=read)
        options["session_kwargs"] = {"timeout": timeout}
    elif protocol in AZURE:
        options |= {"blocksize": PIECE, "connection_timeout": connect, "read_timeout": read}
    elif protocol in SFTP:  # what sshfs does not know it hands to asyncssh
        options = {"connect_timeout": connect, "login_timeout": read, "keepalive_interval": 15}
        options["known_hosts"] = ()  # those of ~/.ssh and its config; sshfs would trust any host
    elif protocol == "hf":
        options = {}
    options |= kind._get_kwargs_from_urls(url)
    fs = kind(skip_instance_cache=True, **options)
    if protocol in S3:
        fs.retries = 1  # botocore's are enough
    return fs


def transfer(protocol: str, size: int) -> dict[str, Any]:
    """Arguments of ``put_file`` that bound how much of a file is in memory."""
    part = max(1, math.ceil(size / _PARTS / PIECE)) * PIECE
    if protocol in S3:
        return {"chunksize": part, "max_concurrency": AT_ONCE}
    if protocol in GOOGLE:
        return {"chunksize": part}
    return {"max_concurrency": AT_ONCE} if protocol in AZURE else {}


def pieces(fs: Any, protocol: str, path: str, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of each span; a few are asked for ahead where the backend is asynchronous."""
    if protocol in SFTP:  # sshfs sends the whole file, whatever span it is asked for
        with fs.open(path, "rb") as file:
            for begin, end in spans:
                file.seek(begin)
                yield file.read(end - begin)
        return
    if not fs.async_impl:
        for begin, end in spans:
            yield fs.cat_file(path, start=begin, end=end)
        return
    coming: deque[Future[bytes]] = deque()
    try:
        for begin, end in spans:
            asked = fs._cat_file(path, start=begin, end=end)
            coming.append(asyncio.run_coroutine_threadsafe(asked, fs.loop))
            if len(coming) == AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


def seconds(found: dict[str, Any]) -> float:
    """When something was last written, by its own clock; 0.0 where the backend does not tell."""
    for name in _TIMES:
        time = found.get(name)
        if isinstance(time, datetime):
            return time.timestamp()
        if isinstance(time, int | float):
            return float(time)
    return 0.0
