"""A stand-in for Vast.ai that speaks its wire format, runs what is rented, and keeps the bill.

    with FakeVast(tmp_path, faults=[Fault(Life.OUTBID, nth=1, after=2.0)]) as vast:
        client = Client(vast.key, vast.url, spacing={})       # or vast.environment() for a process
        ...
        assert vast.billing_now() == 0 and vast.ledger() <= budget

An instance boots within ``boot`` seconds; then its ``args`` run as processes of this machine, in a
folder of their own, with what a container gets (CONTAINER_ID, CONTAINER_API_KEY, ...) and nothing
of this process's environment; ``env`` is for more. ``python3`` there is the Python of the tests.
Whatever kills a container kills all that it ran, and so does leaving the block.

``nth`` counts, from 1, the calls of a kind (``of``: search, create, list, show, destroy, log,
manage) for a fault of ``Call``, and the instances in the order of their making for one of ``Life``.
What strikes while it runs strikes ``after`` so many real seconds of that and, if given, once
``when()`` is true, and only in its first life.

The clock of the bill is virtual: ``speed`` virtual seconds go by in one real second, and
``advance`` jumps. ``requests`` has all that was asked; ``boxes`` all instances that ever were;
``billing`` those that bill now. ``outbid``, ``die`` and ``resume`` act on one at once.
"""

import enum
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fakes.vast_box import Box
from fakes.vast_wire import Handler


class Call(enum.Enum):
    """What may happen to a request."""

    BUSY = "429 in plain text, and nothing is carried out"
    BUSY_FOR = "429 in JSON with Retry-After, and nothing is carried out"
    QUOTA = "429: no more searches today"
    GATEWAY = "502 with a page, and nothing is carried out"
    GATEWAY_AFTER = "502 with a page, and it is carried out"
    DROPPED = "the connection is closed, and nothing is carried out"
    LOST = "it is carried out, and the connection is closed without an answer"
    LATE = "it is carried out, and the answer comes after `late` seconds"
    DOUBLE = "it is carried out twice and answered once"
    SPOILED = "an instance is made, stopped, and the answer is an error that names it"
    NO = "HTTP 200 with success: false"
    GONE = "410: the offer is no longer available"
    FORBIDDEN = "403: not for this key"


class Life(enum.Enum):
    """What may happen to an instance."""

    STUCK = "it loads for ever"
    OCI = "its container cannot be made"
    OUTBID = "it is killed, and stopped"
    EXITED = "its container dies"
    OFFLINE = "its host goes offline"
    RESURRECTS = "it is back, `after` seconds after it was destroyed for the first time"
    NO_KEY = "it gets no CONTAINER_API_KEY"
    NO_LOG = "its log can never be fetched"
    READ_ONLY = "no cache can be kept on its disk"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    how: Call | Life
    nth: int = 1
    of: str = "create"
    times: int = 1  # so many calls in a row
    after: float = 0.0
    when: Callable[[], bool] | None = None


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str  # without the query
    query: dict[str, str]
    body: Any
    by: str  # account, an instance's id, or nobody


def offer(id: int, price: float, **changes: Any) -> dict[str, Any]:
    """An offer that fits the usual filter, but for the changes."""
    return {
        "id": id,
        "ask_contract_id": id,
        "machine_id": id + 1000,
        "host_id": 7,
        "gpu_name": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram": 24564,
        "cpu_cores": None,
        "compute_cap": 890,
        "cuda_max_good": 13.0,
        "driver_version": "580.65.06",
        "verified": True,
        "verification": "verified",
        "external": False,
        "rentable": True,
        "reliability": 0.995,
        "reliability2": 0.995,
        "disk_space": 400.0,
        "inet_down": 800.0,
        "inet_up": 700.0,
        "inet_down_cost": 0.0,
        "inet_up_cost": 0.0,
        "storage_cost": 0.15,
        "dph_base": price,
        "min_bid": price / 2,
        "duration": 30 * 86400.0,
        "geolocation": "Norway, NO",
        **changes,
    }


def market() -> list[dict[str, Any]]:
    """Eight good machines, the cheapest first, and some that should not be taken."""
    good = [offer(101 + n, round(0.20 + 0.02 * n, 2)) for n in range(8)]
    bad = [
        offer(201, 0.05, verified=False, verification="unverified"),
        offer(202, 0.06, reliability=0.7),
        offer(203, 0.07, inet_up=3.0),
        offer(204, 0.08, cuda_max_good=12.2),
        offer(205, 0.09, duration=600.0),
        offer(206, 0.10, disk_space=9.0),
        offer(207, 0.21, inet_up_cost=0.5, inet_down_cost=None),
        offer(208, 0.11, gpu_name="RTX 3060"),
        offer(209, 0.12, rentable=False),
    ]
    return good + bad


