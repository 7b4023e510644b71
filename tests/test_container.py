"""The image and Compose, for real: on whatever Docker engine answers here.

Not among the tests of every change: ``pytest -m container``.
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from commands import TOY
from containers import SECRET, check_out, containers, docker, inspected, no_engine
from pipelines import digests, run, toy_engine

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(no_engine() is not None, reason=f"no Docker engine: {no_engine()}"),
]
OWNER = 12345 if os.getuid() == 0 else os.getuid()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A user's checkout, its image built; what Compose made goes at the end."""
    made = check_out(tmp_path_factory.mktemp("checkout"), f"ignite-{secrets.token_hex(3)}", OWNER)
    told = made.compose("build", "train-tiny", HF_TOKEN=SECRET, AWS_SECRET_ACCESS_KEY=SECRET)
    assert told.code == 0, told.err[-3000:]
    yield made
    for name in containers(made.name):
        docker("rm", "--force", name)
    made.compose("--profile", "run", "down", "--volumes", "--remove-orphans")


@pytest.fixture
def fresh(checkout, tmp_path):
    """The checkout with an empty ``artifacts`` that nobody has made yet."""
    store = checkout.root / "artifacts"
    subprocess.run(["rm", "-rf", str(store)], check=True)
    return checkout


def test_a_run_in_a_container_is_the_run_outside(fresh, corpus, tmp_path):
    """The same keys, and the same bytes of tokenizer and tokens; the weights may differ, because
    another processor or libm may add floats otherwise."""
    here, there = toy_engine(tmp_path, corpus), toy_engine(fresh.root / "artifacts", corpus)
    run(here)
    inside = fresh.run("train-tiny", *TOY, DATA=str(corpus))
    assert inside.code == 0, inside.err[-3000:]
    assert "bits per byte" in inside.out
    ours, theirs = here.plan(), there.plan()
    assert all(planned.result for planned in theirs)
    assert [planned.key for planned in ours][:4] == [planned.key for planned in theirs][:4]
    assert list(digests(here).values())[:3] == list(digests(there).values())[:3]

    assert fresh.run("report").code == 0
    assert "<html" in (fresh.root / "artifacts" / "report.html").read_text()
    again = fresh.run("train-tiny", *TOY, DATA=str(corpus))
    assert "nothing to do" in again.out


def test_what_it_writes_belongs_to_whom_the_checkout_belongs(fresh, corpus):
    assert fresh.run("prepare", "--size", "tiny", *TOY, DATA=str(corpus)).code == 0
    store = fresh.root / "artifacts"
    owners = {path.stat().st_uid for path in (store, *store.rglob("*"))}
    assert owners == {OWNER}


@pytest.mark.parametrize("uid", [0, 1000, 12345])
def test_it_runs_as_any_user(checkout, corpus, tmp_path, uid):
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o777)
    told = docker(
        *("run", "--rm", "--user", f"{uid}:{uid}", "-v", f"{store}:/work/artifacts"),
        *("-v", f"{corpus}:/data/text.txt:ro", "ignite-llm:cpu"),
        *("run", "--size", "tiny", "--data", "/data/text.txt", *TOY),
    )
    assert told.code == 0, told.err[-3000:]
    assert {path.stat().st_uid for path in store.rglob("*")} == {uid}


def test_a_folder_that_it_may_not_write_to_is_named(checkout, tmp_path):
    tmp_path.chmod(0o755)
    words = ("run", "--rm", "--user", "54321", "-v", f"{tmp_path}:/work/artifacts")
    told = docker(*words, "ignite-llm:cpu", "run", "--size", "tiny")
    assert told.code == 1
    assert "/work/artifacts" in told.err and "54321" in told.err and "--user" in told.err


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_container_that_is_ended_goes_on_in_the_next(fresh, corpus, way):
    settings = ("--set", "train.steps=1500", "--checkpoint-every", "1s")
    words, data = (*TOY, *settings), {"DATA": str(corpus)}
    whole, ended = (fresh.root / "artifacts" / name for name in ("whole", "ended"))
    told = fresh.run("train-tiny", *words, "--store", "artifacts/whole", **data)
    assert told.code == 0, told.err[-3000:]

    words = (*words, "--store", "artifacts/ended")
    name = f"{fresh.name}-{way}"
    fresh.started(name, "train-tiny", *words, **data)
    until(lambda: checkpoint_step(ended) > 20)
    start = time.monotonic()
    assert docker(way, name).code == 0
    assert time.monotonic() - start < 60
    code = inspected("inspect", name)[0]["State"]["ExitCode"]
    assert code == (75 if way == "stop" else 137)
    logs = docker("logs", name)
    docker("rm", name)
    assert checkpoint_step(ended) < 1500, "it was finished before it was stopped"
    if way == "stop":
        assert "Go on with" in logs.err

    after = fresh.run("train-tiny", *words, **data)
    assert after.code == 0, after.err[-3000:]
    assert re.search(r"from step \d", after.out + after.err), after.out
    one, other = (digests(toy_engine(store, corpus, settings[1])) for store in (whole, ended))
    assert one == other


def checkpoint_step(store: Path) -> int:
    """The last checkpoint in any log of the store; nothing is imported or locked to see it."""
    found = [0]
    for entry in store.glob("log/*/*"):
        body = json.loads(entry.read_text())
        found.append(body.get("step", 0) if body["kind"] == "checkpoint" else 0)
    return max(found)


def until(happened, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_store_that_would_go_with_the_container_is_refused(fresh, corpus):
    for words, environment in (
        (("train-tiny", "--store", "mine"), {}),
        (("train-tiny",), {"IGNITE_STORE": "/somewhere/mine"}),
        (("pipeline", "push", "backup"), {}),
    ):
        told = fresh.run(*words, DATA=str(corpus), **environment)
        assert told.code == 2
        assert "would lie in the container and go with it" in told.err, told.err


def test_a_ctrl_c_at_any_moment_of_the_start_ends_it(fresh, corpus):
    """On a terminal, where Compose hands it on: the end of the preflight once forgot it."""
    toy = [word for word in TOY if word not in ("--device", "cpu")]  # so that the preflight speaks
    words = ("docker", "compose", "run", "--rm", "--name", f"{fresh.name}-c", "train-tiny", *toy)
    command = shlex.join([*words, "--set", "train.steps=200000"])
    for pause in (0.0, 0.1, 0.3, 1.0):
        environment = {**os.environ, **fresh.environment, "DATA": str(corpus)}
        process = subprocess.Popen(
            ["script", "-qefc", command, "/dev/null"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        seen = b""
        while b"no GPU here" not in seen:
            more = process.stdout.read1()
            assert more, seen
            seen += more
        time.sleep(pause)
        process.stdin.write(b"\x03")
        process.stdin.flush()
        assert process.wait(60) in (75, 130), seen
        until(lambda: not containers(f"{fresh.name}-c"))


def test_without_a_gpu_it_fails_as_docker_fails(checkout):
    """The README's table of troubles names this message."""
    told = docker("tag", "ignite-llm:cpu", "ignite-llm:cu130")
    assert told.code == 0, told.err
    name = f"{checkout.name}-gpu"
    command = ["create", "--name", name, "--gpus", "all", "ignite-llm:cpu"]
    if docker(*command).code == 0 and docker("start", name).code == 0:
        pytest.skip("this engine has a GPU")
    docker("rm", "--force", name)
    text = (checkout.root / "compose.yaml").read_text()
    without = checkout.root / "compose.gpu.yaml"
    without.write_text(text.replace("pull_policy: build", "pull_policy: never"))
    told = checkout.run("train-small", COMPOSE_FILE=str(without))
    docker("rmi", "ignite-llm:cu130")
    assert told.code != 0
    assert 'could not select device driver "nvidia" with capabilities: [[gpu]]' in told.err
    readme = (checkout.root / "README.md").read_text()
    assert "could not select device driver" in readme.split("When something goes wrong")[1]


def test_up_explains_itself_and_starts_nothing(checkout):
    told = checkout.compose("up")
    assert told.code == 0, told.err
    assert "docker compose run --rm train-small" in told.out
    assert containers(checkout.name) == [f"{checkout.name}-help-1"]


def test_a_changed_line_is_in_the_next_run_within_seconds(fresh):
    assert fresh.run("pipeline", "sizes").code == 0
    path = fresh.root / "model" / "config.py"
    before = path.read_text()
    # a line that no earlier run has built: the engine's cache outlives the tests
    path.write_text(before + f'print("a changed line, {secrets.token_hex(8)}")\n')
    start = time.monotonic()
    told = fresh.run("pipeline", "sizes")
    seconds = time.monotonic() - start
    path.write_text(before)
    assert "a changed line" in told.out
    print(f"rebuilt and run in {seconds:.1f} s")
    built = dict(re.findall(r"^#(\d+) \[\S+ (.+)$", told.out, re.MULTILINE))
    cached = set(re.findall(r"^#(\d+) CACHED", told.out, re.MULTILINE))
    again = {step for number, step in built.items() if " RUN " in step and number not in cached}
    assert len(again) == 2, again  # our own wheel is made and installed, and nothing else


def test_the_image_holds_no_secret_and_no_history(checkout, tmp_path):
    """The checkout holds a secret in .env, .git and a key file, and the build had one around it."""
    path, names = tmp_path / "image.tar", []
    assert docker("save", "-o", path, "ignite-llm:cpu").code == 0
    with tarfile.open(path) as image:
        for part in filter(tarfile.TarInfo.isfile, image):
            data = image.extractfile(part)
            try:
                with tarfile.open(fileobj=data) as layer:
                    for file in filter(tarfile.TarInfo.isfile, layer):
                        names.append(file.name)
                        if file.size < 100_000:
                            assert SECRET.encode() not in layer.extractfile(file).read(), file.name
            except tarfile.ReadError:  # a manifest or the configuration
                data.seek(0)
                assert SECRET.encode() not in data.read(), part.name
    assert any(name.endswith("/pipeline/recipe.py") for name in names)
    forbidden = ("/.git/", "/.env", "server.key", "/root/.cache/", "/source/pyproject.toml")
    assert not [name for name in names if any(word in f"/{name}" for word in forbidden)]


def test_what_the_image_says_of_itself(checkout):
    told = checkout.compose("build", "train-tiny", REVISION="abc123")
    assert told.code == 0
    config = inspected("inspect", "ignite-llm:cpu")[0]["Config"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "abc123"
    assert config["User"] == "ignite"
    assert config["Entrypoint"][0] == "tini"
    told = docker("run", "--rm", "ignite-llm:cpu")
    assert told.code == 0 and "pipeline run --size tiny" in told.out


def test_every_service_is_there_and_only_help_comes_up(checkout):
    services = set(
        inspected(
            "compose",
            "-f",
            checkout.root / "compose.yaml",
            "--profile",
            "run",
            "config",
            "--format",
            "json",
        )["services"]
    )
    stages = {"prepare", "tokenizer", "encode", "evaluate", "sample"}
    sizes = {f"train-{size}" for size in ("tiny", "small", "medium", "large")}
    assert services == stages | sizes | {"help", "report", "pipeline", "shell", "test"}
