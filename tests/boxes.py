"""An order in a store, and a box that carries it out with nothing but the bundle."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from commands import TOY
from pipelines import SETTINGS

from launchers import bundle
from launchers.launches import Launch, Order
from pipeline import recipe
from pipeline.store.places import open_store

MACHINE = TOY[2 * len(SETTINGS) :]


def ordered(place: str, corpus: Path, *settings: str, name: str = "ignite-tiny-0000aa") -> Launch:
    """A launch with an order for the toy pipeline, and its bundle, in the store."""
    store = open_store(place)
    tree = recipe.load("tiny", data=str(corpus), settings=(*SETTINGS, *settings)).tree()
    packed = bundle.make()
    options = {"store": place, "floors": {"disk": 0.0, "store": 0.0}}
    launch = Launch(store, name)
    launch.place(Order(name, "test", tree, MACHINE, packed.digest, options))
    bundle.send(packed, store)
    return launch


def unpack(folder: Path, data: bytes) -> Path:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def errand(folder: Path, launch: Launch, attempt: int, seconds: float | None = None) -> Path:
    told = {"name": launch.name, "attempt": attempt, "seconds": seconds}
    told |= {"store": launch.store.place, "bundle": launch.order().bundle}
    file = folder / "errand.json"
    file.write_text(json.dumps(told))
    return file


def start_box(folder: Path, launch: Launch, attempt: int = 1, seconds: float | None = None):
    """A process that has nothing of this checkout but the bundle; its output in one pipe."""
    code = launch.store.read(bundle.name_of(launch.order().bundle))
    unpack(folder, code)
    file = errand(folder, launch, attempt, seconds)
    environment = {**os.environ, "IGNITE_TELL_EVERY": "0.2", "IGNITE_CACHE": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)
    return subprocess.Popen(
        [sys.executable, "-m", "launchers.bootstrap", str(file)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
