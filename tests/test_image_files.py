"""What the image is made of, as far as that can be seen without a Docker engine."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import ROOT

LOCKS = sorted((ROOT / "docker" / "locks").glob("*.txt"))
FAKE = """#!/bin/sh
echo "$(basename "$0")" "$@" >> "$TOLD"
case "$1" in preflight) exit ${PREFLIGHT:-0} ;; esac
exit 75
"""


def test_docker_is_not_a_package():
    """It would stand before the ``docker`` package wherever the project's root is on the path."""
    assert not list((ROOT / "docker").rglob("__init__.py"))


def test_images_are_pinned_by_digest():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert base == "${BASE_IMAGE}" or base in stages


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_and_hashed(lock):
    blocks = re.findall(r"^[^\s#].*(?:\n +.*)*", lock.read_text(), re.MULTILINE)
    assert blocks
    for block in blocks:
        name, *hashes = block.replace(" \\\n", "\n").splitlines()
        assert re.match(r"[\w.-]+(\[.*\])?==[\w.+]+( ; .*)?$", name), name
        assert hashes, name
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", each) for each in hashes), name


def test_the_locks_hold_what_the_tests_ran_with():
    """A version that was changed in constraints.txt must be changed in the locks: update.py."""
    pins = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "constraints.txt").read_text(), re.M))
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for lock in LOCKS:
        for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", lock.read_text(), re.M):
            if lock.stem != "build" and name in pins:
                assert version == pins[name], f"{lock.name}: {name}"


def test_all_variants_have_the_same_torch():
    found = {
        re.search(r"^torch==([\d.]+)", lock.read_text(), re.MULTILINE)[1]
        for lock in LOCKS
        if lock.stem.startswith("torch-")
    }
    assert len(found) == 1


def test_only_what_is_named_goes_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "**/.env*" in rules
    assert [rule for rule in rules if rule.startswith("!.")] == ["!.dockerignore"]


