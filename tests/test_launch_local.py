"""`launch local` on the Docker engine that answers here: exit codes, signals, and nothing left.

Most run a small image whose program is the text that it is given, as a shell script.

IGNITE_TEST_BASE_IMAGE    what that image is built on, if not busybox
IGNITE_TEST_IMAGE         the project's own image, for the tests that train in it
"""

import contextlib
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from commands import ROOT, TOY, launch, pipeline, start

from launchers.local import command as local_module

docker = pytest.importorskip("docker", reason="the Docker SDK is not installed: .[docker]")
pytestmark = pytest.mark.container

DOCKERFILE = """
FROM {base}
RUN mkdir -p /work/artifacts
WORKDIR /work
ENTRYPOINT ["sh", "-c", "while [ \\"$1\\" != --data ]; do shift; done; exec sh $2", "-"]
"""
SAVES = "trap 'echo saved; exit 75' TERM\necho ready\nwhile :; do sleep 0.05; done\n"
HOLDS_ON = "trap 'echo not yet' TERM\necho ready\nwhile :; do sleep 0.05; done\n"
WAIT = 60.0  # seconds that anything here may take


@pytest.fixture(scope="session")
def client():
    try:
        found = docker.from_env()
        found.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine: {error}")
    yield found
    found.close()


@pytest.fixture(scope="session")
def image(client):
    """A small image; it is gone at the end."""
    name = f"ignite-test-launch:{secrets.token_hex(4)}"
    text = DOCKERFILE.format(base=os.environ.get("IGNITE_TEST_BASE_IMAGE", "busybox")).encode()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    context.seek(0)
    try:
        client.images.build(fileobj=context, custom_context=True, tag=name, rm=True)
    except docker.errors.DockerException as error:
        pytest.skip(f"the image for tests cannot be built: {error}")
    yield name
    client.images.remove(name, force=True)


@pytest.fixture
def here(client, tmp_path, monkeypatch):
    """A directory of one's own, whose containers are removed whatever happens."""
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IGNITE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ours(client, tmp_path):
        client.api.remove_container(name, force=True)


def ours(client, here: Path) -> list[str]:
    """Names of the containers on the store of this test, dead or alive."""
    label = f"org.ignite-llm.store={here / 'artifacts'}"
    found = client.api.containers(all=True, filters={"label": label})
    return [each["Names"][0].removeprefix("/") for each in found]


def words(image: str, here: Path, script: str, *more: str) -> list[str]:
    (here / "script").write_text(script)
    return ["local", "--cpu", "--image", image, "--data", "script", *more]


@pytest.fixture
def running(image, here):
    """Start `launch local` as a process; it has printed ``ready``."""
    started = []

    def begin(script: str, ready: str = "ready\n", **options) -> subprocess.Popen:
        process = start(*words(image, here, script), program="launchers.cli", **options)
        started.append(process)
        assert process.stdout.readline() == ready, process.stderr.read()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def until(true, what: str) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, f"{what} has not come about"
        time.sleep(0.05)


# to the end


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_and_every_byte_pass_through(client, image, here, code):
    """What is no UTF-8 as well (engines log it as U+FFFD), and a last line without an end."""
    script = f"printf 'a\\377\\n'; echo error >&2; printf 'the end'; exit {code}"
    with (here / "out").open("wb") as out:
        process = start(*words(image, here, script), program="launchers.cli", stdout=out)
        said = process.communicate(timeout=WAIT)[1]
    assert process.returncode == code
    # two pipes: the engine may see them in another order
    found = (here / "out").read_bytes()
    assert found.count(b"error\n") == 1
    found = found.replace(b"error\n", b"").replace("\ufffd".encode(), b"\xff")
    assert found == b"a\xff\nthe end"
    assert said == "" if code == 0 else said.endswith(f"ended with exit code {code}\n")
    assert ours(client, here) == []
    assert list((here / "cache" / "launch").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_it_save_and_end(client, here, running, number):
    process = running(SAVES)
    (name,) = ours(client, here)
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, out) == (75, "saved\n")
    assert "stopping as soon as all is saved (Ctrl-C again: at once)" in err
    assert err.splitlines()[-1].startswith("stopped. Go on with: launch local --cpu --image")
    assert name not in err and ours(client, here) == []


def test_a_second_ctrl_c_kills(client, here, running):
    process = running(HOLDS_ON)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "not yet\n"
    time.sleep(0.6)  # two signals within half a second are one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT)
    assert process.returncode == 137
    assert ours(client, here) == []