@dataclass
class FakeVast:
    """The service. A context manager: it serves, and its instances live, inside the block."""

    folder: Path
    faults: Sequence[Fault] = ()
    offers: list[dict[str, Any]] = field(default_factory=market)
    speed: float = 60.0  # virtual seconds in one real second
    boot: float = 0.3  # real seconds until an instance is running
    late: float = 2.0
    env: Mapping[str, str] = field(default_factory=dict)  # for all instances
    key: str = "fake-account-key-0123456789"
    kind: type[Box] = Box  # vast_container.ContainerBox: as containers of the image asked for

    def __post_init__(self) -> None:
        self.lock, self._over = threading.RLock(), threading.Event()
        self.boxes: list[Box] = []
        self.requests: list[Asked] = []
        self.logs: dict[str, list[Any]] = {}  # by their secret name: how often asked, the text
        self._calls: Counter[str] = Counter()
        self._began, self._jumped = time.monotonic(), 0.0

    def __enter__(self) -> "FakeVast":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.fake = self
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticker.join()
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            for box in self.boxes:
                box.kill()

    # for tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """What a process on the user's side needs to find the service."""
        return {"VAST_URL": self.url, "VAST_API_KEY": self.key, "NO_PROXY": "127.0.0.1"}

    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return (time.monotonic() - self._began) * self.speed + self._jumped

    def advance(self, seconds: float) -> None:
        self._jumped += seconds

    def ledger(self) -> float:
        """Dollars spent on everything by now."""
        with self.lock:
            for box in self.boxes:
                box.bill(self.now())
            return sum(box.spent for box in self.boxes)

    def billing_now(self) -> float:
        """Dollars an hour for what there is now."""
        with self.lock:
            return sum(box.per_hour for box in self.boxes)

    @property
    def billing(self) -> list[Box]:
        with self.lock:
            return [box for box in self.boxes if box.per_hour > 0]

    def asked(self, method: str, path: str) -> list[Asked]:
        """The requests with that method whose path begins so."""
        return [
            each for each in self.requests if each.method == method and each.path.startswith(path)
        ]

    def outbid(self, box: Box) -> None:
        self._end(box, "stopped", "outbid", halted=True)

    def die(self, box: Box, status: str = "exited") -> None:
        self._end(box, status, "the host has trouble")

    def resume(self, box: Box) -> None:
        """Our bid wins again: the same container starts again."""
        with self.lock:
            box.bill(self.now())
            box.halted = False
            self._start(box)

    # for the wire

    def strikes(self, kind: str) -> Call | None:
        """Count a call; what happens to it."""
        with self.lock:
            self._calls[kind] += 1
            for each in self.faults:
                first = each.nth <= self._calls[kind] < each.nth + each.times
                if isinstance(each.how, Call) and each.of == kind and first:
                    return each.how
        return None

    def rent(self, offer: Mapping[str, Any], body: Mapping[str, Any], *, halted: bool) -> Box:
        with self.lock:
            number = len(self.boxes) + 1
            box = self.kind(7000 + number, offer, body, self.folder / f"box-{number}")
            box.open_account(self.now())
            box.halted, box.status = halted, "stopped" if halted else None
            if self._fated(number, Life.NO_KEY):
                box.key = ""
            self.boxes.append(box)
            return box

    def find(self, id: str) -> Box | None:
        """The instance of that id, unless it is destroyed."""
        with self.lock:
            found = [each for each in self.boxes if str(each.id) == id]
            return found[0] if found and found[0].status != "destroyed" else None

    def destroy(self, box: Box) -> None:
        with self.lock:
            first = box.status != "destroyed" and box.returns is None
            self._end(box, "destroyed", "")
            box.disk += 1
            if first and (fault := self._fated(self._number(box), Life.RESURRECTS)):
                box.returns = time.monotonic() + fault.after

    def loggable(self, box: Box) -> bool:
        return not self._fated(self._number(box), Life.NO_LOG)

    # life

    def _number(self, box: Box) -> int:
        return box.id - 7000

    def _fated(self, number: int, *ways: Life) -> Fault | None:
        for each in self.faults:
            if each.how in ways and each.nth == number:
                return each
        return None

    def _end(self, box: Box, status: str, message: str, *, halted: bool = False) -> None:
        with self.lock:
            box.bill(self.now())
            box.kill()
            box.status, box.message, box.halted = status, message, halted

    def _start(self, box: Box) -> None:
        box.bill(self.now())
        sick = self._fated(self._number(box), Life.READ_ONLY)
        cache = {"IGNITE_CACHE": "/proc/ignite"} if sick else {}
        box.start({"VAST_URL": self.url, "PUBLIC_IPADDR": "203.0.113.7", **self.env, **cache})

    def _tick(self) -> None:
        while not self._over.wait(0.02):
            with self.lock:
                for box in self.boxes:
                    self._live(box)

    def _live(self, box: Box) -> None:
        number, age = self._number(box), time.monotonic() - box.began
        if box.boots:
            if self._fated(number, Life.STUCK):
                box.status = "loading" if age > self.boot / 2 else "created"
            elif self._fated(number, Life.OCI):
                box.status = "created"
                box.message = "Error: OCI runtime create failed: no such device: unknown"
            elif age > self.boot:
                self._start(box)
            elif age > self.boot / 3:
                box.status = "loading" if age > self.boot * 2 / 3 else "created"
        elif box.status == "running":
            if box.ended() is not None:
                self._end(box, "exited", f"container exited with code {box.ended()}")
            elif box.lives == 1:
                self._strike(box, number, age)
        elif box.status == "destroyed" and box.returns and time.monotonic() > box.returns:
            box.returns = float("inf")  # once only
            self._start(box)

    def _strike(self, box: Box, number: int, age: float) -> None:
        fault = self._fated(number, Life.OUTBID, Life.EXITED, Life.OFFLINE)
        if fault and age >= fault.after and (fault.when is None or fault.when()):
            if fault.how is Life.OUTBID:
                self.outbid(box)
            else:
                self.die(box, "exited" if fault.how is Life.EXITED else "offline")
