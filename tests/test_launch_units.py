"""`launch local` without an engine: what it would build and run, and what it says if it cannot.

What engines say of themselves is as they answer `GET /info`: the first was recorded from Docker
20.10, those with GPUs follow Docker's and NVIDIA's documentation.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from commands import launch

from launchers import ps as ps_module
from launchers.local import attend as attend_module
from launchers.local import command as local_module
from launchers.local import containers as containers_module
from launchers.local import image as images
from launchers.local import verbs as verbs_module
from launchers.local.container import GRACE
from launchers.local.containers import Run, chosen, sweep, watched, watching
from launchers.local.engine import TOOLKIT, EngineAway, connect, device_request, user
from pipeline.cli import process as process_module
from pipeline.store import places

PLAIN = {
    "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
    "CDISpecDirs": None,
    "SecurityOptions": ["name=seccomp,profile=default"],
}
DIRECTORIES = {**PLAIN, "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"], "DiscoveredDevices": None}
NVIDIA = {**DIRECTORIES, "Runtimes": {**PLAIN["Runtimes"], "nvidia": {"path": "nvidia-ctk"}}}
CDI = {
    **NVIDIA,
    "DiscoveredDevices": [
        {"Source": "cdi", "ID": "nvidia.com/gpu=0"},
        {"Source": "cdi", "ID": "nvidia.com/gpu=all"},
    ],
}
INSIDE = {"IGNITE_CACHE": "/cache", "IGNITE_AGAIN": "the same command"}
ROOTLESS = {**PLAIN, "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory to be in, and none of the caller's settings."""
    for name in list(os.environ):
        if name.startswith(
            ("AWS_", "AZURE_", "GOOGLE_", "DOCKER_", "IGNITE_STORE", "HF_", "BASE_")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def engine(monkeypatch):
    """An engine that does nothing but say what it is; the test may change that."""
    found = SimpleNamespace(info=lambda: found.said, said=PLAIN)
    monkeypatch.setattr(local_module, "connect", lambda: found)
    return found


def told(*words: object) -> dict:
    """What `launch local` would do on the CPU."""
    said = launch("local", "--cpu", "--image", "some", "-n", "--json", *words)
    assert said.code == 0, said.err
    return json.loads(said.out)["container"]


def mounts(container: dict) -> dict[str, tuple[str, bool]]:
    return {each["target"]: (each["source"], each["read_only"]) for each in container["mounts"]}


def test_what_runs_inside_is_what_was_asked_for(engine, here):
    (here / "corpus.jsonl.gz").write_bytes(b"")
    (here / "mine.toml").write_text("[train]\nsteps = 5\n")
    container = told(
        *("--size", "small", "--data", "corpus.jsonl.gz", "--text-field", "body"),
        *("--recipe", "mine.toml", "--set", "train.lr=1e-3", "--store", "../runs/a"),
        *("--precision", "fp32", "--checkpoint-every", "5m", "--keep", "3"),
    )
    assert container["command"] == [
        *("run", "--size", "small", "--recipe", "/recipe/mine.toml"),
        *("--data", "/data/corpus.jsonl.gz", "--text-field", "body", "--set", "train.lr=1e-3"),
        *("--store", "artifacts", "--precision", "fp32", "--checkpoint-every", "5m"),
        *("--keep", "3", "--device", "cpu"),
    ]
    store = str(here.parent / "runs" / "a")
    assert mounts(container) == {
        "/work/artifacts": (store, False),
        "/data/corpus.jsonl.gz": (str(here / "corpus.jsonl.gz"), True),
        "/recipe/mine.toml": (str(here / "mine.toml"), True),
        "/cache": (str(here.parent / "cache"), False),
    }
    assert container["environment"] == INSIDE
    assert container["labels"] == {
        "org.ignite-llm.store": store,
        "org.ignite-llm.size": "small",
        "org.ignite-llm.data": "corpus.jsonl.gz",
    }
    assert container["name"].startswith("ignite-small-") and len(container["name"]) == 19
    assert container["user"] == f"{os.getuid()}:{os.getgid()}"
    assert (container["shm_size"], container["stop_timeout"]) == ("1g", GRACE)
    assert not Path(store).exists(), "a dry run makes nothing"


@pytest.mark.parametrize(
    ("data", "inside", "mounted", "target"),
    [
        ("a.txt", "/data/a.txt", "a.txt", "/data/a.txt"),
        ("link.txt", "/data/link.txt", "a.txt", "/data/link.txt"),
        ("file://{here}/a.txt", "/data/a.txt", "a.txt", "/data/a.txt"),
        ("texts", "/data/texts", "texts", "/data/texts"),
        ("texts/..", "/data/here", "", "/data/here"),
        ("texts/**/*.md", "/data/texts/**/*.md", "texts", "/data/texts"),
        ("texts/*/b.md", "/data/texts/*/b.md", "texts", "/data/texts"),
        ("*.txt", "/data/here/*.txt", "", "/data/here"),
        ("odd[1]/c.txt", "/data/c.txt", "odd[1]/c.txt", "/data/c.txt"),
    ],
)
def test_text_of_this_machine_is_mounted_under_its_name(
    engine, here, data, inside, mounted, target
):
    (here / "texts" / "deep").mkdir(parents=True)
    (here / "odd[1]").mkdir()
    for name in ("a.txt", "texts/deep/b.md", "odd[1]/c.txt"):
        (here / name).write_text("text")
    (here / "link.txt").symlink_to("a.txt")
    container = told("--data", data.format(here=here))
    assert container["command"][1:3] == ["--data", inside]
    assert mounts(container)[target] == (str(here / mounted), True)


def test_a_pattern_in_a_directory_whose_name_looks_like_one(engine, here, monkeypatch):
    (here / "[a]").mkdir()
    (here / "[a]" / "x.txt").write_text("text")
    monkeypatch.chdir(here / "[a]")
    assert told("--data", "*.txt")["command"][1:3] == ["--data", "/data/[[]a]/*.txt"]


@pytest.mark.parametrize("data", ["tinyshakespeare", "python-stdlib", "https://host/a.txt"])
def test_text_of_elsewhere_is_named_as_it_is(engine, data):
    container = told("--data", data)
    assert container["command"][:3] == ["run", "--data", data]
    assert mounts(container).keys() == {"/work/artifacts", "/cache"}


def test_text_that_a_recipe_or_a_setting_names_is_mounted_as_well(engine, here):
    (here / "a.txt").write_text("text")
    (here / "b.txt").write_text("text")
    (here / "mine.toml").write_text('[data]\nsource = "a.txt"\n')
    assert "/data/a.txt" in mounts(told("--recipe", "mine.toml"))
    container = told("--recipe", "mine.toml", "--set", "data.source=b.txt")
    assert container["command"][3:5] == ["--data", "/data/b.txt"]
    assert "data.source=b.txt" not in container["command"]


def test_without_a_recipe_it_goes_on_with_the_last_runs(engine, finished, corpus):
    container = told("--store", finished, "--set", "train.lr=1e-3")
    assert container["command"][:3] == ["run", "--set", f"data.source=/data/{corpus.name}"]
    assert mounts(container)[f"/data/{corpus.name}"] == (str(corpus), True)


def test_text_that_is_gone_is_no_mistake_if_its_run_is_known(engine, finished, corpus, tmp_path):
    moved = corpus.rename(tmp_path / "moved.txt")
    try:
        container = told("--store", finished)
    finally:
        moved.rename(corpus)
    assert f"data.source={corpus}" in container["command"]
    assert mounts(container).keys() == {"/work/artifacts", "/cache"}


@pytest.fixture
def elsewhere(monkeypatch) -> str:
    """A store that is no directory, and needs no server: only a test may have such a one."""
    monkeypatch.setattr(places, "check", lambda place, **_: None)
    return "memory://bucket/a"


def test_stores_to_take_from(engine, here, elsewhere):
    (here / "other").mkdir()
    container = told("--data", "python-stdlib", "--from", "other", "--from", elsewhere)
    assert container["command"][5:9] == ["--from", "/from/0", "--from", elsewhere]
    assert mounts(container)["/from/0"] == (str(here / "other"), True)
    said = launch("local", "--cpu", "--from", "missing")
    assert said.code == 2 and "there is no directory missing" in said.err


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "sesame",
    "AZURE_STORAGE_ACCOUNT_KEY": "sesame",
    "HF_TOKEN": "sesame",
}