@pytest.fixture
def entrypoint(tmp_path):
    """Run docker/entrypoint.sh; returns (exit code, what programs it called)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pipeline", "launch", "setpriv"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    told = tmp_path / "told"

    def run(*words: str, **environment: str) -> tuple[int, list[str]]:
        told.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "docker" / "entrypoint.sh"), *words],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "TOLD": str(told),
                "HOME": str(tmp_path),
                **environment,
            },
            cwd=tmp_path,
        )
        return done.returncode, told.read_text().splitlines()

    return run


def test_it_looks_at_the_machine_before_it_computes(entrypoint):
    assert entrypoint("run", "--size", "small") == (
        75,
        ["pipeline preflight --quiet", "pipeline run --size small"],
    )
    assert entrypoint("generate", "--prompt", "a b")[1][0] == "pipeline preflight --quiet"


def test_it_looks_at_the_device_and_the_store_of_the_run(entrypoint):
    words = ("run", "--device", "cpu", "--set", "train.lr=1", "--store=s3://b/a c")
    assert entrypoint(*words)[1][0] == "pipeline preflight --quiet --device cpu --store=s3://b/a c"


def test_it_computes_nothing_where_it_cannot(entrypoint):
    assert entrypoint("run", PREFLIGHT="1") == (1, ["pipeline preflight --quiet"])


@pytest.mark.parametrize(
    "words", [("status",), ("log", "train"), ("run", "--help", "-n"), ("--help",), ()]
)
def test_it_looks_at_nothing_where_nothing_is_computed(entrypoint, words):
    assert entrypoint(*words) == (75, [" ".join(("pipeline", *words))])


def test_the_look_can_be_skipped(entrypoint):
    assert entrypoint("run", IGNITE_PREFLIGHT="skip")[1] == ["pipeline run"]


def test_other_programs_run_as_they_are(entrypoint):
    assert entrypoint("launch", "ps") == (75, ["launch ps"])
    assert entrypoint("pipeline", "status") == (75, ["pipeline status"])


def test_the_data_keep_their_name(entrypoint):
    _, told = entrypoint("run", "--size", "tiny", DATA="../some where/b.jsonl.gz")
    assert told[-1] == "pipeline run --size tiny --data /tmp/data/b.jsonl.gz"
    assert os.readlink("/tmp/data/b.jsonl.gz") == "/mnt/data"
    os.unlink("/tmp/data/b.jsonl.gz")


@pytest.mark.parametrize("data", [".", "..", "/"])
def test_data_without_a_name(entrypoint, data):
    assert entrypoint("run", DATA=data)[1][-1] == "pipeline run --data /tmp/data/data"
    os.unlink("/tmp/data/data")


def test_data_that_are_said_stand(entrypoint):
    _, told = entrypoint("run", "--data", "tinyshakespeare", DATA="x.txt")
    assert told[-1] == "pipeline run --data tinyshakespeare"
    assert entrypoint("status", DATA="x.txt")[1] == ["pipeline status"]


def mounted(tmp_path: Path) -> None:
    """As if the test's directory were a mount: another device than /."""
    (tmp_path / "bin" / "stat").write_text(
        f'#!/bin/sh\ncase "$*" in "-L -c %d {tmp_path}"*) echo other ;; '
        '*) exec /usr/bin/stat "$@" ;; esac\n'
    )
    (tmp_path / "bin" / "stat").chmod(0o755)


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (("run", "--store", "backup"), "backup"),
        (("run", "--store", "{here}/a", "--store=/tmp/b"), "/tmp/b"),
        (("pipeline", "push", "-n", "copy"), "copy"),
        (("report", "-o", "page.html"), "page.html"),
        (("report", "--output=/tmp/page.html"), "/tmp/page.html"),
    ],
)
def test_with_compose_nothing_is_written_where_it_would_be_lost(entrypoint, tmp_path, words, lost):
    mounted(tmp_path)
    words = [word.format(here=tmp_path) for word in words]
    environment = {"IGNITE_OWNER": "/etc/passwd", "IGNITE_STORE": f"{tmp_path}/store"}
    assert entrypoint(*words, **environment) == (2, [])
    assert entrypoint(*words)[0] == 75  # without Compose it is the user's business


@pytest.mark.parametrize(
    "words",
    [("run",), ("run", "--store", "s3://b/x"), ("push", "s3://b/x"), ("report", "-o", "{here}/p")],
)
def test_with_compose_what_stays_is_written(entrypoint, tmp_path, words):
    mounted(tmp_path)
    words = [word.format(here=tmp_path) for word in words]
    environment = {"IGNITE_OWNER": "/etc/passwd", "IGNITE_STORE": f"{tmp_path}/new/store"}
    assert entrypoint(*words, **environment)[0] == 75


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_root_becomes_the_user_whose_files_these_are(entrypoint, tmp_path):
    witness, cache, store = (tmp_path / name for name in ("compose.yaml", "cache", "artifacts"))
    store.mkdir()
    witness.touch()
    os.chown(witness, 4321, 8765)
    _, told = entrypoint("status", IGNITE_OWNER=str(witness), IGNITE_CACHE=str(cache))
    script = ROOT / "docker" / "entrypoint.sh"
    assert told == [f"setpriv --reuid 4321 --regid 8765 --clear-groups {script} status"]
    assert {owner_of(path) for path in (store, cache / "4321")} == {(4321, 8765)}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("owner", [(11, 22), (0, 0)])
def test_folders_that_hold_something_or_belong_to_somebody_stay_theirs(entrypoint, tmp_path, owner):
    witness, store = tmp_path / "compose.yaml", tmp_path / "artifacts"
    store.mkdir()
    witness.touch()
    (store / "inside").touch()
    os.chown(witness, 4321, 8765)
    os.chown(store, *owner)
    entrypoint("status", IGNITE_OWNER=str(witness), IGNITE_CACHE=str(tmp_path / "cache"))
    assert owner_of(store) == owner


def owner_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid
