"""The engine on a toy pipeline: what runs, what does not, and what survives."""

import contextlib
import io
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from pipelines import MACHINE, digests, local_store, run, toy_engine, write_corpus

from pipeline.cli import show
from pipeline.engine import beat as beat_module
from pipeline.engine import code, log
from pipeline.engine.beat import Beat
from pipeline.engine.log import Claim
from pipeline.engine.remembered import latest
from pipeline.errors import Interrupted, Lost, StoreError
from pipeline.stages import STAGES, train
from pipeline.store.locks import machine_id
from pipeline.ui import Ui

NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """A finished run; tests only read it."""
    engine = toy_engine(tmp_path_factory.mktemp("finished"), corpus)
    run(engine)
    return engine


def ran(report) -> list[str]:
    return [planned.stage.name for planned, here in report if here]


def planned(engine, name):
    return next(item for item in engine.plan() if item.stage.name == name)


def test_runs_all_stages_once(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    assert ran(run(engine)[0]) == NAMES
    assert ran(run(engine)[0]) == []


def test_upto_stops_there(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    assert ran(run(engine, "encode")[0]) == NAMES[:3]


def test_two_recipes_share_common_stages(tmp_path, corpus):
    run(toy_engine(tmp_path / "store", corpus))
    other = toy_engine(tmp_path / "store", corpus, "train.lr=1e-4")
    assert ran(run(other)[0]) == ["train", "evaluate", "sample"]


def test_same_bytes_stop_a_rerun(tmp_path, corpus):
    """Another key of the tokenizer stage that learns the same merges re-runs nothing further."""
    store = tmp_path / "store"
    run(toy_engine(store, corpus))
    other = toy_engine(store, corpus, "tokenizer.min_pair_count=3")
    assert ran(run(other)[0]) == ["tokenizer"]


def test_the_place_of_the_source_is_not_in_the_key(tmp_path, corpus):
    store = tmp_path / "store"
    run(toy_engine(store, corpus))
    moved = tmp_path / "elsewhere.txt"
    moved.write_bytes(corpus.read_bytes())
    assert ran(run(toy_engine(store, moved))[0]) == []


def test_a_finished_run_outlives_its_source(tmp_path):
    text = write_corpus(tmp_path / "text.txt")
    engine = toy_engine(tmp_path / "store", text)
    run(engine)
    text.unlink()
    assert ran(run(engine)[0]) == []


def test_a_missing_source_is_an_error_before_anything_ran(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.txt"):
        run(toy_engine(tmp_path / "store", tmp_path / "nothing.txt"))


def test_explain_names_the_setting_with_both_values(finished, corpus):
    other = toy_engine(finished.store.root, corpus, "train.lr=1e-4")
    train = planned(other, "train")
    lines = show.explain(other, train, show.other_logs(other, train))
    assert any("train.lr 0.003 -> 0.0001" in line for line in lines), lines


@pytest.mark.parametrize(
    ("file", "old", "new", "reruns", "named"),
    [
        ("model/attention.py", "# one product for queries", "# a single product for", [], ""),
        (
            "model/attention.py",
            "causal = past == 0 and time > 1",
            "causal = time > 1 and past == 0",
            ["train", "evaluate", "sample"],
            "model/attention.py fused_attention",
        ),
    ],
)
def test_what_a_code_change_reruns(finished, tmp_path, monkeypatch, file, old, new, reruns, named):
    """Keys over a copy of the sources in which one line was changed."""
    root = tmp_path / "root"
    for package in ("model", "pipeline"):
        for source in (code.ROOT / package).rglob("*.py"):
            target = root / source.relative_to(code.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    changed = root / file
    text = changed.read_text(encoding="utf-8")
    assert old in text
    changed.write_text(text.replace(old, new), encoding="utf-8")
    before = {item.stage.name: item.key for item in finished.plan()}
    monkeypatch.setattr(code, "ROOT", root)
    after = {item.stage.name: item.key for item in finished.plan()}
    # stages behind a changed one have no key yet; they are re-run unless the bytes stay the same
    changed_stages = [name for name in NAMES if after[name] != before[name]]
    assert changed_stages == reruns
    if named:
        train = planned(finished, "train")
        lines = show.explain(finished, train, show.other_logs(finished, train))
        assert any(named in line for line in lines), lines


def test_interrupted_at_every_step_gives_the_same_bytes(finished, tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "encode")
    interruptions = 0
    while True:
        more = interruptions < 11
        try:
            run(engine, stopping=lambda more=more: more)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions == 11
    assert digests(engine) == digests(finished)


def test_a_damaged_blob_is_said_and_made_again(tmp_path, corpus, finished):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "encode")
    blob = engine.store.blob_path(
        planned(engine, "encode").result.body["files"]["train.tokens"]["digest"]
    )
    os.chmod(blob, 0o644)
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged.*run `pipeline run` again"):
        run(engine)
    assert ran(run(engine)[0]) == ["encode", "train", "evaluate", "sample"]
    assert digests(engine) == digests(finished)


def test_a_damaged_checkpoint_costs_an_interval(tmp_path, corpus, finished):
    engine = toy_engine(tmp_path / "store", corpus)
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        run(engine, stopping=lambda: len(train_checkpoints(engine)) >= 2 and next(calls) >= 0)
    newest = train_checkpoints(engine)[-1]
    blob = engine.store.blob_path(newest.body["files"]["state.safetensors"]["digest"])
    os.chmod(blob, 0o644)
    blob.write_bytes(blob.read_bytes()[:-1])
    _, printed = run(engine)
    assert f"the checkpoint of step {newest.body['step']} is no use" in printed
    assert digests(engine) == digests(finished)


def train_checkpoints(engine):
    state = planned(engine, "train").state
    return state.checkpoints if state else ()


def test_replaced_checkpoints_are_removed(finished):
    wanted = {blob for item in finished.plan() for blob in item.state.result.digests}
    assert set(finished.store.blobs()) == wanted


def test_a_failed_stage_leaves_nothing_half_visible(tmp_path, corpus, monkeypatch):
    from pipeline.stages import tokenizer

    engine = toy_engine(tmp_path / "store", corpus)

    def fails(context):
        (context.out / "tokenizer.json").write_text("half")
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(tokenizer, "run", fails)
        with pytest.raises(RuntimeError, match="on purpose"):
            run(engine)
    assert os.listdir(engine.store.root / "tmp") == []
    state = planned(engine, "tokenizer").state
    assert state.owner is None and state.result is None
    assert why_released(engine) == "RuntimeError: on purpose"
    assert ran(run(engine)[0]) == NAMES[1:]


def why_released(engine) -> str:
    return planned(engine, "tokenizer").state.entries[-1].body["why"]


def test_the_log_says_what_a_stage_failed_of_without_half_a_secret(tmp_path, corpus, monkeypatch):
    from pipeline.stages import tokenizer

    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYsecret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    engine = toy_engine(tmp_path / "store", corpus)

    def fails(context):
        raise OSError("x" * 170 + secret)

    monkeypatch.setattr(tokenizer, "run", fails)
    with pytest.raises(OSError, match="wJal"):
        run(engine, "tokenizer")
    assert why_released(engine) == "OSError: " + "x" * 170 + "***"


def test_two_processes_do_nothing_twice(tmp_path, corpus, finished):
    """Started at once on the same run: each stage has one result, and the usual one."""
    store = tmp_path / "store"
    first = os.fork()
    if first == 0:
        run(toy_engine(store, corpus), machine=replace(MACHINE, checkpoint_steps=1))
        os._exit(0)
    engine = toy_engine(store, corpus)
    while not engine.store.names("log"):
        time.sleep(0.01)
    run(engine)
    assert os.waitpid(first, 0)[1] == 0
    assert digests(engine) == digests(finished)
    results = [
        entry
        for key in log.keys(engine.store)
        for entry in log.read(engine.store, key).entries
        if entry.kind == "result"
    ]
    assert len(results) == len(NAMES)


@pytest.fixture
def owned(tmp_path, corpus):
    """A store on which another process owns the tokenizer stage and does nothing; its pid."""
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "prepare")
    key = planned(engine, "tokenizer").key
    child = os.fork()
    if child == 0:
        beat = Beat(engine.store, key)
        beat.__enter__()
        body = {"machine_id": machine_id()}
        Claim.take(engine.store, key, log.read(engine.store, key), beat.owner, body)
        time.sleep(60)
        os._exit(0)
    while not log.read(engine.store, key).owner:
        time.sleep(0.01)
    yield engine, child
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_whoever_comes_second_follows_and_says_whom(owned):
    engine, child = owned
    start = time.monotonic()
    printed = io.StringIO()
    with pytest.raises(Interrupted, match="goes on in the other process"):
        engine.run("tokenizer", MACHINE, Ui(printed), lambda: time.monotonic() - start > 1)
    assert f"-{child}-" in printed.getvalue() and "following it" in printed.getvalue()


def test_a_killed_owner_is_succeeded_at_once(owned):
    """The lock ends with the process: no waiting for a beat to grow old."""
    engine, child = owned
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    start = time.monotonic()
    assert ran(run(engine, "tokenizer")[0]) == ["tokenizer"]
    assert time.monotonic() - start < 5


def test_a_hanging_owner_is_succeeded_and_fenced_off(owned, monkeypatch):
    """Stopped, it holds its lock but its beat stands still; awake again, it finds itself out."""
    engine, child = owned
    monkeypatch.setattr(beat_module, "DEAD_AFTER", 1.0)
    os.kill(child, signal.SIGSTOP)
    assert ran(run(engine, "tokenizer")[0]) == ["tokenizer"]
    key = planned(engine, "tokenizer").key
    late = Claim(engine.store, key, 1, "the hanging one")
    with pytest.raises(Lost):
        late.append("result", {"files": {}, "metrics": {}})


def test_who_wakes_to_files_that_its_successor_removed_has_lost(
    tmp_path, corpus, finished, monkeypatch
):
    """A process that slept after it had its checkpoint finds the file gone: no error of its own."""
    engine = toy_engine(tmp_path / "store", corpus)
    with pytest.raises(Interrupted):
        run(engine, stopping=lambda: bool(train_checkpoints(engine)))
    works = train.run

    def sleeps(context):
        assert context.restored
        monkeypatch.setattr(train, "run", works)
        monkeypatch.setattr(beat_module.Watch, "alive", lambda watch: False)
        successor = toy_engine(tmp_path / "store", corpus)
        assert "train" in ran(run(successor)[0])
        return works(context)

    monkeypatch.setattr(train, "run", sleeps)
    report, printed = run(engine)
    assert "train: another process works on this stage now" in printed
    assert ran(report) == []
    assert digests(engine) == digests(finished)


def test_who_is_stopped_after_it_lost_its_work_speaks_of_no_checkpoint(
    tmp_path, corpus, monkeypatch
):
    engine = toy_engine(tmp_path / "store", corpus)

    def lost() -> bool:
        if not train_checkpoints(engine):
            return False
        key, body = planned(engine, "train").key, {"machine_id": "another"}
        Claim.take(engine.store, key, log.read(engine.store, key), "another-1-x", body)
        return True

    with pytest.raises(Interrupted, match="another process has taken over, and goes on"):
        run(engine, "train", stopping=lost)


def test_the_latest_recipe_is_remembered(finished):
    assert latest(finished.store) == finished.recipe
    assert latest(local_store(finished.store.root / "none")) is None


def test_status_tells_a_running_stage_and_its_progress(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus, "train.steps=100000")
    stop, ended = threading.Event(), []

    def work():
        try:
            run(engine, stopping=stop.is_set)
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    looking = toy_engine(tmp_path / "store", corpus, "train.steps=100000")  # one for each thread
    try:
        deadline = time.monotonic() + 60
        told: dict = {}
        while time.monotonic() < deadline and not told.get("progress"):
            time.sleep(0.1)
            told = show.status(looking, looking.plan())["stages"]["train"]
    finally:
        stop.set()
        thread.join()
    assert [type(error) for error in ended] == [Interrupted], ended
    assert told["state"] == "running"
    assert told["progress"]["total"] == 100_000
    after = show.status(looking, looking.plan())["stages"]["train"]
    assert after["state"] == "interrupted"
    assert after["checkpoint_step"] >= 1


def test_a_diverging_run_that_nothing_helps_says_what_to_do(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus, "train.lr=1000", "train.muon_lr=1000")
    with pytest.raises(
        ValueError, match=r"the loss became .* --set train\.lr=62\.5 --set train\.muon_lr=62\.5"
    ):
        run(engine)
    assert planned(engine, "train").state.owner is None