def test_a_store_elsewhere_is_opened_and_no_dry_run_shows_with_what(
    engine, here, elsewhere, monkeypatch
):
    for name, value in {**SECRETS, "AWS_UNHEARD_OF": "sesame"}.items():
        monkeypatch.setenv(name, value)
    google = here / "key.json"
    google.write_text("sesame")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google))
    (here.parent / "home" / ".aws").mkdir(parents=True)
    container = told("--data", "python-stdlib", "--store", elsewhere)
    assert container["environment"] == {
        **INSIDE,
        **dict.fromkeys(SECRETS, "***"),
        "AWS_SHARED_CREDENTIALS_FILE": "/credentials/aws/credentials",
        "AWS_CONFIG_FILE": "/credentials/aws/config",
        "GOOGLE_APPLICATION_CREDENTIALS": "/credentials/google.json",
    }
    assert mounts(container) == {
        "/cache": (str(here.parent / "cache"), False),
        "/credentials/aws": (str(here.parent / "home" / ".aws"), True),
        "/credentials/google.json": (str(google), True),
    }
    assert container["command"][3:5] == ["--store", elsewhere]
    words = ("local", "--cpu", "--image", "some", "-n", "--store", elsewhere)
    said = launch(*words, "--data", "https://me:sesame@host/a.txt?key=sesame")
    assert said.code == 0 and "sesame" not in said.out and "HF_TOKEN=***" in said.out


