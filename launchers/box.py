"""What a machine elsewhere does once all is installed: look at itself, train, and tell.

It tells through the store alone: every few seconds what it does and the end of what it printed, and
there it looks whether somebody wants it to stop. Then, when its time is nearly over, or on SIGTERM,
`pipeline run` saves all and ends with exit code 75. Nobody can reach this machine, and nobody must.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from launchers.bootstrap import ENDS, ROOT
from launchers.credentials import settle
from launchers.health import Floors, look
from launchers.judging import NOT_ALLOWED, UNHEALTHY
from launchers.launches import Launch, Order
from pipeline.cli.process import EXIT_INTERRUPTED, signals
from pipeline.errors import StoreError
from pipeline.preflight import FAIL
from pipeline.redact import redacted
from pipeline.store.places import open_store
from pipeline.store.store import Store

EVERY = 10.0  # seconds between two words to the store
_PIECE = 1 << 16  # bytes of output that are one record
_MOST = 1 << 24  # bytes of output that are kept
_LEAVING, _SHARE = 300.0, 0.1  # seconds, or of the time: to send the last checkpoint, and to end


class Teller:
    """Tells the store what this box does and prints; a context manager with a thread of its own.

    A store that is away for a while misses some words. It is asked again at the next beat, and the
    run does not wait for it.
    """

    def __init__(self, launch: Launch, attempt: int, every: float) -> None:
        self.launch, self.attempt, self.every = launch, attempt, every
        self.told: dict[str, Any] = {"state": "checking", "started": time.time()}
        self.asked: str | None = None
        self._text, self._sent, self._piece = bytearray(), 0, 0
        self._lock, self._telling = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)

    def __enter__(self) -> "Teller":
        while self.launch.printed(self.attempt, self._piece) is not None:
            self._piece += 1  # of this box before it was paused
        self.tell()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError, OSError):
            self._flush()

    def say(self, line: str) -> None:
        """Print a line, here and where others can read it; secrets are taken out."""
        line = redacted(line)
        print(line, flush=True)
        with self._lock:
            if len(self._text) + self._piece * _PIECE < _MOST:
                self._text += line.encode() + b"\n"

    def tell(self, **more: Any) -> None:
        """Change what is told, and tell it now; nothing that was told before comes after it."""
        with self._telling:
            self.told |= more
            self.launch.tell(self.attempt, **self.told)

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            with contextlib.suppress(StoreError, OSError):
                self.tell()
                self.asked = self.asked or self.launch.stopping()
                self._flush()

    def _flush(self) -> None:
        """Send what was printed since, as whole pieces and the beginning of the next."""
        with self._lock:
            text = bytes(self._text)
        if len(text) == self._sent:
            return
        while len(text) >= _PIECE:
            self.launch.print(self.attempt, self._piece, text[:_PIECE])
            with self._lock:
                del self._text[:_PIECE]
            self._piece, text, self._sent = self._piece + 1, text[_PIECE:], 0
        self.launch.print(self.attempt, self._piece, text)
        self._sent = len(text)


def run(errand: dict[str, Any], order: bytes | None) -> int:
    """Do the errand; the exit code. ``order`` came along where the store is this box's own."""
    settled = settle(os.environ, Path(tempfile.gettempdir()) / "ignite-keys")
    for name in os.environ.keys() - settled.keys():  # what is a file now
        del os.environ[name]
    os.environ.update(settled)
    store = open_store(errand["store"])
    launch = Launch(store, errand["name"])
    if order is not None:
        store.create(f"launch/{launch.name}/order", order)
    wanted = launch.order()
    if errand["attempt"] and (why := _passed(launch, errand["attempt"])):
        print(f"there is nothing to do: {why}", flush=True)
        return EXIT_INTERRUPTED
    attempt = errand["attempt"] or join(launch)
    every = float(os.environ.get("IGNITE_TELL_EVERY", EVERY))
    taken = threading.Event()  # its host tells this machine to end
    with Teller(launch, attempt, every) as teller, signals(lambda *_: taken.set()):
        teller.told["where"] = here()
        try:
            code = _work(teller, taken, wanted, store, errand["store"])
        except BaseException as error:
            teller.say(f"error: {type(error).__name__}: {error}")
            teller.tell(state="ended", code=1, why=redacted(str(error)))
            raise
        teller.tell(state="ended", code=code, taken=taken.is_set())
    return code


