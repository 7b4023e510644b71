"""Remote places that fail: each failure gets its meaning, words with the fix, and no secret."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from servers import Answer, s3_environment, web

from pipeline.errors import StoreAway, StoreError
from pipeline.store import remote
from pipeline.store.remote import NotExclusive, Remote

CALLS = {
    "create": lambda place: place.create("log/a/0", b"data"),
    "replace": lambda place: place.replace("log/a/0", b"data"),
    "read": lambda place: place.read("log/a/0"),
    "read_many": lambda place: place.read_many(["log/a/0", "log/a/1"]),
    "names": lambda place: place.names("log"),
    "remove": lambda place: place.remove("log/a/0"),
    "upload": lambda place: place.upload(Path(__file__), "blob/ab", lambda count: None),
}


class Server:
    """An S3 that gives every request the same answer, or that of a function."""

    def __init__(self) -> None:
        self.told = lambda request: s3_error(500, "InternalError")
        self.seen = []

    def __call__(self, request):
        self.seen.append(request)
        return self.told(request)


def s3_error(status: int, code: str, message: str = "No.", more: str = "") -> Answer:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


@pytest.fixture
def server(monkeypatch):
    server = Server()
    with web(server) as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def place() -> Remote:
    return Remote("s3://bucket/store", connect_timeout=1, read_timeout=1)


LOOK = r"AWS_PROFILE.*`aws configure`.*Nothing is lost; the same command goes on$"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", f"refused: No.*{LOOK}"),
        (403, "InvalidAccessKeyId", f"refused: No.*{LOOK}"),
        (403, "AccessDenied", f"refused: No.*list, read, write and delete.*{LOOK}"),
        (403, "RequestTimeTooSkewed", r"clock is wrong by more than 15 minutes: set it"),
        (404, "NoSuchBucket", f"bucket.* does not exist.*{LOOK}"),
        (400, "AuthorizationHeaderMalformed", "another region.*AWS_DEFAULT_REGION"),
        (507, "QuotaExceeded", "no space left in s3://bucket/store: No"),
        (400, "InvalidArgument", "s3://bucket/store failed: No"),
    ],
)
def test_what_a_person_must_mend(server, place, status, code, words):
    server.told = lambda request: s3_error(status, code)
    for call in ("create", "read"):
        with pytest.raises(StoreError, match=words) as caught:
            CALLS[call](place)
        assert not isinstance(caught.value, StoreAway | NotExclusive)


@pytest.mark.parametrize("call", CALLS)
def test_every_call_explains_itself(server, place, call):
    server.told = lambda request: s3_error(404, "NoSuchBucket")
    with pytest.raises(StoreError, match=r"^s3://bucket/store: the bucket.* does not exist"):
        CALLS[call](place)
    server.told = lambda request: s3_error(403, "AccessDenied")
    with pytest.raises(StoreError, match=r"^s3://bucket/store refused: No\. \(AccessDenied\)"):
        CALLS[call](place)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
        (400, "RequestTimeout"),
    ],
)
def test_what_may_pass(server, place, status, code):
    server.told = lambda request: s3_error(status, code)
    with pytest.raises(StoreAway, match=r"^s3://bucket/store cannot be reached or is too busy: No"):
        place.create("log/a/0", b"data")
    assert len(server.seen) <= 2


@pytest.mark.parametrize("more", ["", "<Condition>If-None-Match</Condition>"])
def test_a_taken_name_is_told_from_the_status_alone(server, place, more):
    server.told = lambda request: s3_error(412, "PreconditionFailed", more=more)
    with pytest.raises(FileExistsError):
        place.create("log/a/0", b"data")


def test_a_server_that_knows_no_conditions(server, place):
    server.told = lambda request: s3_error(501, "NotImplemented")
    with pytest.raises(NotExclusive, match="cannot serve as --store"):
        place.create("log/a/0", b"data")


def test_a_head_request_has_no_words(server, place):
    server.told = lambda request: Answer(403, {}, b"")
    with pytest.raises(StoreError, match=rf"refused: Forbidden.*{LOOK}"):
        place.stat("log/a/0")


def test_no_secret_is_shown(server, place, monkeypatch):
    url = "https://user:sesame@host/x?X-Amz-Signature=sesame"
    more = "<StringToSign>sesame</StringToSign><AWSAccessKeyId>sesame</AWSAccessKeyId>"
    server.told = lambda request: s3_error(403, "SignatureDoesNotMatch", f"see {url} now", more)
    with pytest.raises(StoreError, match="see https://host/x") as caught:
        place.read("log/a/0")
    assert "sesame" not in str(caught.value) and "X-Amz" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:sesame@127.0.0.1:9")
    place.reconnect()
    with pytest.raises(StoreAway, match="cannot be reached") as caught:
        place.read("log/a/0")
    assert "sesame" not in str(caught.value)


def test_credentials_are_read_again_after_they_were_refused(server, place, monkeypatch):
    def told(request):
        if "Credential=new/" in request.headers["Authorization"]:
            return Answer(200, {}, b"content")
        return s3_error(403, "InvalidAccessKeyId")

    server.told = told
    with pytest.raises(StoreError):
        place.read("log/a/0")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
    assert place.read("log/a/0") == b"content"


def test_a_read_is_one_request(server, place):
    server.told = lambda request: Answer(200, {}, b"content")
    assert place.read("log/a/0") == b"content"
    assert [request.method for request in server.seen] == ["GET"]


def test_no_credentials_at_all(server, place, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=rf"refused: Unable to locate credentials.*{LOOK}"):
        place.read("log/a/0")
    assert server.seen == []


def test_a_profile_that_is_not_there(server, place, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=rf"refused: .*nobody.*{LOOK}"):
        place.read("log/a/0")


# lines that fail


@pytest.mark.parametrize("call", ["create", "read", "upload"])
def test_a_refused_connection(server, place, monkeypatch, call):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(StoreAway, match=f"cannot be reached.*{url}"):
        CALLS[call](place)


def test_a_host_that_nobody_knows(server, place, monkeypatch):
    def nobody(*_: object, **__: object) -> None:  # at once: the real one may take many seconds
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    with pytest.raises(StoreAway, match=r"nowhere\.invalid"):
        place.read("log/a/0")


@pytest.mark.parametrize("call", ["create", "read"])
def test_a_server_that_falls_silent(server, call):
    silence = threading.Event()
    server.told = lambda request: silence.wait(20) and None
    start = time.monotonic()
    with pytest.raises(StoreAway):
        CALLS[call](Remote("s3://bucket/store", connect_timeout=0.3, read_timeout=0.2))
    assert time.monotonic() - start < 5
    silence.set()


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue of connections is Linux's")
@pytest.mark.parametrize("call", ["create", "upload"])
def test_a_server_that_does_not_even_connect(server, monkeypatch, call):
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(StoreAway, match="cannot be reached"):
            CALLS[call](Remote("s3://bucket/store", connect_timeout=0.2, read_timeout=0.2))


@pytest.mark.parametrize("stopped", [False, True], ids=["stalled", "stopped"])
def test_an_upload_to_a_server_that_never_takes_it(server, monkeypatch, tmp_path, stopped):
    """It accepts the connection and never asks for the body; no library has a timeout there."""

    class Enough(Exception):
        pass

    def report(_: int) -> None:
        if stopped:
            raise Enough

    monkeypatch.setattr(remote, "_STALLED", 60.0 if stopped else 0.5)
    (tmp_path / "file").write_bytes(b"data")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        place, start = Remote("s3://bucket/store", connect_timeout=0.3), time.monotonic()
        with pytest.raises(Enough if stopped else StoreAway):
            place.upload(tmp_path / "file", "blob/ab", report)
    assert time.monotonic() - start < 5


def test_a_body_that_was_cut_short(server, place):
    server.told = lambda request: Answer(200, {"Content-Length": "10"}, b"five!")
    with pytest.raises(StoreAway):
        place.read("log/a/0")
    with pytest.raises(StoreAway):
        list(place.chunks("log/a/0"))


def test_a_range_that_is_shorter_than_it_was_asked_for(server, place):
    def told(request):
        if request.method == "HEAD":
            return Answer(200, {"Content-Length": "20000000"}, b"")
        return Answer(206, {}, b"five!")

    server.told = told
    with pytest.raises(StoreAway, match="sent 5 of 8388608 bytes of blob/ab"):
        list(place.chunks("blob/ab"))


def test_bytes_that_vanish_while_they_are_read(server, place):
    def told(request):
        if request.method == "HEAD":
            return Answer(200, {"Content-Length": "20000000"}, b"")
        return s3_error(404, "NoSuchKey")

    server.told = told
    with pytest.raises(FileNotFoundError):
        list(place.chunks("blob/ab"))


# the other backends


def waiting(kind: type[Exception]) -> dict[str, float]:
    """Not long where it is to wait in vain; elsewhere a busy machine may take its time."""
    seconds = 0.3 if kind is StoreAway else 20.0
    return {"connect_timeout": seconds, "read_timeout": seconds}


def google_error(status: int, message: str) -> Answer:
    body = json.dumps({"error": {"code": status, "message": message}})
    return Answer(status, {"Content-Type": "application/json"}, body.encode())


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (401, "Anonymous caller may not", StoreError, "refused: .*application-default login"),
        (403, "does not have access", StoreError, "refused: .*GOOGLE_APPLICATION_CREDENTIALS"),
        (404, "no such bucket", StoreError, "bucket.* does not exist"),
        (412, "conditionNotMet", FileExistsError, "log/a/0"),
        (503, "backendError", StoreAway, "no answer for 1 seconds"),
    ],
)
def test_google(server, monkeypatch, status, message, kind, words):
    server.told = lambda request: google_error(status, message)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    place = Remote("gs://bucket/store", **waiting(kind))
    with pytest.raises(kind, match=words) as caught:
        place.create("log/a/0", b"data")
    assert isinstance(caught.value, StoreAway) == (kind is StoreAway)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "AuthorizationFailure", StoreError, "refused: .*AZURE_STORAGE_CONNECTION_STRING"),
        (404, "ContainerNotFound", StoreError, "container .*does not exist"),
        (409, "BlobAlreadyExists", FileExistsError, "log/a/0"),
        (503, "ServerBusy", StoreAway, "no answer for 1 seconds"),
    ],
)
def test_azure(server, monkeypatch, status, code, kind, words):
    server.told = lambda request: Answer(status, {"x-ms-error-code": code}, b"")
    account = "DefaultEndpointsProtocol=http;AccountName=name;AccountKey=c2VjcmV0;"
    endpoint = f"BlobEndpoint={os.environ['AWS_ENDPOINT_URL']}/name;"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", account + endpoint)
    place = Remote("abfs://bucket/store", **waiting(kind))
    with pytest.raises(kind, match=words) as caught:
        place.create("log/a/0", b"data")
    assert isinstance(caught.value, StoreAway) == (kind is StoreAway)
    assert "c2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (401, "", StoreError, "refused: .*`hf auth login`"),
        (404, "RepoNotFound", StoreError, "repository does not exist"),
        (403, "", StoreError, "refused: .*HF_TOKEN"),
        (500, "", StoreAway, "cannot be reached or is too busy"),
    ],
)
def test_hugging_face(server, monkeypatch, status, code, kind, words):
    constants = pytest.importorskip("huggingface_hub.constants")
    server.told = lambda request: Answer(status, {"X-Error-Code": code}, b"")
    monkeypatch.setattr(constants, "ENDPOINT", os.environ["AWS_ENDPOINT_URL"])
    for call in ("read", "replace"):
        with pytest.raises(kind, match=words) as caught:
            CALLS[call](Remote("hf://datasets/user/repo/store"))
        assert isinstance(caught.value, StoreAway) == (kind is StoreAway)
