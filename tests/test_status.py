"""What people are told of runs elsewhere: who works, where, how far, and who has gone silent."""

import json
import platform
import time
from datetime import UTC, datetime, timedelta

import pytest
from commands import launch, pipeline
from pipelines import MACHINE, local_store, run, toy_engine, write_corpus

from pipeline.cli import show
from pipeline.cli.show_log import segment, story
from pipeline.engine import log
from pipeline.engine.beat import Beat
from pipeline.engine.engine import Engine
from pipeline.engine.log import Claim, Entry
from pipeline.engine.remembered import remember
from pipeline.errors import Interrupted
from pipeline.hashing import canonical
from pipeline.store.disk import Disk
from pipeline.store.locks import machine_id
from pipeline.store.store import Store

OWNER = "gpu-box-42-0a1b2c3d"
TOLD = {"device": "cuda:1", "precision": "bf16", "keep": 2}


@pytest.fixture
def engine(tmp_path):
    """Nothing has run yet; ``prepare`` has its key."""
    return toy_engine(tmp_path / "store", write_corpus(tmp_path / "text.txt"))


def at(seconds: float = 0.0) -> str:
    """A time of this machine's clock so many seconds ago."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def claim(engine: Engine, owner: str = OWNER, machine: str = "another", **settings) -> Claim:
    planned = engine.plan()[0]
    body = {"machine_id": machine, "machine": TOLD | settings, "record": planned.record}
    return Claim.take(engine.store, planned.key, planned.state, owner, body)


def beat(engine: Engine, last: object, owner: str = OWNER) -> None:
    data = last if isinstance(last, bytes) else json.dumps(last).encode()
    engine.store.replace(f"beat/{engine.plan()[0].key}/{owner}", data)


def progress(done: int = 400) -> dict:
    return {"done": done, "total": 1200, "unit": "steps", "tokens/s": "24,000"}


def told(engine: Engine) -> dict:
    return show.status(engine, engine.plan())["stages"]["prepare"]


def line(engine: Engine) -> str:
    lines = show.status_text(show.status(engine, engine.plan())).splitlines()
    return next(line for line in lines if line.startswith("prepare"))


# who works


def test_an_owner_elsewhere_with_a_young_beat_runs(engine):
    claim(engine)
    last = at(60)
    beat(engine, {"nonce": "1", "at": last, "progress": progress()})
    found = told(engine)
    assert (found["state"], found["owner"]) == ("running", OWNER)
    assert (found["where"], found["last_beat"]) == ("gpu-box, cuda:1", last)
    assert found["progress"] == progress()
    clock = datetime.fromisoformat(last).astimezone().strftime("%H:%M:%S")
    assert f"400 of 1,200 steps, tokens/s 24,000, by {OWNER}, on gpu-box, cuda:1" in line(engine)
    assert f"{clock} by its clock" in line(engine) and "silent" not in line(engine)


# no times here: each of several test processes collects at another second, and must find the same
@pytest.mark.parametrize("ago", [180, 900_000, None])
def test_an_owner_elsewhere_whose_beat_is_old_is_silent(engine, ago):
    last = at(ago) if ago else "1970-01-01T00:00:00+00:00"
    claim(engine)
    beat(engine, {"nonce": "1", "at": last, "progress": progress()})
    assert told(engine)["state"] == "silent" and told(engine)["last_beat"] == last
    assert "silent since" in line(engine)
    assert "by its clock, taken over by the next `pipeline run`" in line(engine)
    assert "400 of 1,200 steps" in line(engine)


@pytest.mark.parametrize("last", [None, b"", b"{", {"at": "soon"}, {"at": "2026-01-01T00:00:00"}])
def test_an_owner_elsewhere_without_a_beat_to_read_is_silent(engine, last):
    claim(engine)
    if last is not None:
        beat(engine, last)
    assert told(engine)["state"] == "silent" and told(engine)["progress"] == {}
    assert "taken over by the next `pipeline run`" in line(engine)


def test_a_beat_from_the_future_is_a_sign_of_life(engine):
    """Its clock goes wrong, or ours was set back."""
    claim(engine)
    beat(engine, {"nonce": "1", "at": at(-3600), "progress": progress()})
    assert told(engine)["state"] == "running" and "last beat" in line(engine)


def test_a_process_of_this_machine_is_known_by_its_lock(engine):
    """However old its beat is: nothing is guessed here."""
    key = engine.plan()[0].key
    with Beat(engine.store, key) as alive:
        claim(engine, alive.owner, machine_id(), device="auto")
        beat(engine, {"nonce": "1", "at": at(900), "progress": progress()}, alive.owner)
        found = told(engine)
        assert (found["state"], found["here"]) == ("running", True)
        assert "auto" not in found["where"] and "clock" not in line(engine)
    assert told(engine)["state"] == "interrupted"
    assert "progress" not in line(engine) and OWNER not in line(engine)


def test_a_container_of_this_machine_has_a_disk_of_its_own(engine, tmp_path):
    """Its lock is not to be seen, so its beat tells as from elsewhere."""
    store = Store(Disk(tmp_path / "cache"), engine.store.disk)
    other = Engine(store, engine.recipe)
    claim(other, machine=machine_id())
    assert told(other)["state"] == "silent"
    beat(other, {"nonce": "1", "at": at()})
    assert (told(other)["state"], told(other)["here"]) == ("running", False)


def test_ps_says_the_same(engine):
    claim(engine)
    beat(engine, {"nonce": "1", "at": at(5), "progress": progress()})
    said = launch("ps", "--store", engine.store.root)
    assert said.out.splitlines()[1].split()[:3] == ["prepare", OWNER, "running"]
    assert "gpu-box, cuda:1" in said.out and said.out.rstrip().endswith("tokens/s 24,000")
    beat(engine, {"nonce": "1", "at": at(500), "progress": progress()})
    said = launch("ps", "--store", engine.store.root)
    assert said.out.splitlines()[1].split()[:3] == ["prepare", OWNER, "silent"]
    assert "silent since" in said.out and "taken over by the next `pipeline run`" in said.out
    (work,) = json.loads(launch("ps", "--store", engine.store.root, "--json").out)["workers"]
    assert (work["stage"], work["state"], work["where"]) == ("prepare", "silent", "gpu-box, cuda:1")


# what lies where


def test_a_checkpoint_that_waits_here_is_told(engine, tmp_path):
    store = Store(Disk(tmp_path / "cache"), engine.store.disk)
    other = Engine(store, engine.recipe)
    key = other.plan()[0].key
    store.disk.replace(f"unsent/{key}", canonical({"step": 400, "seconds": 1, "files": {}}))
    assert (told(other)["state"], told(other)["unsent_step"]) == ("interrupted", 400)
    assert "step 400 waits here to be sent" in line(other)
    owner = claim(other)
    owner.append("checkpoint", {"step": 400, "files": {}, "seconds": 1.0})
    owner.release("Interrupted")
    assert (told(other)["unsent_step"], told(other)["checkpoint_step"]) == (None, 400)
    assert "goes on from step 400" in line(other)
    assert told(engine)["unsent_step"] is None


def test_a_result_of_another_store_says_where_it_is(engine, tmp_path):
    run(engine, "prepare")
    other = Engine(local_store(tmp_path / "empty"), engine.recipe, (engine.store,))
    assert (told(other)["state"], told(other)["origin"]) == ("done", str(engine.store.root))
    assert f"in {engine.store.root}, " in line(other)
    assert told(engine)["origin"] is None and str(engine.store.root) not in line(engine)


def test_the_json_of_every_stage_has_the_same_keys(engine):
    run(engine, "prepare")
    always = {"key", "state", "seconds", "bytes", "where", "last_beat", "unsent_step", "origin"}
    for stage in show.status(engine, engine.plan())["stages"].values():
        assert always <= stage.keys()


# who computed what


def sessions(engine: Engine, *counts: int) -> None:
    """Train in sessions of so many steps each, and then to the end."""
    for count in counts:
        steps = iter(range(1, 100))
        with pytest.raises(Interrupted):
            run(engine, "train", stopping=lambda steps=steps, count=count: next(steps) == count)


def trained(engine: Engine) -> dict:
    return show.status(engine, engine.plan())["stages"]["train"]


def test_each_part_of_a_training_run_is_told(engine):
    run(engine, "encode")
    assert trained(engine)["segments"] == []
    sessions(engine, 3)
    assert [(each["from"], each["to"]) for each in trained(engine)["segments"]] == [(1, 3)]
    assert "in parts" not in show.status_text(show.status(engine, engine.plan()))
    sessions(engine, 4)
    said = show.status_text(show.status(engine, engine.plan())).splitlines()
    at = said.index("train was computed in parts:")
    first, second = said[at + 1 :]
    assert first.startswith(f"steps 1 to 3 on {platform.node()}, cpu, float32, threads 1, micro-b")
    assert second.startswith("steps 4 to 7 on ")
    run(engine, "train")
    ends = [each["to"] for each in trained(engine)["segments"]]
    assert ends == [3, 7, 12]
    train = next(planned for planned in engine.plan() if planned.stage.name == "train")
    told = story(train.state.entries)
    assert [line.split(" on ")[0].strip() for line in told[-3:]] == [
        "steps 1 to 3",
        "steps 4 to 7",
        "steps 8 to 12",
    ]
    assert "result" in told[-4]


def test_segments_that_cannot_be_read_are_left_out(engine):
    run(engine, "encode")
    sessions(engine, 3)
    state = next(each for each in engine.plan() if each.stage.name == "train").state
    blob = state.checkpoints[-1].body["files"]["segments.json"]["digest"]
    engine.store.remove_blob(blob)
    assert trained(engine)["segments"] == []


PART = {
    "from": 1,
    "to": 1200,
    "seconds": 75.0,
    "tokens_per_second": 24000,
    "machine": "gpu-box",
    "device": "Tesla T4",
    "precision": "float16",
    "micro_batch": 8,
    "world_size": 2,
    "threads": 4,
    "torch": "2.13.0",
    "skipped": 3,
    "rollbacks": 1,
    "mfu": 0.31,
    "peak_tflops": 65.1,
    "peak_measured": False,
}


def test_a_part_in_words():
    assert segment(PART) == (
        "steps 1 to 1,200 on gpu-box, Tesla T4, float16, 2 processes, micro-batch 8, "
        "24,000 tokens/s in 1:15, MFU 31.0%, updates skipped 3, returns to a checkpoint 1"
    )
    plain = PART | {"device": "cpu", "world_size": 1, "skipped": 0, "rollbacks": 0}
    assert segment(plain | {"peak_measured": True}) == (
        "steps 1 to 1,200 on gpu-box, cpu, float16, threads 4, micro-batch 8, "
        "24,000 tokens/s in 1:15, MFU 31.0% of a measured peak"
    )
    assert ", 2 processes, compiled, micro-batch 8, " in segment(PART | {"compiled": True})
    more = dict.fromkeys(("sharded", "deterministic", "activation_checkpointing"), True)
    words = ", 2 processes, sharded, deterministic, micro-batch 8, activation checkpointing, "
    assert words in segment(PART | more)


# the story of a log


def entries(*bodies: dict) -> list[Entry]:
    dated = [{"at": f"2026-10-05T14:00:{n:02}+00:00", **body} for n, body in enumerate(bodies)]
    return [Entry(position, body["kind"], body) for position, body in enumerate(dated)]


def comes(owner: str, **body) -> dict:
    return {"kind": "claim", "owner": owner, **body}


def goes(why: str) -> dict:
    return {"kind": "claim", "owner": None, "why": why}


def reaches(step: int, kind: str = "checkpoint", **body) -> dict:
    return {"kind": kind, "step": step, "files": {"w": {"digest": "d", "size": 2048}}, **body}


def ends(**body) -> dict:
    return {"kind": "result", "files": {}, "metrics": {}, "seconds": 75.0, **body}


def words(*bodies: dict, every: bool = False) -> list[str]:
    """The last column of each line."""
    lines = story(entries(*bodies), every)
    assert all(line[31:33] == "  " and line[33] != " " for line in lines)
    return [line[45:] for line in lines]


def test_a_story_with_a_return():
    assert words(
        comes("a"), reaches(400), reaches(800), reaches(600, back_to=400), comes("b"), goes("x")
    ) == [
        "by a",
        "step 400, 2.0 KiB",
        "step 800, 2.0 KiB",
        "step 600, 2.0 KiB, after a return to step 400",
        "by b, takes over from a, which did steps 1 to 600",
        "released: x",
    ]


def test_a_story_over_three_machines():
    assert words(
        comes("a-1-x", machine=TOLD),
        reaches(200),
        reaches(400),
        comes("b-2-y", machine={**TOLD, "device": "cpu", "precision": "fp32"}),
        reaches(500),
        goes("Interrupted"),
        comes("c-3-z"),
        ends(metrics={"steps": 1200}),
    ) == [
        "by a-1-x, device cuda:1, precision bf16",
        "step 200, 2.0 KiB",
        "step 400, 2.0 KiB",
        "by b-2-y, device cpu, precision fp32, takes over from a-1-x, which did steps 1 to 400",
        "step 500, 2.0 KiB",
        "released: Interrupted, after steps 401 to 500",
        "by c-3-z",
        "0 B after 1:15, with steps 501 to 1,200",
    ]


def test_a_checkpoint_that_was_taken_back_was_not_gone_on_from():
    assert words(
        comes("a-1-x"),
        reaches(200),
        reaches(400),
        goes("Interrupted"),
        comes("b-2-y"),
        {"kind": "retire", "positions": [2], "why": "blob d is damaged"},
        reaches(300),
        goes("Interrupted"),
    )[5:] == [
        "takes back 2: blob d is damaged",
        "step 300, 2.0 KiB",
        "released: Interrupted, after steps 201 to 300",
    ]


def test_what_comes_from_elsewhere_says_so():
    key = "ab12cd34" * 8
    assert words(
        comes("a-1-x", **{"from": "s3://runs/a"}),
        ends(**{"from": "s3://runs/a"}),
        comes("a-1-x"),
        reaches(4000, "adopt", **{"from": key}),
        comes("b-2-y"),
        {"kind": "same", "as": key, "because": "only a log line", "files": {}},
        comes("c-3-z"),
        {"kind": "halve", "why": "of a later version"},
    ) == [
        "by a-1-x, brought from s3://runs/a",
        "0 B after 1:15, brought from s3://runs/a",
        "by a-1-x",
        "step 4,000 of key ab12cd34..., 2.0 KiB",
        "by b-2-y, takes over from a-1-x",
        "same as key ab12cd34...: only a log line",
        "by c-3-z",
        "of a later version",
    ]


def test_a_damaged_entry_has_its_line():
    (told,) = story([Entry(3, "damaged", {"at": "1970-01-01T00:00:00+00:00"})])
    assert told.startswith("   3  ") and "1970" not in told
    assert told.endswith("it cannot be read, and holds its position")


def test_many_checkpoints_are_one_line():
    many = [reaches(step) for step in range(100, 2100, 100)]
    bodies = [comes("a-1-x"), *many, comes("b-2-y"), reaches(2100), ends()]
    told = words(*bodies)
    assert len(told) == 5
    assert told[1] == "step 2,000, 2.0 KiB, the last of 20 from step 100 on (--all shows each)"
    assert len(words(*bodies, every=True)) == len(bodies)


def test_the_verb_tells_it_and_json_stays_as_it_is(engine):
    """A run here after somebody elsewhere died: the log's own words, whatever the clocks say."""
    owner = claim(engine)
    beat(engine, {"nonce": "1", "at": at(900)})
    owner.release("Interrupted")
    run(engine, "prepare")
    remember(engine.store, engine.recipe)
    said = pipeline("log", "prepare", "--store", engine.store.root).out.splitlines()
    assert [text.split()[2] for text in said] == ["claim", "claim", "claim", "result"]
    assert f"by {OWNER}, device cuda:1, precision bf16" in said[0]
    assert f"device {MACHINE.device}, precision {MACHINE.precision}" in said[2]
    raw = pipeline("log", "prepare", "--store", engine.store.root, "--json", "--all").out
    key = engine.plan()[0].key
    stored = [entry.body for entry in log.read(engine.store, key).entries]
    assert [json.loads(text) for text in raw.splitlines()] == stored


def test_a_status_of_a_fresh_process_is_quick(engine):
    """One look: it never waits to see whether a beat moves."""
    claim(engine)
    beat(engine, {"nonce": "1", "at": at(60)})
    began = time.monotonic()
    told(engine)
    assert time.monotonic() - began < 2.0