def test_what_needs_no_credentials_gets_none(engine, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert told("--data", "https://host/a.txt")["environment"] == INSIDE
    assert "HF_TOKEN" in told("--data", "hf://datasets/me/a.txt")["environment"]


# the machine


@pytest.mark.parametrize(
    ("info", "gpus", "asked"),
    [
        (NVIDIA, ("all",), {"count": -1, "capabilities": [["gpu"]]}),
        (NVIDIA, ("0", "2"), {"device_ids": ["0", "2"], "capabilities": [["gpu"]]}),
        (CDI, ("all",), {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}),
        (CDI, ("1",), {"driver": "cdi", "device_ids": ["nvidia.com/gpu=1"]}),
    ],
)
def test_gpus_are_asked_for_as_the_engine_has_them(info, gpus, asked):
    assert device_request(info, gpus) == asked


@pytest.mark.parametrize("info", [PLAIN, DIRECTORIES, {}])
def test_an_engine_without_gpus_is_told_in_one_line_before_anything_is_made(engine, here, info):
    engine.said = info  # it can do nothing else: anything more would fail otherwise
    said = launch("local", "--image", "some", "--data", "python-stdlib")
    assert said.code == 1 and said.out == "" and said.err.count("\n") == 1
    assert TOOLKIT in said.err and "--cpu" in said.err
    assert list(here.iterdir()) == []


def test_each_of_several_gpus_has_a_process(engine):
    engine.said = NVIDIA
    words = ("local", "--image", "some", "-n", "--json", "--data", "python-stdlib")
    one = json.loads(launch(*words, "--gpus", "1").out)["container"]
    assert "--processes" not in one["command"] and one["gpus"]["device_ids"] == ["1"]
    for more in ("0,1", "all"):
        command = json.loads(launch(*words, "--gpus", more).out)["container"]["command"]
        assert command[0] == "run" and command[-2:] == ["--processes", "auto"]
        assert "--device" not in command
    told = json.loads(launch(*words, "--gpus", "all", "--processes", "1").out)["container"]
    assert told["command"][-2:] == ["--processes", "1"]


def test_root_inside_is_the_caller_where_the_engine_is_rootless():
    assert user(ROOTLESS) == "0:0"
    assert user(PLAIN) == f"{os.getuid()}:{os.getgid()}"


def test_the_engine_is_told_the_same_that_is_shown(engine, here, monkeypatch):
    """In the words of its API, as the real SDK writes them."""
    docker = pytest.importorskip("docker")
    made = {}
    api = docker.APIClient(base_url="http://127.0.0.1:1", version="1.41")
    monkeypatch.setattr(api, "create_container_from_config", lambda *said: made.update(said=said))
    engine.api, engine.said = api, NVIDIA
    monkeypatch.setattr(local_module, "_launch", lambda client, _, made, __: made.create(client))
    (here / "a.txt").write_text("text")
    assert launch("local", "--image", "some", "--data", "a.txt", "--gpus", "0").code == 0
    config, name, _ = made["said"]
    assert (config["Image"], config["Hostname"], config["StopTimeout"]) == ("some", name, GRACE)
    assert config["Env"] == [f"{name}={value}" for name, value in INSIDE.items()]
    host = config["HostConfig"]
    assert host["ShmSize"] == 1 << 30
    assert {
        "Type": "bind",
        "Source": str(here / "a.txt"),
        "Target": "/data/a.txt",
        "ReadOnly": True,
    } in host["Mounts"]
    (request,) = host["DeviceRequests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == (["0"], [["gpu"]])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--gpus", "0;1"], "give all, or indices such as 0 or 0,1"),
        (["--gpus", "1,1"], "give all, or indices such as 0 or 0,1"),
        (["--cpu", "--gpus", "all"], "leave out one or the other"),
        (["--cpu", "--variant", "cu126"], "leave out one or the other"),
        (["--cpu", "--device", "cuda:0"], "leave out one or the other"),
        (["--device", "mps"], "containers have no such device"),
        (["--image", "a", "--variant", "cpu"], "not both"),
        (["--json"], "--json goes with --dry-run"),
        (["--set", "tain.lr=1"], "did you mean train.lr?"),
        (["--checkpoint-every", "soon"], "write it as 90s"),
    ],
)
def test_mistakes_are_found_before_the_engine_is_asked(monkeypatch, words, answer):
    monkeypatch.setattr(local_module, "connect", lambda: pytest.fail("it was asked"))
    said = launch("local", *words)
    assert said.code == 2 and answer in said.err


