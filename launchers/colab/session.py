"""One session of a run on a notebook's machine: a box that begins by itself.

    python -m launchers.colab.session train ERRAND.json [MIRROR SECONDS]    in an unpacked bundle
    python -m launchers.colab.session show ERRAND.json [samples]

``train`` installs what is missing, takes the run so far from Drive (MIRROR, if the store is this
machine's own disk), does the errand as a box anywhere does it, and copies to Drive every SECONDS
and at the end. It saves and ends when the kernel that started it is gone. On one machine one at a
time does it: whoever runs all cells again waits until the session before has saved.

The exit code is the box's, or 74 if in the end not all is on Drive.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from launchers import bootstrap
from launchers.bootstrap import ENDS
from launchers.colab.cells import INTERRUPTED, UNSAVED
from pipeline.errors import Interrupted, StoreError
from pipeline.store.locks import alone

_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS_JSON"


def train(file: Path, asked: threading.Event, mirror: str = "", seconds: float = 300.0) -> int:
    """Do the errand; the exit code. Raises Interrupted if it is ``asked`` to end before."""
    told = threading.Event()

    def waiting() -> None:
        if asked.is_set():
            raise Interrupted
        if not told.is_set():
            print("the session before this one still saves: waiting for it", flush=True)
        told.set()

    with _with_kernel(), alone(file, waiting), _opened():
        return _train(file, asked, mirror, seconds)


@contextlib.contextmanager
def _with_kernel() -> Iterator[None]:
    """Let this process be asked to end when the one that started it is gone."""
    parent, ended = os.getppid(), threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)  # again, until it is heard

    thread = threading.Thread(target=look, name="kernel", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _opened() -> Iterator[None]:
    """Google's libraries want a key as a file: it is one for as long as this lasts."""
    if _GOOGLE not in os.environ:
        yield
        return
    from launchers.credentials import settle

    with tempfile.TemporaryDirectory(prefix="ignite-") as folder:
        os.environ.update(settle({_GOOGLE: os.environ[_GOOGLE]}, Path(folder)))
        yield


def _train(file: Path, asked: threading.Event, mirror: str, seconds: float) -> int:
    from launchers.colab.mirror import Mirror, copying
    from launchers.launches import Launch, Order
    from pipeline.store.places import open_store

    errand = json.loads(file.read_text())
    data = file.with_name("order.json").read_bytes()
    order = Order.read(data)
    if order.seconds is not None:
        os.environ[ENDS] = str(order.at + order.seconds)
        if time.time() >= order.at + order.seconds:
            print("the deadline of this launch is over: all that was made is saved", flush=True)
            raise Interrupted
    launch = Launch(open_store(errand["store"]), errand["name"])
    copy = Mirror(launch, mirror) if mirror else None
    if copy is not None:
        copy.pull()
    launch.store.create(f"launch/{launch.name}/order", data)
    _begin(launch, copy)
    if asked.is_set():
        raise Interrupted
    with copying(copy, seconds) as arrived:
        code = bootstrap.main([str(file)])
        _end(launch, code)
    return code if arrived() else UNSAVED


def _begin(launch: Any, mirror: Any) -> None:
    """Whoever runs the cells wants it to run: an earlier wish that it stop is over, and so is an
    earlier session that could not say that it ended."""
    from launchers.history import history

    for store in (launch.store, *([mirror.target] if mirror else [])):
        store.remove(f"launch/{launch.name}/stop")
    current = history(launch.events()).current
    if current is not None:
        launch.append("left", attempt=current.number, why="another session has begun")


def _end(launch: Any, code: int) -> None:
    """Say in the store how it ended, for people: the run itself does not depend on it."""
    from launchers.history import FINISHED, history

    with contextlib.suppress(StoreError):
        told = history(launch.events())
        if told.current is not None:
            why = launch.box(told.current.number).get("why", "")
            launch.append("left", attempt=told.current.number, why=why, code=code)
        if code == 0 and told.over is None:
            launch.append("over", outcome=FINISHED, why="every stage has its result")


def show(file: Path, samples: bool) -> None:
    """Print how far the run is and, if it has written any, its samples."""
    from launchers.box import toml
    from launchers.launches import Order

    errand = json.loads(file.read_text())
    order = Order.read(file.with_name("order.json").read_bytes())
    recipe = file.with_name("recipe.toml")
    recipe.write_text(toml(order.recipe), encoding="utf-8")
    options = ["--store", errand["store"], "--recipe", str(recipe)]
    with _opened():
        for verb in ("status", "sample") if samples else ("status",):
            subprocess.run([sys.executable, "-m", "pipeline", verb, *options], check=False)


class Shown:
    """What is printed, for as long as somebody reads it: a kernel that is gone does not."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(BrokenPipeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stream.flush()


def main(arguments: list[str]) -> int:
    """The exit code."""
    asked = threading.Event()
    sys.stdout = cast(TextIO, Shown(sys.stdout))
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    verb, file = arguments[0], Path(arguments[1])
    try:
        bootstrap.install(json.loads(file.read_text())["store"])
        if verb == "show":
            show(file, "samples" in arguments)
            return 0
        return train(file, asked, *arguments[2:3], *map(float, arguments[3:]))
    except Interrupted:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        from pipeline.redact import redacted

        print(f"error: {redacted(str(error))}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
