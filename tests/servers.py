"""Servers of storage on this machine, and one that answers as it is told.

The real ones run each in a process of its own, which ends when its standard input does: at the end
of the block, or when the process that started it dies in any way. The system chooses the ports.
"""

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

_S3 = """
import io
import sys
import threading
from moto.moto_server import threaded_moto_server
from moto.server import ThreadedMotoServer

class OneAtATime(threaded_moto_server.DomainDispatcherApplication):  # it looks, and then writes
    writing = threading.Lock()

    def __call__(self, environ, start_response):
        if "HTTP_IF_NONE_MATCH" not in environ or environ["REQUEST_METHOD"] != "PUT":
            return super().__call__(environ, start_response)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self.writing:
            return super().__call__(environ, start_response)

threaded_moto_server.DomainDispatcherApplication = OneAtATime
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""

_GCS = """
import sys
from gcp_storage_emulator.server import create_server

server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
server.start()
print(server._api._httpd.server_address[1], flush=True)
sys.stdin.read()
server.stop()
"""

_SFTP = """
import asyncio
import sys
import asyncssh

async def main(home, root):
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[home + "/host_key"],
        authorized_client_keys=home + "/.ssh/id_ed25519.pub",
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=root),
    )
    print(server.get_port(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.contextmanager
def _serving(program: str, *arguments: str) -> Iterator[int]:
    """Run a program that prints its port and reads its standard input; yields the port."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C and signals to a group of tests are not for it
    )
    try:
        line = process.stdout.readline()
        assert line, f"the server ended with {process.wait()} before it served"
        yield int(line)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# S3


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3, which keeps all in its memory; yields the endpoint's URL."""
    with _serving(_S3) as port:
        yield f"http://127.0.0.1:{port}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """The variables by which s3fs, boto3 and the pipeline find the endpoint, and nothing else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }


def make_bucket(endpoint: str, name: str) -> None:
    request = urllib.request.Request(f"{endpoint}/{name}", data=b"", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


# Google


@contextlib.contextmanager
def gcs_emulator() -> Iterator[Mapping[str, str]]:
    """An emulator of Google's storage with one bucket, ``bucket``; yields variables to set.

    It ignores the condition under which an object is to be created, so it is no place for a store.
    """
    with _serving(_GCS) as port:
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


# SFTP


@contextlib.contextmanager
def sftp_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server that shows ``folder/root``; yields its URL and a home directory with the keys."""
    import asyncssh

    home, root = folder / "home", folder / "root"
    (home / ".ssh").mkdir(parents=True)
    root.mkdir()
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    host.write_private_key(home / "host_key")
    user.write_private_key(home / ".ssh" / "id_ed25519")
    user.write_public_key(home / ".ssh" / "id_ed25519.pub")
    with _serving(_SFTP, str(home), str(root)) as port:
        known = f"[127.0.0.1]:{port} {host.export_public_key().decode()}"
        (home / ".ssh" / "known_hosts").write_text(known)
        yield f"sftp://tester@127.0.0.1:{port}", home


# whatever a test wants


class Request(NamedTuple):
    method: str
    path: str  # with the query
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@contextlib.contextmanager
def web(answer: Callable[[Request], Answer | None]) -> Iterator[str]:
    """A server in this process that answers as told, or hangs up on None; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which knows Expect: 100-continue

        def answer(self) -> None:
            self.close_connection = True
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = answer(Request(self.command, self.path, dict(self.headers), body))
            if told is None:
                return
            with contextlib.suppress(ConnectionError):  # who asked may have been killed
                self.tell(told)

        def tell(self, told: Answer) -> None:
            self.send_response(told.status)
            usual = {"Content-Length": str(len(told.body)), "Connection": "close"}
            for name, value in (usual | dict(told.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(told.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def forwarded(request: Request, url: str) -> Answer:
    """What another server answers to a request."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    with contextlib.closing(connection):
        connection.request(request.method, request.path, request.body, dict(request.headers))
        answer = connection.getresponse()
        skipped = ("transfer-encoding", "connection")
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in skipped}
        return Answer(answer.status, headers, answer.read())
