"""Stopping in order: when the time that was given is over, and when somebody asks for it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, TOY, pipeline
from pipelines import MACHINE, digests, run, toy_engine
from servers import make_bucket, s3_environment, s3_server

from pipeline.cli import stop as verb
from pipeline.cli.options import open_store
from pipeline.engine import beat as beat_module
from pipeline.engine import log, stopping
from pipeline.engine.beat import Beat, ask_to_stop, asked_to_stop, bury
from pipeline.engine.engine import Engine
from pipeline.engine.log import Claim
from pipeline.engine.remembered import remember
from pipeline.engine.stopping import Stopping
from pipeline.errors import Interrupted, StoreAway
from pipeline.ui import Ui

LONG = ["--set", "train.steps=1000000"]
# ``pipeline ...`` with a quick beat
PROGRAM = """
import sys
from pipeline.cli.main import main
from pipeline.engine import beat

beat.BEAT_EVERY = beat.REMOTE_EVERY = 0.2
sys.argv[0] = "pipeline"
main()
"""


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    return clock


# when


def test_without_a_limit_only_a_signal_stops(clock):
    asked = False
    stop = Stopping(lambda: asked)
    clock.now += 1e9
    stop.needs("step", 1e9)
    assert not stop()
    asked = True
    assert stop() and stop.why == ""


def test_the_time_leaves_room_for_the_longest_ending_so_far(clock):
    stop = Stopping(lambda: False, 100.0, "after 100s")
    for step, checkpoint in ((1.0, 5.0), (3.0, 2.0), (2.0, 4.0)):
        stop.needs("step", step)
        stop.needs("checkpoint", checkpoint)
    clock.now += 91.9  # 3 and 5 seconds are needed
    assert not stop() and stop.why == ""
    clock.now += 0.2
    assert stop() and stop.why == "after 100s"


def test_the_first_reason_stands(clock):
    stop = Stopping(lambda: False, 100.0, "after 100s")
    stop.ask("because ada asked")
    clock.now += 200
    assert stop()
    stop.ask("because bob asked")
    assert stop.why == "because ada asked"


def test_one_that_knows_its_reasons_is_kept():
    stop = Stopping(lambda: True)
    assert Stopping.of(stop) is stop
    assert Stopping.of(lambda: True)() and not Stopping.of(lambda: False)()


# after a time


@pytest.mark.parametrize(
    ("words", "answer"),
    [("soon", "'--stop-after': 'soon' is not a duration"), ("0s", "longer than")],
)
def test_a_time_that_is_none(tmp_path, words, answer):
    said = pipeline("run", "--store", tmp_path / "store", "--stop-after", words)
    assert said.code == 2 and answer in said.err


def test_a_run_stops_after_its_time_and_goes_on(tmp_path, corpus):
    store = tmp_path / "store"
    words = ("run", "--store", store, "--data", corpus, *TOY, *LONG)
    pipeline("run", "encode", *words[1:])  # so that a busy machine, too, comes to train
    began = time.monotonic()
    said = pipeline(*words, "--stop-after", "6s")
    assert time.monotonic() - began < 30
    assert said.code == 75
    assert "stopped after 6s: checkpoint written at step " in said.err
    assert "Go on with: pipeline run" in said.err and "--stop-after 6s" in said.err
    step = int(said.err.split("written at step ")[1].split(".")[0])
    again = pipeline(*words, "--stop-after", "4s")
    assert again.code == 75 and f"going on from step {step:,}" in again.out
    told = json.loads(pipeline("status", "--store", store, "--json").out)["stages"]["train"]
    assert [each["from"] for each in told["segments"]] == [1, step + 1]


def test_the_time_also_ends_other_stages(tmp_path, corpus):
    said = pipeline(
        "run", "--store", tmp_path / "store", "--data", corpus, "--stop-after", "0.001s"
    )
    assert said.code == 75 and "stopped after 0.001s: " in said.err
    state = toy_engine(tmp_path / "store", corpus).plan()[0].state
    assert state.result is None and state.owner is None


def test_a_program_reads_how_far_a_stopped_run_is(tmp_path, corpus):
    words = ("encode", "--store", tmp_path / "store", "--data", corpus, "--json")
    said = pipeline("run", *words, "--stop-after", "0.001s")
    told = json.loads(said.out)
    assert said.code == 75 and told["stopped"].startswith("stopped after 0.001s: ")
    assert [stage["state"] for stage in told["stages"].values()] == ["to run", "waiting", "waiting"]


@pytest.mark.parametrize("error", [StoreAway("it cannot be reached"), Interrupted("stopped")])
def test_a_program_hears_of_a_stop_although_the_store_is_away(tmp_path, corpus, monkeypatch, error):
    def away(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.cli.show.status", away)
    words = ("--store", tmp_path / "store", "--data", corpus, "--json", "--stop-after", "0.001s")
    said = pipeline("run", *words)
    assert said.code == 75 and [*json.loads(said.out)] == ["stopped"]


# asked from elsewhere


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path, monkeypatch):
    """Where a store may be."""
    if request.param == "directory":
        yield str(tmp_path / "store")
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server() as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        make_bucket(endpoint, "bucket")
        yield "s3://bucket/run"


@contextlib.contextmanager
def training(place: str, corpus: Path):
    """A process that trains for longer than any test; yields it once it has made a checkpoint."""
    words = ("run", "--store", place, "--data", corpus, *TOY, *LONG)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        engine = _engine(place, corpus)
        deadline = time.monotonic() + 120
        while not _train(engine).checkpoints:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


def _engine(place: str, corpus: Path) -> Engine:
    recipe = toy_engine(Path("unused"), corpus, "train.steps=1000000").recipe
    return Engine(open_store(place), recipe)


def _train(engine: Engine) -> log.State:
    planned = next(each for each in engine.plan() if each.stage.name == "train")
    return planned.state or log.fold([])


def test_a_run_is_stopped_from_elsewhere_and_goes_on(place, corpus):
    with training(place, corpus) as process:
        said = pipeline("stop", "--store", place, "--why", "the card is needed", "--json")
        (asked,) = json.loads(said.out)
        assert asked["stage"] == "train" and f"-{process.pid}-" in asked["owner"]
        out, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert "asked for it: the card is needed: checkpoint written at step" in err
        assert "stopped because " in err and "Go on with: pipeline run" in err
        assert "train: stopping as soon as all is saved: " in out
    engine = _engine(place, corpus)
    state = _train(engine)
    assert state.owner is None and state.checkpoints
    assert engine.store.names("stop") == []
    step = state.checkpoints[-1].body["step"]
    words = ("--data", corpus, *TOY, *LONG, "--stop-after", "4s")
    again = pipeline("run", "--store", place, *words)
    assert again.code == 75 and f"going on from step {step:,}" in again.out


def test_nobody_is_there_to_be_stopped(finished, tmp_path):
    said = pipeline("stop", "--store", finished)
    assert said.code == 0 and said.out == ""
    assert f"nobody works on {finished}" in said.err
    told = pipeline("stop", "--store", finished, "--size", "tiny")
    assert told.code == 0 and f"nobody works on this run on {finished}" in told.err
    assert pipeline("stop", "--store", finished, "--json").out == "[]\n"
    assert not (finished / "stop").exists()


def test_a_dead_owner_is_not_asked(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    key = engine.plan()[0].key
    with Beat(engine.store, key) as beat:
        body = {"machine_id": beat_module.machine_id(), "record": engine.plan()[0].record}
        Claim.take(engine.store, key, log.read(engine.store, key), beat.owner, body)
    remember(engine.store, engine.recipe)
    assert pipeline("stop", "--store", tmp_path / "store", "--json").out == "[]\n"


def test_whoever_works_on_the_store_is_asked_whatever_ran_last(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    key, record = engine.plan()[0].key, engine.plan()[0].record
    other = toy_engine(tmp_path / "store", corpus, "data.validation=0.3")
    remember(engine.store, other.recipe)
    with Beat(engine.store, key) as beat:
        body = {"machine_id": beat_module.machine_id(), "record": record}
        Claim.take(engine.store, key, log.read(engine.store, key), beat.owner, body)
        words = ("stop", "--store", tmp_path / "store", "--json")
        assert pipeline(*words, "--set", "data.validation=0.3").out == "[]\n"
        (told,) = json.loads(pipeline(*words).out)
        assert told["owner"] == beat.owner and told["stage"] == "prepare"


def test_a_beat_tells_of_the_request_and_takes_it_away(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.05)
    store, heard = toy_engine(tmp_path / "store", corpus).store, []
    with Beat(store, "k" * 64, heard.append) as beat:
        assert asked_to_stop(store, beat.owner) is None
        ask_to_stop(store, beat.owner, "because")
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard[0].endswith(" asked for it: because")
        assert asked_to_stop(store, beat.owner) == heard[0]
    assert store.names("stop") == []


def test_a_request_that_is_cut_short_counts(tmp_path, corpus):
    store = toy_engine(tmp_path / "store", corpus).store
    for flag in (b"", b"{", b"[]", b'{"by": 1}'):
        store.replace("stop/a-1-x", flag)
        assert asked_to_stop(store, "a-1-x") == "somebody asked for it"


def test_whoever_buries_an_owner_takes_the_request_away(tmp_path, corpus):
    store = toy_engine(tmp_path / "store", corpus).store
    ask_to_stop(store, "a-1-x", "")
    bury(store, "k" * 64, log.Entry(0, "claim", {"owner": "a-1-x"}))
    assert store.names("stop") == []


def test_an_owner_that_has_just_gone_leaves_no_request(tmp_path, corpus, monkeypatch):
    """It ends between the look at the log and the request: nobody else would remove that."""
    engine = toy_engine(tmp_path / "store", corpus)
    key, record = engine.plan()[0].key, engine.plan()[0].record
    with Beat(engine.store, key) as beat:
        body = {"machine_id": beat_module.machine_id(), "record": record}
        claim = Claim.take(engine.store, key, log.read(engine.store, key), beat.owner, body)

        def too_late(store, owner, why):
            claim.release("done")
            ask_to_stop(store, owner, why)

        monkeypatch.setattr(verb, "ask_to_stop", too_late)
        assert verb._ask(engine.store, key, "") == []
        assert engine.store.names("stop") == []


def test_status_says_who_is_to_stop(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    remember(engine.store, engine.recipe)
    key, record = engine.plan()[0].key, engine.plan()[0].record
    with Beat(engine.store, key) as beat:
        body = {"machine_id": beat_module.machine_id(), "record": record}
        Claim.take(engine.store, key, log.read(engine.store, key), beat.owner, body)
        ask_to_stop(engine.store, beat.owner, "lunch")
        said = pipeline("status", "--store", tmp_path / "store").out
        assert "to stop: " in said and "asked for it: lunch" in said


def test_a_stop_and_a_start_end_with_the_same_bytes(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.01)
    whole, cut = (toy_engine(tmp_path / name, corpus) for name in ("whole", "cut"))
    run(whole)
    run(cut, "encode")
    save, asked = beat_module.Beat.__enter__, []

    def enter(beat):
        entered = save(beat)
        if not asked:
            asked.append(beat.owner)
            ask_to_stop(cut.store, beat.owner, "")
        return entered

    monkeypatch.setattr(beat_module.Beat, "__enter__", enter)
    slow = Stopping(lambda: time.sleep(0.02) or False)  # so that the beat comes in between
    with pytest.raises(Interrupted, match="checkpoint written at step"):
        cut.run("sample", MACHINE, Ui(io.StringIO()), slow)
    assert slow.why.startswith("because ")
    run(cut)
    assert digests(cut) == digests(whole)