def test_data_that_is_not_there(engine, here):
    said = launch("local", "--cpu", "--image", "some", "--data", "corpsu.txt")
    assert said.code == 1 and "there is no data 'corpsu.txt'" in said.err
    said = launch("local", "--cpu", "--image", "some", "--data", "*.txt")
    assert said.code == 1 and "no file matches the pattern *.txt" in said.err
    assert list(here.iterdir()) == []


# no engine


@pytest.mark.parametrize("module", [None, ModuleType("docker")])
def test_without_the_sdk_its_extra_is_named(monkeypatch, module):
    """A directory called docker is a module, too; there is one beside the package."""
    for name in [name for name in sys.modules if name.startswith("docker.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "docker", module)
    for words in (["local", "--cpu"], ["logs"], ["stop"], ["pull"]):
        said = launch(*words)
        assert said.code == 1 and said.err.count("\n") == 1
        assert "pip install -e '.[docker]'" in said.err
    assert launch("ps").out == "nothing runs on artifacts\n"


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        ("('Connection aborted.', FileNotFoundError(2, 'No such file'))", "systemctl start docker"),
        ("('Connection aborted.', PermissionError(13, 'Permission denied'))", "usermod -aG docker"),
        ("Invalid bind address", "Invalid bind address"),
    ],
)
def test_without_an_engine_it_says_what_was_tried_and_what_to_do(monkeypatch, why, fix):
    docker = pytest.importorskip("docker")

    def refused(**_):
        raise docker.errors.DockerException(f"Error while fetching server API version: {why}")

    monkeypatch.setattr(docker, "from_env", refused)
    said = launch("local", "--cpu")
    assert said.code == 1 and fix in said.err and "DOCKER_HOST is not set" in said.err
    monkeypatch.setenv("DOCKER_HOST", "tcp://box:2375")
    assert "DOCKER_HOST=tcp://box:2375" in launch("stop").err
    assert launch("ps").out == "nothing runs on artifacts\n"


