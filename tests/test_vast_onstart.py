"""The first program on a box, on the stand-in for Vast.ai: whatever happens, the box goes.

All boxes of this file run at the same time, each with an errand that ends in another way. What
they run is a small bundle of the test's own, which notes what it was given.
"""

import base64
import hashlib
import io
import json
import os
import signal
import tarfile
from pathlib import Path

import pytest
from fakes.vast import Call, FakeVast, Fault, Life
from test_vast_client import until

from launchers.target import Errand, Offer
from launchers.vast.client import Client
from launchers.vast.order import VastOptions
from launchers.vast.target import Vast

SECRETS = {"STORE_TOKEN": "canary-" + "0123456789" * 60, "STORE_KEY": "canary-k"}
_BOOTSTRAP = """
import json, os, signal, sys, time
from pathlib import Path

errand = json.loads(Path(sys.argv[1]).read_text())
seen = {"errand": errand, "environ": dict(os.environ), "path": sys.path[0], "at": os.getcwd()}
note = Path(errand["store"].removeprefix("file://"), errand["name"])
lives = len(note.read_text().splitlines()) if note.exists() else 0
with note.open("a") as file:
    print(json.dumps(seen), file=file, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if errand["name"] == "quick":
    sys.exit(3)
if errand["name"] == "back" and lives:
    sys.exit(0)
time.sleep(60)
"""
# in the order of their making: the number of a box is its place here
NAMES = ("quick", "damaged", "late", "killed", "keyless", "told", "busy", "back", "paused")
LIMITS = {"late": 1.0}


