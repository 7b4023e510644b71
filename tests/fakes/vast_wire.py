"""The requests that the stand-in for Vast.ai understands, as the service documents them.

Taken from the OpenAPI files of vast-ai/docs: paths, names of fields, limits, codes of errors.
Numbers may come as strings, as the service's own package sends them.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda ours, asked: ours == asked,
    "neq": lambda ours, asked: ours != asked,
    "gt": lambda ours, asked: ours > asked,
    "gte": lambda ours, asked: ours >= asked,
    "lt": lambda ours, asked: ours < asked,
    "lte": lambda ours, asked: ours <= asked,
    "in": lambda ours, asked: ours in asked,
    "notin": lambda ours, asked: ours not in asked,
}
_NOT_FILTERS = ("order", "type", "limit", "allocated_storage", "rented")
_PAGE = 25
Answer = tuple[int, Any]


class _HangUp(Exception):
    """Say nothing more."""


def _error(status: int, error: str, msg: str, **more: Any) -> Answer:
    return status, {"success": False, "error": error, "msg": msg, **more}


def _fits(row: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    for name, asked in filters.items():
        for operator, value in asked.items():
            ours = row.get(name)
            if isinstance(ours, int | float) and isinstance(value, str):
                value = float(value)
            if name == "geolocation":
                ours = str(ours).rpartition(", ")[2]
            if ours is None or not _COMPARE[operator](ours, value):
                return False
    return True


def _wrong(body: Mapping[str, Any]) -> str | None:
    """What is wrong with a request that would rent."""
    env, words = body.get("env") or {}, [*(body.get("args") or []), body.get("onstart") or ""]
    if not body.get("image") or len(body["image"]) > 1024:
        return "image must have 1 to 1024 characters"
    if sum(map(len, words)) > 4048:
        return "args and onstart have more than 4048 characters"
    if len(body.get("label") or "") > 256:
        return "label has more than 256 characters"
    if any(len(str(value)) > 256 for value in env.values()):
        return "env value has more than 256 characters"
    if sum(len(name) + len(str(value)) for name, value in env.items()) > 32768:
        return "invalid env arguments, total length > 32KB"
    if float(body.get("disk") or 10) < 8:
        return "disk must be 8 or more"
    if body.get("runtype") != "args" or not body.get("args"):
        return "this stand-in runs the runtype args alone"
    price = body.get("price")
    return "price" if price is not None and not 0.001 <= float(price) <= 128 else None


class Handler(BaseHTTPRequestHandler):
    """One request; ``server.fake`` is the stand-in."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.asked, self.body = dict(parse_qsl(parts.query)), json.loads(body or b"{}")
        self.route = [each for each in parts.path.split("/") if each]
        self._note(parts.path)
        with contextlib.suppress(_HangUp, BrokenPipeError, ConnectionResetError):
            self._send(*self._answered())

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass

    def _note(self, path: str) -> None:
        from fakes.vast import Asked

        self.who = self._by()
        self.server.fake.requests.append(Asked(self.command, path, self.asked, self.body, self.who))

    def _by(self) -> str:
        key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        fake = self.server.fake
        if key == fake.key:
            return "account"
        living = [each for each in fake.boxes if each.key == key and each.status != "destroyed"]
        return str(living[0].id) if key and living else "nobody"

    def _send(self, status: int, told: Any, headers: Mapping[str, str] | None = None) -> None:
        plain = isinstance(told, str)
        data = told.encode() if plain else json.dumps(told).encode()
        self.send_response(status)
        kind = "text/plain" if plain else "application/json"
        usual = {"Content-Type": kind, "Content-Length": str(len(data)), "Connection": "close"}
        for name, value in {**usual, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # from a request to its answer, faults and all

    def _answered(self) -> tuple[Any, ...]:
        if self.route[0] == "logs":
            return self._log_text()
        kind, do = self._called()
        if kind is None:
            return _error(404, "not_found", f"{self.command} {self.path}")
        if self.who == "nobody":
            return _error(401, "auth_error", "Invalid user key")
        own = self.route[2:3] == ["instances"] and self.route[3:] == [self.who]
        if self.who != "account" and not own:
            return _error(403, "not_authorized", "this key is for its own instance")
        return self._struck(self.server.fake.strikes(kind), do)

    def _called(self) -> tuple[str | None, Callable[[], Answer] | None]:
        match self.command, self.route:
            case "POST", ["api", "v0", "bundles"]:
                return "search", self._search
            case "PUT", ["api", "v0", "asks", _]:
                return "create", self._create
            case "GET", ["api", "v1", "instances"]:
                return "list", self._list
            case "PUT", ["api", "v0", "instances", "request_logs", _]:
                return "log", self._log
            case "GET", ["api", "v0", "instances", _]:
                return "show", self._show
            case "PUT", ["api", "v0", "instances", _]:
                return "manage", self._manage
            case "DELETE", ["api", "v0", "instances", _]:
                return "destroy", self._destroy
        return None, None

    def _struck(self, fault: Any, do: Callable[[], Answer]) -> tuple[Any, ...]:
        page = (502, "<html><body><h1>502 Bad Gateway</h1></body></html>")
        match fault and fault.name:
            case "BUSY":
                return 429, "API requests too frequent: endpoint threshold=4.5"
            case "BUSY_FOR":
                return 429, {"detail": "API requests too frequent"}, {"Retry-After": "7"}
            case "QUOTA":
                told = {"error": "search_quota_exceeded", "msg": "Daily search row quota exhausted"}
                return 429, told, {"Retry-After": "7200"}
            case "GATEWAY":
                return page
            case "DROPPED":
                raise _HangUp
            case "NO":
                return 200, {"success": False, "error": "no_credit", "msg": "no credit is left"}
            case "GONE":
                msg = "error 410/3907: no_such_ask Instance type is no longer available."
                return _error(410, "no_such_ask", msg)
            case "FORBIDDEN":
                return _error(403, "not_authorized", "not for this key")
            case "SPOILED":
                return self._create(spoiled=True)
            case "DOUBLE":
                do()
        told = do()
        match fault and fault.name:
            case "LOST":
                raise _HangUp
            case "LATE":
                time.sleep(self.server.fake.late)
            case "GATEWAY_AFTER":
                return page
        return told

    # what each does

    def _search(self) -> Answer:
        query, fake = self.body, self.server.fake
        disk = float(query.get("allocated_storage") or 8)
        with fake.lock:
            held = {each.offer["id"] for each in fake.boxes if each.status != "destroyed"}
        rows = []
        for each in fake.offers:
            price = each["min_bid"] if query.get("type") == "bid" else each["dph_base"]
            stored = each["storage_cost"] * disk / 720
            money = {"dph_total": price + stored, "storage_total_cost": stored}
            rows.append({**each, **money, "rented": False, "is_bid": query.get("type") == "bid"})
        filters = {name: asked for name, asked in query.items() if name not in _NOT_FILTERS}
        rows = [row for row in rows if row["id"] not in held and _fits(row, filters)]
        for column, way in reversed(query.get("order") or []):
            rows.sort(key=lambda row: row.get(column) or 0, reverse=way == "desc")
        return 200, {"offers": rows[: int(query.get("limit") or 64)], "truncated": False}

    def _create(self, *, spoiled: bool = False) -> Answer:
        fake, body = self.server.fake, {"env": {}, **self.body}
        if wrong := _wrong(body):
            return _error(400, "invalid_args", f"error 400/3467: Invalid args: {wrong}")
        found = [each for each in fake.offers if str(each["id"]) == self.route[3]]
        if not found:
            msg = (
                f"error 404/3603: no_such_ask Instance type by id {self.route[3]} is not available."
            )
            return _error(404, "invalid_args", msg)
        if "price" in body and float(body["price"]) < found[0]["min_bid"]:
            spoiled = True
        box = fake.rent(found[0], body, halted=spoiled)
        if spoiled:
            return _error(400, "invalid_price", "the bid is too low", new_contract=box.id)
        return 200, {"success": True, "new_contract": box.id, "instance_api_key": box.key}

    def _list(self) -> Answer:
        fake, limit = self.server.fake, int(self.asked.get("limit") or _PAGE)
        filters = json.loads(self.asked.get("select_filters") or "{}")
        with fake.lock:
            rows = [each.row() for each in fake.boxes if each.status != "destroyed"]
        rows = [row for row in rows if _fits(row, filters)]
        after = int(self.asked.get("after_token") or 0)
        later = [row for row in rows if row["id"] > after]
        page = later[: min(limit, _PAGE) if limit > 0 else 5]
        more = str(page[-1]["id"]) if len(later) > len(page) else None
        return 200, {
            "success": True,
            "instances_found": len(page),
            "total_instances": len(rows),
            "instances": page,
            "next_token": more,
        }

    def _show(self) -> Answer:
        with self.server.fake.lock:
            box = self.server.fake.find(self.route[3])
            return 200, {"instances": None if box is None else box.row()}

    def _manage(self) -> Answer:
        fake = self.server.fake
        with fake.lock:
            box = fake.find(self.route[3])
            if box is None:
                return _error(404, "no_such_instance", "no such instance")
            if self.body.get("state") == "stopped":
                fake.outbid(box)
            elif self.body.get("state") == "running" and box.halted:
                fake.resume(box)
            return 200, {"success": True}

    def _destroy(self) -> Answer:
        fake = self.server.fake
        with fake.lock:
            box = fake.find(self.route[3])
            if box is None:
                return _error(404, "no_such_instance", "Instance not found")
            fake.destroy(box)
            return 200, {"success": True, "msg": f"destroying instance {box.id}."}

    def _log(self) -> Answer:
        fake = self.server.fake
        box = fake.find(self.route[4])
        if box is None:
            return _error(404, "invalid_id", "Invalid instance id.")
        lines = box.printed().splitlines()[-int(self.body.get("tail") or 1000) :]
        name = secrets.token_hex(8)
        fake.logs[name] = [0, "\n".join(lines) if fake.loggable(box) else None]
        signed = f"{fake.url}/logs/{name}?X-Amz-Signature={secrets.token_hex(8)}"
        return 200, {"success": True, "result_url": signed}

    def _log_text(self) -> Answer:
        """A bucket says 403 while there is nothing at a signed URL."""
        log = self.server.fake.logs[self.route[1]]
        log[0] += 1
        return (403, "AccessDenied") if log[0] < 3 or log[1] is None else (200, log[1])
