"""An HTTP server with one file and faults on demand, for the tests of downloads."""

import contextlib
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = random.Random(0).randbytes(1_500_000).hex().encode()  # 3 MB of text


class Site:
    """One file on a server, and how the server misbehaves."""

    def __init__(self) -> None:
        self.body, self.etag = BODY, '"1"'
        self.ranges, self.length, self.chunked, self.status = True, True, False, 200
        self.cuts: list[int] = []  # after how many bytes to hang up, one for each GET
        self.go_on = threading.Event()  # a GET waits for it after half of the file
        self.go_on.set()
        self.changes: bytes | None = None  # the body after the next GET
        self.gets: list[str | None] = []  # the Range of each GET
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        get, asked = handler.command == "GET", handler.headers.get("Range")
        body, start = self.body, 0
        if get:
            self.gets.append(asked)
        if self.status != 200:
            handler.send_error(self.status)
            return
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        elif self.length:
            handler.send_header("Content-Length", str(len(body) - start))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        if not get:
            return
        cut = self.cuts.pop(0) if self.cuts else None
        half = len(body) // 2
        if not self.go_on.is_set() and start < half:
            handler.wfile.write(body[start:half])
            start = half
            self.go_on.wait(20)
        if self.chunked:
            body = b"%X\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        handler.wfile.write(body[start:cut])
        if self.changes is not None:
            self.body, self.changes, self.etag = self.changes, None, '"2"'


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    """A site on a port of this machine, for as long as the block lasts."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # the client hung up, as it should in these tests

    server = Server(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}/texts/plays.txt"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield site
    site.go_on.set()
    server.shutdown()
    server.server_close()