def test_a_start_that_fails_leaves_nothing(client, image, here, monkeypatch):
    """The engine makes the container before it finds that it has no such device."""
    request = {"count": -1, "capabilities": [["gpu", "ignite-no-such-capability"]]}
    monkeypatch.setattr(local_module, "device_request", lambda info, gpus: request)
    monkeypatch.setattr(local_module.images, "VARIANTS", ("cpu",))
    given = [word for word in words(image, here, "exit 0") if word != "--cpu"]
    said = launch(*given)
    assert said.code == 1 and said.out == ""
    assert said.err.startswith("error: cannot start the container ignite-tiny-")
    assert "could not select device driver" in said.err
    assert ours(client, here) == []
    assert list((here / "cache" / "launch").iterdir()) == []


def test_an_image_that_is_nowhere(client, here):
    said = launch(*words("localhost:1/ignite-test-none:x", here, "exit 0"))
    assert said.code == 1 and "is not here and cannot be pulled" in said.err
    assert ours(client, here) == [] and not (here / "artifacts").exists()


def test_a_reader_that_left_stops_it(client, here, running):
    """As it stops a program in a pipe; but what it does is saved."""
    script = "trap 'echo saved > artifacts/saved; exit 75' TERM\necho ready\n"
    process = running(script + "while :; do echo more; sleep 0.05; done")
    process.stdout.close()
    assert process.wait(WAIT) == 1
    assert process.stderr.read() == ""
    assert (here / "artifacts" / "saved").exists() and ours(client, here) == []


def test_files_belong_to_the_caller(client, image, here, monkeypatch):
    """Whoever that is: only root can try to be another one."""
    mine = os.getuid() or 12345
    monkeypatch.setattr(os, "getuid", lambda: mine)
    monkeypatch.setattr(os, "getgid", lambda: mine)
    (here / "artifacts").mkdir()
    os.chown(here / "artifacts", mine, mine)
    said = launch(*words(image, here, "mkdir artifacts/log; echo a > artifacts/log/a; id -u"))
    assert (said.code, said.out) == (0, f"{mine}\n")
    made = (here / "artifacts", *(here / "artifacts").rglob("*"))
    assert len(made) == 3 and {path.stat().st_uid for path in made} == {mine}


def test_what_it_may_only_read(client, image, here):
    (here / "other").mkdir()
    script = "touch /data/script; touch /from/0/a; touch artifacts/a && touch /cache/a && echo both"
    said = launch(*words(image, here, script, "--from", "other"))
    assert "both\n" in said.out and said.out.lower().count("read-only") == 2


# from another process


def test_a_launcher_that_was_killed_leaves_what_the_next_one_removes(client, image, here, running):
    process = running("echo ready\nwhile [ ! -e artifacts/end ]; do sleep 0.05; done; exit 3")
    process.kill()
    process.communicate()
    (name,) = ours(client, here)
    (entry,) = [e for e in json.loads(launch("ps", "--json").out)["workers"] if e["owner"] == name]
    assert (entry["state"], entry["where"], entry["stage"]) == ("running", "docker", "-")
    said = launch(*words(image, here, "echo other"))
    assert (said.code, said.out) == (0, "other\n") and ours(client, here) == [name]

    (here / "artifacts" / "end").touch()
    until(lambda: f"{name}  exited (3)" in launch("ps").out, "its end")
    said = launch(*words(image, here, "echo other"))
    assert f"removed {name}, exited (3): its launcher is gone" in said.err
    assert ours(client, here) == []


def test_a_run_that_goes_on_alone(client, image, here):
    """Watched, listed and stopped from elsewhere."""
    said = launch(*words(image, here, SAVES, "--detach"))
    assert said.code == 0
    name, rest = said.out.split(" ", 1)
    assert rest == f"has started\n  watch: launch logs -f {name}\n  stop:  launch stop {name}\n"
    assert ours(client, here) == [name]
    until(lambda: launch("logs", name).out == "ready\n", "its first line")
    following = start("logs", "-f", name[:-1], program="launchers.cli")
    assert following.stdout.readline() == "ready\n"
    assert launch("pull", name).out == f"all of {name} lies in {here / 'artifacts'} already\n"
    said = launch("stop", name)
    assert said.out.startswith(f"{name}: checkpointing...")
    assert said.out.endswith(f"{name}: ended with exit code 75\n")
    assert following.communicate(timeout=WAIT) == ("saved\n", "") and following.returncode == 0
    assert ours(client, here) == []


def test_stopped_from_elsewhere_the_launcher_tells_the_code(client, here, running):
    process = running(SAVES)
    (name,) = ours(client, here)
    assert launch("stop", name).out.endswith(f"{name}: ended with exit code 75\n")
    assert process.communicate(timeout=WAIT)[0] == "saved\n" and process.returncode == 75
    assert ours(client, here) == []