def test_a_socket_where_nobody_listens(monkeypatch, tmp_path):
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(EngineAway, match="is it installed and started"):
        connect()


# building


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A place for programs that are found first; returns how to put one there."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def put(name: str, script: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return put


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.setattr(images, "ROOT", tmp_path / "root")
    return tmp_path / "root"


def test_the_build_is_the_one_a_person_could_call(engine, root, tools, monkeypatch):
    tools("docker", "exit 0")
    tools("git", 'case "$*" in *rev-parse*) echo 5052bee ;; esac')
    said = launch("local", "--cpu", "-n", "--json", "--data", "python-stdlib")
    head = ["docker", "buildx", "build", "--load", "-t", "ignite-llm:cpu"]
    variant, revision = "--build-arg=TORCH_VARIANT=cpu", "--build-arg=REVISION=5052bee"
    assert json.loads(said.out)["build"] == [*head, variant, revision, str(root)]
    tools("git", "echo ' M a.py'")
    assert images.build_command("cpu")[-2].endswith("-dirty")
    tools("git", "exit 128")
    monkeypatch.setenv("BASE_IMAGE", "mirror/python:3.13")
    base = "--build-arg=BASE_IMAGE=mirror/python:3.13"
    assert images.build_command("cpu") == [*head, variant, base, str(root)]
    engine.said = NVIDIA
    shown = launch("local", "-n", "--variant", "cu126", "--data", "python-stdlib").out
    assert shown.startswith("build: docker buildx build --load -t ignite-llm:cu126 ")


def test_what_a_build_needs(engine, root, tools):
    tools("docker", "exit 1")
    said = launch("local", "--cpu")
    assert said.code == 1 and "buildx" in said.err and "--image NAME" in said.err
    (root / "Dockerfile").unlink()
    said = launch("local", "--cpu")
    assert said.code == 1 and "no Dockerfile" in said.err and "--image NAME" in said.err


def test_a_build_that_fails_starts_nothing(engine, root, tools, monkeypatch, here):
    tools("docker", 'case "$*" in *version*) ;; *) exit 17 ;; esac')
    monkeypatch.setattr(local_module, "sweep", lambda client: [])
    said = launch("local", "--cpu", "--data", "python-stdlib")
    assert said.code == 1 and "docker ended with exit code 17" in said.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_build(engine, root, tools, monkeypatch, here, number):
    """The build is told, too: Ctrl-C in a terminal reaches it, a signal for us alone does not."""
    tools(
        "docker",
        'trap "echo told > told; exit 1" TERM\ncase "$*" in *version*) exit ;; esac\n'
        "touch begun; for each in $(seq 600); do sleep 0.05; done",
    )
    monkeypatch.setattr(local_module, "sweep", lambda client: [])

    def interrupt() -> None:
        while not (here / "begun").exists() and not over.wait(0.02):
            pass
        over.wait(0.5)  # it has begun, and now its starter knows, too
        over.is_set() or os.kill(os.getpid(), number)

    over = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        said = launch("local", "--cpu", "--data", "python-stdlib")
    finally:
        over.set()
        thread.join()
    assert said.code == 130 and (here / "told").exists()
    assert not (here / "artifacts").exists()


# what runs


