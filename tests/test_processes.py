"""The command lines as processes: what they load, signals, pipes, company, secrets."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from commands import ROOT, TOY, pipeline, start
from file_server import serving
from pipelines import MACHINE, digests, local_store, run, toy_engine

from pipeline.cli import process as process_module
from pipeline.data import download
from pipeline.engine import log
from pipeline.engine.beat import Beat
from pipeline.engine.engine import Engine
from pipeline.engine.log import Claim
from pipeline.errors import Interrupted
from pipeline.store.locks import machine_id
from pipeline.ui import Ui


def test_looking_loads_no_large_library(finished):
    source = """
import sys
from commands import launch, pipeline

for words in ("run", "status", "explain train", "log train", "graph", "sizes", "sample"):
    assert pipeline(*words.split()).code == 0, words
assert launch("ps").code == 0
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "fsspec", "rich"}))
"""
    here = os.path.dirname(__file__)
    environment = {
        **os.environ,
        "IGNITE_STORE": str(finished),
        "PYTHONPATH": os.pathsep.join((here, os.path.dirname(here))),
    }
    told = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True
    )
    assert told.stdout == "[]\n", told.stderr


@pytest.mark.parametrize("verb", ["status", "run"])
def test_a_reader_that_left_is_no_error_worth_a_traceback(finished, verb):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(verb, "--store", finished, stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_an_output_that_is_full_is_no_traceback(finished):
    with open("/dev/full", "w") as full:
        process = start("status", "--store", finished, stdout=full)
        assert process.communicate()[1] == "error: [Errno 28] No space left on device\n"
    assert process.returncode == 1


def interrupted(number: int, step: int, engine: Engine, words: list) -> tuple[str, int]:
    """Run until the checkpoint of a step and send a signal; (stderr, exit code)."""
    process = start("run", *words)
    while process.poll() is None:
        state = {item.stage.name: item for item in engine.plan()}["train"].state
        if state and state.checkpoints and state.checkpoints[-1].body["step"] >= step:
            break
        time.sleep(0.05)
    process.send_signal(number)
    return process.communicate()[1], process.returncode


def test_signals_cost_no_step(tmp_path, corpus):
    store, other, steps = tmp_path / "store", tmp_path / "other", "train.steps=1500"
    words = ["--data", corpus, *TOY, "--set", steps, "--checkpoint-steps", "20"]
    engine = toy_engine(store, corpus, steps)
    for number, step in ((signal.SIGINT, 20), (signal.SIGTERM, 120), (signal.SIGHUP, 220)):
        err, code = interrupted(number, step, engine, ["--store", store, *words])
        assert code == process_module.EXIT_INTERRUPTED == 75, err
        if number == signal.SIGHUP:
            assert "stopped" not in err, "nobody hears it any more"
        else:
            *_, last = err.splitlines()
            assert last.startswith("stopped: checkpoint written at step ")
            assert f"Go on with: pipeline run --store {store} --data {corpus} --set " in last
        told = json.loads(pipeline("status", "--store", store, "--json").out)["stages"]["train"]
        assert told["state"] == "interrupted" and told["checkpoint_step"] >= step
        lines = pipeline("status", "--store", store).out.splitlines()
        assert f"goes on from step {told['checkpoint_step']}" in lines[6]
        for blob in local_store(store).blobs():
            local_store(store).blob(blob)
    assert pipeline("run", "--store", store, *words).code == 0
    assert pipeline("run", "--store", other, *words).code == 0
    assert digests(engine) == digests(toy_engine(other, corpus, steps))


@pytest.mark.parametrize("piped", [False, True])
def test_a_terminal_that_goes_away_costs_no_step(tmp_path, corpus, piped):
    """The kernel tells it of that, and each word that it says from there on is an error: to the
    terminal, or to what goes with it."""
    steps = "train.steps=100000"
    engine, words = toy_engine(tmp_path / "store", corpus, steps), [*TOY, "--set", steps]
    words = ["run", "--store", tmp_path / "store", "--data", corpus, *words]
    child, terminal = pty.fork()
    if not child:
        source = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
        source += "; from pipeline.cli.main import main; main()"
        if piped:
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, 2)
        os.execv(sys.executable, [sys.executable, "-c", source, *map(str, words)])
    while not (state := engine.plan()[3].state) or len(state.checkpoints) < 2:
        select.select([terminal], [], [], 0.05)[0] and os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == process_module.EXIT_INTERRUPTED
    entries = log.read(engine.store, engine.plan()[3].key).entries
    assert entries[-1].body["why"] == "Interrupted"


def test_a_terminal_that_goes_away_is_no_matter_under_nohup():
    source = "import os, signal\nfrom pipeline.cli.process import stop_on_signals\n"
    source += "stopping = stop_on_signals(); os.kill(os.getpid(), signal.SIGHUP); print(stopping())"
    told = subprocess.run(
        ["nohup", sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True
    )
    assert told.stdout == "False\n", told.stderr


def test_a_second_ctrl_c_ends_at_once_but_one_that_is_sent_twice_does_not(monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ended = []
    monkeypatch.setattr(process_module, "end_at_once", lambda: ended.append(1))
    try:
        stopping = process_module.stop_on_signals()
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == []
        monkeypatch.setattr(process_module, "TWICE", 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [1]
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)


def test_whoever_follows_says_so_once(tmp_path, corpus):
    """However often the one that it follows writes a checkpoint."""
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "prepare")
    key = engine.plan()[1].key
    with Beat(engine.store, key) as beat:
        body = {"machine_id": machine_id()}
        claim = Claim.take(engine.store, key, log.read(engine.store, key), beat.owner, body)
        for step, after in ((1, 0.3), (2, 0.9)):
            checkpoint = {"step": step, "files": {}}
            threading.Timer(after, claim.append, ("checkpoint", checkpoint)).start()
        began, printed = time.monotonic(), io.StringIO()
        with pytest.raises(Interrupted):
            engine.run("tokenizer", MACHINE, Ui(printed), lambda: time.monotonic() - began > 2)
    assert printed.getvalue().count("following it") == 1


# secrets


def test_passwords_and_signatures_stay_with_the_user(tmp_path, corpus, monkeypatch):
    """Neither printed nor written down; and the run goes on without them."""
    monkeypatch.setattr(download, "PAUSE", 0)
    store = tmp_path / "store"
    with serving() as site:
        site.body = corpus.read_bytes()
        secret = site.url.replace("://", "://me:hunter2@") + "?sig=s3cret"
        told = [pipeline("run", "encode", "--store", store, "--data", secret, *TOY)]
    assert told[0].code == 0, told[0].err
    told.append(pipeline("run", "encode", "--store", store))
    assert "nothing to do" in told[1].out
    told.append(pipeline("status", "--store", store, "--json"))
    assert json.loads(told[2].out)["stages"]["encode"]["state"] == "done"
    elsewhere = secret.replace("plays", "poems").replace("s3cret", "s4cret")
    told.append(pipeline("run", "prepare", "--store", store, "--data", elsewhere))
    assert told[3].code == 1
    printed = "".join(each.out + each.err for each in told)
    names = "".join(str(path) for path in store.rglob("*"))
    written = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    for word in ("hunter2", "s3cret", "s4cret"):
        assert word not in printed + names and word.encode() not in written


def test_in_a_container_the_command_outside_is_named(monkeypatch):
    monkeypatch.setattr(process_module.sys, "argv", ["pipeline", "run", "--data", "a b"])
    monkeypatch.delenv("IGNITE_AGAIN", raising=False)
    assert process_module.again() == "pipeline run --data 'a b'"
    monkeypatch.setenv("IGNITE_AGAIN", "the same docker compose command")
    assert process_module.again() == "the same docker compose command"