def bundle():
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, text in (("launchers/__init__.py", ""), ("launchers/bootstrap.py", _BOOTSTRAP)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return held.getvalue()


class World:
    """All boxes, after each has come to its end."""

    def __init__(self, folder):
        self.store = folder / "store"
        (self.store / "bundle").mkdir(parents=True)
        data = bundle()
        self.digest = hashlib.sha256(data).hexdigest()
        (self.store / "bundle" / self.digest).write_bytes(data)
        (self.store / "bundle" / "damaged").write_bytes(data)
        self.fake = FakeVast(
            folder / "vast",
            [
                Fault(Life.NO_KEY, nth=1 + NAMES.index("keyless")),
                Fault(Life.RESURRECTS, nth=1 + NAMES.index("back"), after=0.3),
            ],
            boot=0.1,
        )
        self.boxes = {}

    def errand(self, name):
        digest = "damaged" if name == "damaged" else self.digest
        return Errand(name, 1, f"file://{self.store}", digest, LIMITS.get(name, 50.0))

    def rent(self):
        client = Client(self.fake.key, self.fake.url, spacing={})
        target = Vast(
            client, VastOptions(gpu="any"), lambda gpu, gpus: 1.0, lambda seconds: SECRETS
        )
        offers = target.client.search({})
        for name, row in zip(NAMES, offers, strict=False):
            target.create(self.errand(name), Offer(str(row["id"]), "", "any", 1, 0.0))
            self.boxes[name] = self.fake.boxes[-1]
        self.target = target

    def noted(self, name):
        try:
            lines = (self.store / name).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def first(self, name):
        """The process that the container began with."""
        return self.boxes[name]._process.pid

    def worker(self, name):
        (found,) = set(self.boxes[name].processes()) - {self.first(name)}
        return found

    def act(self):
        """What happens to those that would run on."""
        running = [name for name in NAMES if name not in ("quick", "damaged", "late")]
        until(lambda: all(self.noted(name) for name in running), 20)
        self.fake.outbid(self.boxes["paused"])
        os.kill(self.worker("killed"), signal.SIGKILL)
        os.kill(self.first("told"), signal.SIGTERM)
        os.kill(self.worker("keyless"), signal.SIGKILL)
        for name in ("busy", "back"):
            os.kill(self.worker(name), signal.SIGTERM)
        (note,) = self.boxes["paused"].folder.rglob("began")
        note.write_text(str(float(note.read_text()) - 3600))  # as if it had been a long pause
        self.fake.resume(self.boxes["paused"])

    def settled(self):
        gone = [box for name, box in self.boxes.items() if name != "keyless"]
        return (
            all(box.status == "destroyed" for box in gone)
            and self.boxes["keyless"].status == "exited"
            and self.boxes["back"].lives == 2
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    # so many destroys fail, whoever asks first
    made.fake.faults = [
        *made.fake.faults,
        Fault(Call.BUSY, of="destroy", nth=1),
        Fault(Call.GATEWAY, of="destroy", nth=3),
        Fault(Call.LOST, of="destroy", nth=5),
    ]
    with made.fake:
        made.rent()
        made.act()
        until(made.settled, 25)
        yield made


def test_nothing_bills_but_what_could_not_destroy_itself(world):
    assert [box.id for box in world.fake.billing] == [world.boxes["keyless"].id]


def test_what_the_launch_is_given(world):
    (seen,) = world.noted("quick")
    assert seen["errand"] == {
        "name": "quick",
        "attempt": 1,
        "store": f"file://{world.store}",
        "bundle": world.digest,
        "seconds": 50.0,
    }
    environ = seen["environ"]
    assert {name: environ[name] for name in SECRETS} == SECRETS
    assert environ["PYTHONPATH"] == seen["at"]
    assert not [name for name in environ if name.startswith("IGNITE_SECRET")]
    assert "CONTAINER_API_KEY" not in environ  # the launch does not need it


def test_the_end_is_told(world):
    assert "ended with exit code 3: destroying this box" in world.boxes["quick"].printed()
    assert "ended with exit code 75" in world.boxes["told"].printed()
    assert "ended with exit code 137" in world.boxes["killed"].printed()


def test_another_bundle_is_refused(world):
    assert world.noted("damaged") == []
    assert "the bundle is not what was sent" in world.boxes["damaged"].printed()


def test_a_box_ends_when_its_time_is_over(world):
    assert "its time is over" in world.boxes["late"].printed()


def test_a_box_that_was_paused_has_no_more_time(world):
    printed = world.boxes["paused"].printed()
    assert world.boxes["paused"].lives == 2
    assert "its time is over" in printed


def test_a_box_without_a_key_says_so(world):
    box = world.boxes["keyless"]
    assert "CANNOT DESTROY THIS BOX: it was given no key" in box.printed()
    assert box.message == "container exited with code 69"


def test_destroying_is_repeated(world):
    tries = world.fake.asked("DELETE", "/api/v0/instances/")
    assert len(tries) > len(NAMES)
    assert {each.by for each in tries} <= {str(box.id) for box in world.boxes.values()}


def test_a_box_that_is_back_goes_again(world):
    assert len(world.noted("back")) == 2


def test_no_secret_is_printed_or_sent_in_the_clear(world):
    out = "".join(box.printed() for box in world.boxes.values())
    sent = json.dumps([each.body for each in world.fake.requests])
    keys = [box.key for box in world.boxes.values() if box.key]
    assert len(keys) == len(NAMES) - 1
    for secret in (*SECRETS.values(), *keys, world.fake.key):
        assert secret not in out and secret not in sent
    pieces = next(each.body["env"] for each in world.fake.asked("PUT", "/api/v0/asks/"))
    assert json.loads(base64.b64decode("".join(pieces.values()))) == SECRETS


def test_an_error_with_a_secret_in_it_is_cleaned(capfd, monkeypatch, tmp_path):
    from launchers.vast import onstart

    monkeypatch.setattr(onstart, "variables", lambda: {"A": "canary-a"})
    monkeypatch.setattr(onstart, "install", lambda protocol: None)
    monkeypatch.setattr(onstart, "fetch", lambda errand: _raise("denied to canary-a"))
    monkeypatch.setattr(os, "_exit", lambda code: _raise(f"exit {code}"))
    monkeypatch.delenv("A", raising=False)
    with pytest.raises(RuntimeError, match="exit 1"):
        onstart.work({"store": "file:///x"}, str(tmp_path), float("inf"))
    monkeypatch.delenv("A")
    assert "RuntimeError: denied to ***" in capfd.readouterr().out


def _raise(text):
    raise RuntimeError(text)


def test_the_packages_of_the_image_are_kept(monkeypatch):
    from importlib.metadata import version

    from launchers.vast import onstart

    asked = []

    def run(command, **_):
        asked.append((command, Path(command[command.index("-c") + 1]).read_text()))

    monkeypatch.setattr(onstart.subprocess, "run", run)
    onstart.install("file")
    assert asked == []  # all is there
    monkeypatch.setattr(onstart.importlib.util, "find_spec", lambda name: None)
    onstart.install("gs")
    ((command, kept),) = asked
    assert command[-2:] == ["fsspec", "gcsfs"]
    assert f"torch=={version('torch')}\n" in kept and f"numpy=={version('numpy')}\n" in kept
