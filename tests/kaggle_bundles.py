"""Launches on Kaggle whose boxes do what a test wants: our real bundle with another bootstrap."""

import functools
import gzip
import hashlib
import io
import tarfile
import time

from pipelines import SETTINGS

from launchers import bundle
from launchers.kaggle.target import Kaggle
from launchers.launches import Launch, Order
from launchers.target import Errand
from pipeline import recipe

NAME = "ignite-tiny-0000aa"
# what a box of ours does with its store, in a moment
WORKS = """
from launchers.launches import Launch
from pipeline.engine import log
from pipeline.engine.log import Claim
from pipeline.store.places import open_store

store = open_store(errand["store"])
launch = Launch(store, errand["name"])
launch.tell(errand["attempt"], state="running")

def put(data):
    with store.scratch() as scratch:
        (scratch / "file").write_bytes(data)
        return {"digest": store.put(scratch / "file"), "size": len(data)}

for key in log.keys(store):
    seen = log.read(store, key)
    print(key[:4], [entry.body["step"] for entry in seen.checkpoints], flush=True)
    claim = Claim.take(store, key, seen, "a-box", {"record": seen.record})
    step = 10 + max((entry.body["step"] for entry in seen.checkpoints), default=0)
    claim.append("checkpoint", {"step": step, "files": {"state": put(b"state %d" % step)}})
    claim.release("interrupted")
launch.print(errand["attempt"], 0, b"hello\\n")
"""
ENDS = WORKS + 'launch.tell(errand["attempt"], state="ended", code=75)\nsys.exit(75)\n'
# of two sessions the second one finishes
PATIENT = (
    WORKS
    + """
time.sleep(0.3)
code = 75 if errand["attempt"] < 2 else 0
launch.tell(errand["attempt"], state="ended", code=code)
sys.exit(code)
"""
)
HANGS = WORKS + 'print("hangs", flush=True)\ntime.sleep(60)\n'
_HEAD = """
import json, os, sys, time
from pathlib import Path

errand = json.loads(Path(sys.argv[1]).read_text())
"""


@functools.cache
def stand_in(bootstrap: str) -> bundle.Bundle:
    """The bundle whose bootstrap is this piece of code; it finds ``errand``."""
    raw = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(bundle.make().data)) as ours,
        tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as made,
    ):
        for member in ours:
            data = ours.extractfile(member).read()
            if member.name == "launchers/bootstrap.py":
                data = (_HEAD + bootstrap).encode()
                member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    data = gzip.compress(raw.getvalue(), mtime=0)
    return bundle.Bundle(hashlib.sha256(data).hexdigest(), data)


def kaggle(store, **options):
    return Kaggle(store, pause=lambda seconds: time.sleep(0.02), **options)


def launched(store, bootstrap, name=NAME, place="", **options):
    """A launch with an order; and the errand of its first attempt."""
    packed = stand_in(bootstrap)
    tree = recipe.load("tiny", settings=SETTINGS).tree()
    options = {"store": place}
    Launch(store, name).place(Order(name, "kaggle", tree, [], packed.digest, options))
    store.create(f"bundle/{packed.digest}", packed.data)
    return Errand(name, 1, place, packed.digest, None)


def push(target, errand):
    return target.create(errand, target.offers()[0])


def only(target):
    (box,) = target.boxes()
    return box