def test_a_reader_of_a_log_that_left_stops_nothing(client, image, here):
    name = launch(*words(image, here, f"echo once\n{SAVES}", "-d")).out.split()[0]
    until(lambda: "ready" in launch("logs").out, "its first lines")
    for more in ([], ["-f"]):
        reading, writing = os.pipe()
        os.close(reading)
        process = start("logs", *more, program="launchers.cli", stdout=writing)
        os.close(writing)
        assert process.communicate(timeout=WAIT)[1] == "" and process.returncode == 1
    assert launch("stop", name).out.endswith("ended with exit code 75\n")


def test_stop_now_waits_for_nothing(client, image, here):
    name = launch(*words(image, here, HOLDS_ON, "-d")).out.split()[0]
    assert launch("stop", name, "--now").out == f"{name}: ended with exit code 137\n"
    assert ours(client, here) == []


# what breaks


class Cable:
    """A socket in front of the engine's, whose connections can be cut."""

    def __init__(self, there: str, here: Path) -> None:
        self.there, self.open = there, []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(here))
        self.socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.socket.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.there)
            self.open += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.clear()


def test_a_log_that_breaks_is_gone_on_with(client, here, running, monkeypatch, tmp_path_factory):
    """Every line once, whatever was cut; and the exit code at the end."""
    engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not engine.startswith("unix://"):
        pytest.skip(f"cannot be put in front of {engine}")
    near = tmp_path_factory.mktemp("s") / "s"
    cable = Cable(engine.removeprefix("unix://"), near)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{near}")
    script = "i=0\nwhile [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.05; done; exit 5\n"
    process = running(script, ready="line 0\n")
    cuts = threading.Event()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line in ("line 5\n", "line 25\n"):
            cable.cut()
            cuts.set()
    assert cuts.is_set() and lines == [f"line {at}\n" for at in range(1, 60)]
    assert process.wait(WAIT) == 5, process.stderr.read()
    assert ours(client, here) == []
    cable.socket.close()


def test_a_container_that_somebody_removes(client, here, running):
    process = running(HOLDS_ON)
    (name,) = ours(client, here)
    client.api.remove_container(name, force=True)
    err = process.communicate(timeout=WAIT)[1]
    assert process.returncode in (1, 137), "137 if it was seen between its end and its removal"
    assert err.count("\n") == 1 and "Traceback" not in err
    assert ours(client, here) == [] and list((here / "cache" / "launch").iterdir()) == []


# the project's image


# one digest of all code that keys may depend on
CODE = """
import hashlib, pathlib, model, pipeline
folders = [pathlib.Path(package.__file__).parent for package in (model, pipeline)]
files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
print(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
"""


@pytest.fixture(scope="session")
def project(client):
    """The project's image. Other code makes other keys, so it must be of these sources."""
    name = os.environ.get("IGNITE_TEST_IMAGE")
    if not name:
        pytest.skip("IGNITE_TEST_IMAGE names no image of the project: make one with docker build")
    inside = client.containers.run(name, ["python", "-c", CODE], remove=True)
    outside = subprocess.check_output([sys.executable, "-c", CODE], cwd=ROOT)
    if inside != outside:
        pytest.skip(f"{name} is of other sources than these: build it again")
    return name


def test_a_run_in_the_image_is_seen_outside(client, project, here, corpus):
    said = launch("local", "--cpu", "--image", project, "--data", corpus, *TOY)
    assert said.code == 0, said.out + said.err
    assert "bits per byte" in said.out and ours(client, here) == []
    told = json.loads(pipeline("status", "--json").out)
    assert {stage["state"] for stage in told["stages"].values()} == {"done"}
    again = launch("local", "--cpu", "--image", project, "--data", corpus, *TOY)
    assert again.code == 0 and "nothing to do" in again.out


def test_a_run_in_the_image_is_stopped_and_gone_on_with(client, project, here, corpus):
    long = ["--set", "train.steps=100000", "--set", "train.eval_every=100000"]
    given = ("local", "--cpu", "--image", project, "--data", corpus, *TOY, *long)
    process = start(*given, program="launchers.cli")
    try:
        until(lambda: "train" in launch("ps").out, "training")
        (work,) = json.loads(launch("ps", "--json").out)["workers"]
        assert work["owner"].startswith(ours(client, here)[0]) and work["state"] == "running"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    assert process.returncode == 75, out + err
    assert "Go on with: launch local" in err and ours(client, here) == []
    told = json.loads(pipeline("status", "--json").out)["stages"]["train"]
    assert told["state"] == "interrupted" and told["checkpoint_step"] > 0
