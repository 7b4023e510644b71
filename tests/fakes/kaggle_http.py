"""The HTTP of FakeKaggle: methods by POST, uploads by PUT, outputs by GET, logs as a stream."""

import itertools
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class No(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Fault(Exception):
    """An answer that a test wants."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # the client hung up, as it may


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size) or b"{}")
        found = re.fullmatch(r"/v1/[\w.]+/([A-Z]\w+)", self.path)
        try:
            assert found, self.path
            told = self.server.fake.answer(found[1], body, self.headers)
        except No as error:
            self.say(error.status, {"code": error.status, "message": str(error)})
        except Fault as fault:
            if fault.status:
                self.say(fault.status, fault.body)
            else:
                self.close_connection = True
        else:
            self.say(200, told) if isinstance(told, dict) else self.stream(told)

    def say(self, status: int, told: Any, headers: dict[str, str] | None = None) -> None:
        text = isinstance(told, str)
        body = told if isinstance(told, bytes) else (told if text else json.dumps(told)).encode()
        self.send_response(status)
        kind = "text/plain" if text or isinstance(told, bytes) else "application/json"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, lines: Iterator[bytes]) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in itertools.chain(lines, [b""]):
            self.wfile.write(b"%X\r\n%s\r\n" % (len(line), line))

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.path.split("/")[-1].split("?")[0]
        self.server.fake.requests.append(("PUT", dict(self.headers)))
        status, headers = self.server.fake.put(token, body, self.headers.get("Content-Range"))
        self.say(status, b"", headers)

    def do_GET(self) -> None:
        self.server.fake.requests.append(("GET", self.path))
        assert "Authorization" not in self.headers, "files are fetched without credentials"
        fault = next((each for each in self.server.fake.faults if each[0] == "GET"), None)
        file = self.server.fake.folder / self.path.split("?")[0].removeprefix("/files/")
        data = file.read_bytes()
        if fault is None:
            self.say(200, data)
            return
        self.server.fake.faults.remove(fault)
        if fault[1]:
            self.say(fault[1], fault[3])
            return
        self.close_connection = True  # half of it, and then nothing
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    def log_message(self, *_: object) -> None:
        pass