def _passed(launch: Launch, attempt: int) -> str | None:
    """Why an attempt is not to be made any more: boxes come back after they were given up. One that
    was not allowed what it needs may try again: whoever allows it may start it by hand."""
    for event in launch.events():
        left = event.kind == "left" and event.attempt == attempt
        if event.kind == "over" or (left and event.body.get("code") != NOT_ALLOWED):
            return f"attempt {attempt} was given up: {event.body.get('why')}"
    word = launch.box(attempt)
    if word.get("state") == "ended" and word.get("code") != NOT_ALLOWED:
        return f"attempt {attempt} has ended"
    return None


def join(launch: Launch) -> int:
    """The number of a new attempt that this box begins by itself, as in a notebook."""
    while True:
        attempt = 1 + max((event.attempt for event in launch.events()), default=0)
        if launch.append("created", attempt=attempt, id=here()):
            return attempt


def here() -> str:
    import platform

    return platform.node() or "host"


def _work(teller: Teller, taken: threading.Event, order: Order, store: Store, place: str) -> int:
    device = _told(order.machine, "--device") or "auto"
    floors = Floors(**order.options.get("floors", {}))
    checks = look(device, place, store, floors)
    for check in checks:
        teller.say(f"{check.state:4} {check.name}: {check.words}")
    if bad := [f"{check.name}: {check.words}" for check in checks if check.state == FAIL]:
        teller.told["why"] = "; ".join(bad)
        return UNHEALTHY
    if taken.is_set() or teller.launch.stopping():
        return EXIT_INTERRUPTED
    teller.tell(state="running", trained=True)
    return train(teller, taken, command(order, place))


def _told(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def command(order: Order, place: str) -> list[str]:
    """The very `pipeline run` that would do it elsewhere, with the time that is left."""
    recipe = Path.cwd() / f"{order.name}.toml"
    recipe.write_text(toml(order.recipe), encoding="utf-8")
    words = [sys.executable, "-m", "pipeline", "run", "--store", place, "--recipe", str(recipe)]
    words += order.machine
    if ENDS in os.environ:
        left = float(os.environ[ENDS]) - time.time()
        words += ["--stop-after", f"{max(1, int(left - min(_LEAVING, _SHARE * left)))}s"]
    return words


def toml(tree: dict[str, Any]) -> str:
    """A recipe's tree as the file that --recipe takes. JSON's scalars are TOML's as well."""
    lines = [f"size = {json.dumps(tree['size'])}"]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines.append(f"[{section}]")
            lines += [
                f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
            ]
    return "\n".join(lines) + "\n"


def train(teller: Teller, taken: threading.Event, words: list[str]) -> int:
    """Run it, tell what it prints, and pass on that it is to stop; its exit code."""
    environment = {"IGNITE_AGAIN": f"launch watch {teller.launch.name}", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    reader = threading.Thread(target=_read, args=(process, teller), daemon=True)
    reader.start()
    told = False
    while process.poll() is None:
        time.sleep(0.2)
        if (taken.is_set() or teller.asked) and not told:
            teller.say(f"stopping: {teller.asked or 'this machine is taken away'}")
            process.send_signal(signal.SIGTERM)
            told = True
    reader.join(timeout=10)
    if told and process.returncode == -signal.SIGTERM:
        return EXIT_INTERRUPTED  # it had not begun to listen, nor to work
    return process.returncode


def _read(process: subprocess.Popen, teller: Teller) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        teller.say(line.decode("utf-8", "replace").rstrip("\n"))