def run(name: str, state: str = "running", store: str = "/runs") -> Run:
    return Run(name, state, "2026-11-20T10:00:00+00:00", "tiny", store, "a.txt")


def test_a_run_is_named_by_the_beginning_of_its_name():
    one, two, old = run("ignite-tiny-aa1"), run("ignite-tiny-ab2"), run("ignite-a", "exited (75)")
    assert chosen([one, old], None) is one
    assert chosen([one, two], "ignite-tiny-ab") is two
    assert chosen([old, run("ignite-ab")], "ignite-a") is old
    for found, name, why in (
        ([one, two], None, "name the one you mean: ignite-tiny-aa1 (running), ignite-tiny-ab2"),
        ([old], None, "name the one you mean: ignite-a (exited (75))"),
        ([one, two], "ignite-tiny", "'ignite-tiny' is the beginning of several: ignite-tiny-aa1"),
        ([one], "other", "'other' is none of them: ignite-tiny-aa1"),
        ([], None, "`launch local` starts one"),
    ):
        with pytest.raises(ValueError) as error:
            chosen(found, name)
        assert why in str(error.value)


def test_ps_shows_a_container_once(monkeypatch):
    claim = {
        **run("x").entry(),
        **{"stage": "train", "key": "ab12", "owner": "ignite-tiny-aa1-7-0a1b2c3d"},
    }
    seen = [run("ignite-tiny-aa1"), run("ignite-tiny-aa", "exited (75)", "s3://b/runs")]
    monkeypatch.setattr(verbs_module, "there", lambda: seen)
    monkeypatch.setattr(ps_module, "working", lambda store: [claim])
    works, idle = json.loads(launch("ps", "--json").out)["workers"]
    assert works["stage"] == "train" and works.keys() == idle.keys()
    assert (idle["stage"], idle["owner"], idle["state"], idle["where"], idle["progress"]) == (
        *("-", "ignite-tiny-aa", "exited (75)", "docker"),
        {},
    )
    assert launch("ps").out.splitlines()[-1].endswith("tiny, store s3://b/runs")


def test_only_what_nobody_watches_is_removed(monkeypatch):
    """Not what runs, not what another launcher is about to look at, not what is another user's."""
    names = ("watched", "runs", "left", "strange")
    found = [run(name, "running" if name == "runs" else "exited (0)") for name in names]
    removed = []
    monkeypatch.setattr(containers_module, "runs", lambda client: found)
    client = SimpleNamespace(
        api=SimpleNamespace(remove_container=lambda name, **_: removed.append(name))
    )
    for name in ("runs", "left"):
        with watching(name):
            pass
    with watching("watched"):
        assert watched("watched") and not watched("left") and not watched("strange")
        assert [each.name for each in sweep(client)] == removed == ["left"]
        assert sweep(client) == []
    assert not watched("watched")


def test_pull_has_nothing_to_do_for_a_directory(monkeypatch):
    monkeypatch.setattr(verbs_module, "connect", lambda timeout=60: None)
    monkeypatch.setattr(verbs_module, "runs", lambda client: [run("ignite-a")])
    assert launch("pull").out == "all of ignite-a lies in /runs already\n"


def test_pull_from_elsewhere_is_pipeline_pull(monkeypatch, finished, here):
    monkeypatch.setattr(verbs_module, "connect", lambda timeout=60: None)
    place = f"file://{finished}"
    monkeypatch.setattr(verbs_module, "runs", lambda client: [run("ignite-a", store=place)])
    said = launch("pull", "ignite")
    assert said.code == 0, said.err
    assert said.out.startswith("pulled 6 results") and (here / "artifacts" / "log").is_dir()


# signals


def test_two_signals_at_once_are_one(monkeypatch):
    """timeout(1) sends each twice, to the process and to its group."""
    with attend_module.Asked() as asked:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert asked.times == 1
        monkeypatch.setattr(process_module, "TWICE", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.times == 1
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.times == 2
