"""Carrying keys from one store to another: what arrives, what does not, and at no instant half."""

import json
import os
import random
import shutil
import signal
import threading

import pytest
from commands import TOY, pipeline
from pipelines import digests, local_store, run, toy_engine
from servers import make_bucket, s3_environment, s3_server, sftp_server

from pipeline.cli import stores as cli_stores
from pipeline.engine import beat as beat_module
from pipeline.engine import gc, log
from pipeline.engine.beat import Beat
from pipeline.engine.log import Claim
from pipeline.engine.transfer import append, bring, carry, deliver, obstacle, pack, worked_on
from pipeline.errors import Interrupted, Lost
from pipeline.store.disk import Disk
from pipeline.store.locks import machine_id
from pipeline.store.places import cache_of, open_store
from pipeline.store.store import Store, silent

OTHER = ("train.lr=1e-3", "train.steps=40")  # a recipe that shares all before train
RECORD = {"stage": "train", "recipe": {}, "inputs": {}, "code": {}}


def put(store: Store, data: bytes) -> dict:
    with store.scratch() as scratch:
        (scratch / "file").write_bytes(data)
        return {"digest": store.put(scratch / "file"), "size": len(data)}


def checkpoint(store: Store, claim: Claim, step: int, **body: int) -> None:
    """One by the claim's owner; the bytes of all but the newest two go, as a run lets them."""
    files = {
        "state": put(store, b"state %d of " % step + claim.key.encode()),
        "history": put(store, b"history of " + claim.key.encode()),
    }
    claim.append("checkpoint", {"step": step, "files": files, "seconds": step, **body})
    gc.prune(store, claim.key, set(), set())


def finish(store: Store, claim: Claim, data: bytes = b"weights") -> None:
    files = {"weights": put(store, data)}
    claim.append("result", {"files": files, "metrics": {}, "seconds": 1})
    state = log.read(store, claim.key)
    for entry in state.checkpoints:
        for blob in entry.digests.keys() - state.needed:
            store.remove_blob(blob)


def begin(store: Store, key: str, owner: str = "first") -> Claim:
    return Claim.take(store, key, log.read(store, key), owner, {"record": RECORD})


def trained(store: Store, key: str, *steps: int, owner: str = "first") -> Claim:
    """A key with some checkpoints, whose owner was then killed."""
    claim = begin(store, key, owner)
    for step in steps:
        checkpoint(store, claim, step)
    return claim


@pytest.fixture
def two(tmp_path):
    return local_store(tmp_path / "source"), local_store(tmp_path / "target")


def everything(source: Store, target: Store):
    """Bring all there is; returns what was brought and what was skipped."""
    parcels, skipped = [], []
    for parcel in pack(source, target, log.keys(source)):
        hindered = obstacle(source, target, parcel, print)
        (parcels if hindered is None else skipped).append(hindered or parcel)
    return parcels, skipped + deliver(source, target, parcels, "carrier", silent, print)


def kinds(store: Store, key: str) -> list[str]:
    return [entry.kind for entry in log.read(store, key).entries]


def is_whole(store: Store) -> bool:
    """Is every blob there that any log needs?"""
    return all(
        store.blob(blob).exists() for key in log.keys(store) for blob in log.read(store, key).needed
    )


# what arrives


def test_a_finished_story_goes_along_word_for_word(two):
    source, target = two
    trained(source, "key", 10, 20).release("Interrupted")
    claim = trained(source, "key", 30, owner="second")
    finish(source, claim)
    everything(source, target)
    theirs, ours = (log.read(store, "key") for store in two)
    assert ours.result.body == theirs.result.body
    told = [entry.body for entry in theirs.entries if entry.kind != "checkpoint"]
    assert [entry.body for entry in ours.entries] == told
    assert set(target.blobs()) == theirs.needed


def test_the_newest_checkpoints_arrive_and_nobody_works_on_them(two):
    source, target = two
    trained(source, "key", 10, 20, 30, 40)
    everything(source, target)
    ours = log.read(target, "key")
    assert [entry.body["step"] for entry in ours.checkpoints] == [30, 40]
    assert ours.owner is None and log.read(source, "key").owner is not None
    assert is_whole(target) and len(list(target.blobs())) == 3


def test_more_of_an_unfinished_key_follows(two):
    source, target = two
    claim = trained(source, "key", 10, 20)
    for step in (30, 40, 50):
        everything(source, target)
        checkpoint(source, claim, step)
    finish(source, claim)
    everything(source, target)
    assert (
        log.read(target, "key").result.body["files"] == log.read(source, "key").result.body["files"]
    )
    assert is_whole(target)


def test_a_released_key_goes_on_word_for_word(two):
    source, target = two
    trained(source, "key", 10).release("Interrupted")
    everything(source, target)
    finish(source, trained(source, "key", 20, owner="second"))
    everything(source, target)
    ours, theirs = (log.read(store, "key").entries for store in (target, source))
    assert [entry.body for entry in ours] == [e.body for e in theirs if e.body.get("step") != 20]


def test_twice_brings_nothing_the_second_time(two):
    source, target = two
    finish(source, trained(source, "done", 10))
    trained(source, "half", 10)
    assert len(everything(source, target)[0]) == 2
    before = {key: kinds(target, key) for key in log.keys(target)}
    assert everything(source, target) == ([], [])
    assert {key: kinds(target, key) for key in log.keys(target)} == before


def test_a_key_that_came_to_nothing_is_not_brought(two):
    source, target = two
    begin(source, "key").release("ValueError")
    assert everything(source, target) == ([], [])
    assert log.keys(target) == []


def test_what_the_target_has_further_stays(two):
    source, target = two
    trained(source, "key", 10, 20)
    trained(target, "key", 10, 30, owner="other").release("Interrupted")
    before = kinds(target, "key")
    assert everything(source, target) == ([], [])
    assert kinds(target, "key") == before


# logs that went different ways


def test_of_two_ways_the_further_one_is_appended_under_a_claim_of_its_own(two):
    source, target = two
    trained(target, "key", 10, owner="other")
    trained(source, "key", 20, 30)
    everything(source, target)
    ours = log.read(target, "key")
    assert kinds(target, "key") == [
        "claim",
        "checkpoint",
        "claim",
        "checkpoint",
        "checkpoint",
        "claim",
    ]
    assert [entry.body["step"] for entry in ours.checkpoints] == [20, 30]
    assert ours.entries[2].body["from"] == source.place and ours.owner is None
    assert is_whole(target)


def test_of_two_ways_the_first_result_stands(two):
    source, target = two
    finish(source, trained(source, "key", 10), b"theirs")
    finish(target, trained(target, "key", 10, owner="other"), b"ours")
    assert everything(source, target) == ([], [])
    assert target.blob(*log.read(target, "key").needed).read_bytes() == b"ours"


def test_a_result_ends_what_the_target_had_begun(two):
    source, target = two
    finish(source, trained(source, "key", 10))
    trained(target, "key", 10, owner="other").release("Interrupted")
    everything(source, target)
    assert log.read(target, "key").needed == log.read(source, "key").needed and is_whole(target)


# runs that went back


def test_what_a_return_has_replaced_is_brought_once(two):
    source, target = two
    claim = trained(source, "key", 6, 8)
    checkpoint(source, claim, 7, back_to=6)
    for step in (9, 11):
        checkpoint(source, claim, step)
    claim.release("Interrupted")
    for times in (1, 0):
        assert len(everything(source, target)[0]) == times
        assert kinds(target, "key") == ["claim", "checkpoint", "checkpoint", "claim"]


def test_a_return_reaches_a_copy_that_was_made_while_the_run_was_alive(two):
    source, target = two
    claim = trained(source, "key", 6, 8)
    everything(source, target)
    checkpoint(source, claim, 7, back_to=6)
    everything(source, target)
    assert [each.body["step"] for each in log.read(target, "key").checkpoints] == [6, 7]
    for step in (9, 10):
        checkpoint(source, claim, step)
    everything(source, target)
    assert [each.body["step"] for each in log.read(target, "key").checkpoints] == [9, 10]
    assert is_whole(target) and everything(source, target)[0] == []


def test_a_return_reaches_a_copy_when_the_entry_that_told_it_was_replaced(two):
    source, target = two
    claim = trained(source, "key", 6, 12)
    everything(source, target)
    checkpoint(source, claim, 7, back_to=6)
    for step in (8, 9):
        checkpoint(source, claim, step)
    everything(source, target)
    state = log.read(target, "key")
    assert [each.body["step"] for each in state.checkpoints] == [8, 9]
    assert [each.body["back_to"] for each in state.entries if "back_to" in each.body] == [6]


# keys that somebody works on


def test_a_key_that_is_worked_on_is_skipped_until_there_is_a_result(two, monkeypatch):
    source, target = two
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.1)
    claim = trained(source, "key", 10)
    with Beat(target, "key") as beat:
        body = {"machine_id": machine_id(), "record": RECORD}
        owned = Claim.take(target, "key", log.read(target, "key"), beat.owner, body)
        brought, (skipped,) = everything(source, target)
        assert brought == [] and f"{beat.owner} works on it" in skipped.why and not skipped.lost
        finish(source, claim)
        assert len(everything(source, target)[0]) == 1
        with pytest.raises(Lost):
            checkpoint(target, owned, 5)
    assert log.read(target, "key").result is not None


def test_an_owner_elsewhere_is_watched_until_it_is_certain(two, monkeypatch):
    _, target = two
    monkeypatch.setattr(beat_module, "DEAD_AFTER", 0.7)
    claim = begin(target, "key", "elsewhere")
    state = log.read(target, "key")
    assert not worked_on(target, "key", state, print)  # it never showed a beat
    beats, stop = iter(range(100)), threading.Event()

    def lives():
        while not stop.wait(0.1):
            target.replace("beat/key/elsewhere", b'{"nonce": %d}' % next(beats))

    target.replace("beat/key/elsewhere", b'{"nonce": -1}')
    thread = threading.Thread(target=lives)
    thread.start()
    told = []
    try:
        assert worked_on(target, "key", state, told.append)
        assert told == ["train: looking whether elsewhere still works on it"]
    finally:
        stop.set()
        thread.join()
    assert not worked_on(target, "key", state, print)  # it stands still
    claim.release("done")
    assert not worked_on(target, "key", log.read(target, "key"), told.append)


class Meanwhile(Store):
    """A store on which others act just before the first log entry is created."""

    def create(self, name: str, data: bytes) -> bool:
        for act in self.acts:
            self.acts = self.acts[1:]
            act()
        return super().create(name, data)


def test_who_begins_meanwhile_and_is_gone_again_costs_another_look(tmp_path):
    source, plain = local_store(tmp_path / "source"), local_store(tmp_path / "target")
    target = Meanwhile(Disk(tmp_path / "target"))
    target.acts = [lambda: trained(plain, "key", 5, owner="quick").release("Interrupted")]
    trained(source, "key", 10, 20)
    assert everything(source, target)[1] == []
    assert kinds(target, "key")[:3] == ["claim", "checkpoint", "claim"]
    assert [entry.body["step"] for entry in log.read(plain, "key").checkpoints] == [10, 20]


def test_who_begins_meanwhile_and_stays_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.1)
    source, plain = local_store(tmp_path / "source"), local_store(tmp_path / "target")
    target = Meanwhile(Disk(tmp_path / "target"))
    trained(source, "key", 10, 20)
    with Beat(plain, "key") as beat:
        target.acts = [lambda: trained(plain, "key", owner=beat.owner)]
        _, (skipped,) = everything(source, target)
    assert beat.owner in skipped.why and kinds(plain, "key") == ["claim"]


def test_a_blob_that_gc_takes_before_it_is_named_goes_again(tmp_path):
    source, plain = local_store(tmp_path / "source"), local_store(tmp_path / "target")
    target = Meanwhile(Disk(tmp_path / "target"))
    finish(source, trained(source, "key", 10))
    there = put(plain, b"weights")["digest"]
    target.acts = [lambda: plain.remove_blob(there)]
    assert everything(source, target)[1] == []
    assert is_whole(plain) and there in plain.blobs()


def test_one_append_is_lost_to_another(two):
    source, target = two
    trained(source, "key", 10)
    (parcel,) = pack(source, target, ["key"])
    carry(source, target, parcel.blobs)
    begin(target, "key", "other")
    with pytest.raises(Lost):
        append(parcel, source, target, "carrier")
    assert kinds(target, "key") == ["claim"]


# bytes that are damaged or gone


def damage(store: Store, blob: str) -> None:
    path = store.blob_path(blob)
    os.chmod(path, 0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def newest(store: Store, key: str) -> str:
    return log.read(store, key).checkpoints[-1].body["files"]["state"]["digest"]


def test_a_damaged_result_is_said_and_the_rest_arrives(two):
    source, target = two
    for key in ("bad", "good"):
        finish(source, trained(source, key, 10), key.encode())
    (blob,) = log.read(source, "bad").needed
    damage(source, blob)
    _, (skipped,) = everything(source, target)
    assert skipped.lost and f"blob {blob[:12]} is missing from {source.place}" in skipped.why
    assert log.keys(target) == ["good"] and is_whole(target)
    _, (again,) = everything(source, target)
    assert again.lost


def test_of_checkpoints_the_whole_one_arrives(two):
    source, target = two
    trained(source, "key", 10, 20)
    damage(source, newest(source, "key"))
    assert everything(source, target)[1] == []
    assert [entry.body["step"] for entry in log.read(target, "key").checkpoints] == [10]
    assert is_whole(target)


def test_a_checkpoint_that_was_left_out_follows_when_it_is_mended(two):
    source, target = two
    trained(source, "key", 10, 20).release("Interrupted")
    blob = newest(source, "key")
    whole = source.blob(blob).read_bytes()
    source.remove_blob(blob)
    everything(source, target)
    put(source, whole)
    everything(source, target)
    assert [entry.body["step"] for entry in log.read(target, "key").checkpoints] == [10, 20]
    assert is_whole(target)


def test_lost_bytes_come_back(two):
    source, target = two
    finish(source, trained(source, "done", 10))
    trained(source, "half", 10, 20)
    everything(source, target)
    (result,), half = log.read(target, "done").needed, newest(target, "half")
    for blob in (result, half):
        target.remove_blob(blob)
    parcels, skipped = everything(source, target)
    assert skipped == [] and [parcel.entries for parcel in parcels] == [(), ()]
    assert is_whole(target)


def test_what_may_be_replaced_soon_is_carried_first(two):
    source, target = two
    finish(source, trained(source, "a", 10))
    trained(source, "b", 10)
    finish(source, trained(source, "c", 10), b"another")
    carried = []
    put_in = target.put
    target.put = lambda file, report: carried.append(file.name) or put_in(file, report)
    everything(source, target)
    unfinished = log.read(source, "b").needed
    assert set(carried[: len(unfinished)]) == unfinished and len(carried) == 4


def test_checkpoints_that_are_replaced_while_they_are_read(two):
    source, target = two
    claim = trained(source, "key", 10, 20)
    (parcel,) = pack(source, target, ["key"])
    checkpoint(source, claim, 30)
    checkpoint(source, claim, 40)
    assert deliver(source, target, [parcel], "carrier", silent, print) == []
    assert [entry.body["step"] for entry in log.read(target, "key").checkpoints] == [30, 40]
    assert is_whole(target)


def test_bring_leaves_out_what_is_damaged(two):
    source, target = two
    finish(source, trained(source, "key", 10))
    damage(source, *log.read(source, "key").needed)
    assert not bring(source, target, "key", "carrier")
    assert not bring(source, target, "nothing", "carrier")
    assert log.keys(target) == []


# killed


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A source with all kinds of keys, and a target that has gone its own way with some."""
    folder = tmp_path_factory.mktemp("scene")
    source, target = local_store(folder / "source"), local_store(folder / "target")
    finish(source, trained(source, "done", 10, 20, 30), b"done")
    trained(source, "half", 10, 20, 30)
    trained(source, "other", 40, 50)
    trained(source, "both", 10).release("Interrupted")
    everything(source, target)
    trained(source, "both", 20, 30, owner="second")
    trained(target, "fresh", 10, owner="here").release("Interrupted")
    finish(source, trained(source, "fresh", 20), b"fresh")
    trained(target, "half", 35, owner="here").release("Interrupted")
    finish(source, trained(source, "half", 40, owner="second"), b"half")
    finish(source, trained(source, "new", 10), b"new")
    return source, target


@pytest.mark.parametrize("mirror", [False, True])
def test_killed_at_every_write_the_target_is_whole_and_the_next_one_ends_it(
    scene, tmp_path, mirror
):
    source, before = scene
    expected = {key: log.read(source, key).needed for key in log.keys(source)}
    at, code = 0, -signal.SIGKILL
    while code != 0:
        assert code == -signal.SIGKILL
        shutil.copytree(before.root, tmp_path / str(at))
        child = os.fork()
        if child == 0:
            killed_at(Store(Disk(tmp_path / str(at)), exclusive=not mirror), source, at)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        target = Store(Disk(tmp_path / str(at)), exclusive=not mirror)
        assert is_whole(target), f"killed at write {at}"
        assert everything(source, target)[1] == []
        after = {key: log.read(target, key) for key in log.keys(target)}
        assert {key: state.needed for key, state in after.items()} == expected
        assert is_whole(target) and all(state.owner is None for state in after.values())
        at += 1
    assert at >= 12  # it was killed between all of them


def killed_at(target: Store, source: Store, number: int) -> None:
    """Bring everything and die at a write to the target."""
    code, left, disk = 1, iter(range(number)), target.disk
    create, move_in, replace = disk.create, disk.move_in, disk.replace

    def dies(call):
        def write(*words):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            call(*words)

        return write

    disk.create, disk.move_in, disk.replace = dies(create), dies(move_in), dies(replace)
    try:
        everything(source, target)
        code = 0
    finally:
        os._exit(code)


# the verbs


@pytest.fixture(scope="module")
def shared(tmp_path_factory, corpus):
    """A store with a finished run, and one under another recipe that was interrupted; read only."""
    store = tmp_path_factory.mktemp("shared") / "store"
    other = toy_engine(store, corpus, *OTHER)
    with pytest.raises(Interrupted):
        run(other, stopping=lambda: len(checkpoints(other)) >= 2)
    assert pipeline("run", "--store", store, "--data", corpus, *TOY).code == 0
    return store


def checkpoints(engine):
    state = engine.plan()[3].state
    return state.checkpoints if state else ()


def told(*words) -> dict:
    answer = pipeline(*words, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_push_and_pull_between_directories(shared, tmp_path, corpus):
    """And the run that was interrupted goes on where it was pulled to, to the same bytes."""
    mirror, here = tmp_path / "mirror", tmp_path / "here"
    first = told("push", mirror, "--store", shared)
    assert (first["keys"], first["results"], first["checkpoints"]) == (7, 6, 2)
    again = told("push", f"file://{mirror}", "--store", shared)
    assert (again["keys"], again["files"], again["bytes"], again["unchanged"]) == (0, 0, 0, 7)
    answer = pipeline("pull", mirror, "--store", here)
    assert answer.code == 0 and answer.out.startswith("pulled 6 results, 2 checkpoints (")
    assert pipeline("verify", "--store", here).code == 0
    assert answer.out.endswith(f") from {mirror}\n")
    whole, went_on = (toy_engine(store, corpus, *OTHER) for store in (tmp_path / "whole", here))
    run(whole)
    reached = checkpoints(went_on)[-1].body["step"]
    _, printed = run(went_on)
    assert f"going on from step {reached}" in printed
    assert digests(went_on) == digests(whole)
    back = told("push", mirror, "--store", here)
    assert (back["keys"], back["results"], back["unchanged"]) == (3, 3, 6)


def test_what_was_pulled_needs_no_options(shared, tmp_path):
    here = tmp_path / "here"
    assert pipeline("pull", shared, "--store", here).code == 0
    pulled, origin = (pipeline("status", "--store", store).out for store in (here, shared))
    assert pulled.replace(str(here), str(shared)) == origin
    assert pipeline("sample", "--store", here).out == pipeline("sample", "--store", shared).out


def test_a_dry_run_writes_nothing(shared, tmp_path):
    for words in (
        ["push", tmp_path / "s", "--store", shared],
        ["pull", shared, "--store", tmp_path / "s"],
    ):
        answer = pipeline(*words, "-n")
        assert answer.code == 0
        assert answer.out.startswith(f"would {words[0]} 6 results, 2 checkpoints (")
    assert not (tmp_path / "s").exists()


def test_mistakes(shared, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(shared)
    for verb in ("push", "pull"):
        answer = pipeline(verb, link, "--store", shared)
        assert answer.code == 2 and "is the store itself: name another PLACE" in answer.err
        assert pipeline(verb).code == 2
    nothing = tmp_path / "nothing"
    for words in (
        ["pull", nothing, "--store", tmp_path / "s"],
        ["push", tmp_path / "s", "--store", nothing],
    ):
        answer = pipeline(*words)
        assert answer.code == 1
        assert answer.err == f"error: there is nothing in {nothing}: no stage has ever run there\n"
    assert not nothing.exists() and not (tmp_path / "s" / "log").exists()


def test_a_place_without_hard_links_is_a_mirror(shared, tmp_path, monkeypatch):
    def refuses(*_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refuses)
        assert told("push", tmp_path / "drive", "--store", shared)["keys"] == 7
        assert told("push", tmp_path / "drive", "--store", shared)["keys"] == 0
    assert told("pull", tmp_path / "drive", "--store", tmp_path / "here")["results"] == 6
    assert is_whole(local_store(tmp_path / "here"))


def test_a_missing_blob_is_said_with_exit_code_1(tmp_path):
    source = local_store(tmp_path / "source")
    finish(source, trained(source, "key"))
    source.remove_blob(*log.read(source, "key").needed)
    answer = pipeline("push", tmp_path / "target", "--store", source.root)
    assert answer.code == 1
    assert "skipped train key: blob" in answer.out and "is missing from" in answer.out


def test_ctrl_c_says_that_the_same_command_goes_on(shared, tmp_path, monkeypatch):
    asked = iter([False] * 12)
    monkeypatch.setattr(cli_stores, "stop_on_signals", lambda: lambda: next(asked, True))
    answer = pipeline("push", tmp_path / "s", "--store", shared)
    assert answer.code == 75 and "stopped:" in answer.err and "the same command" in answer.err
    some = len(list(local_store(tmp_path / "s").blobs()))
    assert some > 0 and local_store(tmp_path / "s").names("log") == []
    monkeypatch.setattr(cli_stores, "stop_on_signals", lambda: lambda: False)
    rest = told("push", tmp_path / "s", "--store", shared)
    assert rest["keys"] == 7
    assert rest["files"] + some == len(list(local_store(tmp_path / "s").blobs()))


# a bucket


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patched:
        for name, value in s3_environment(endpoint).items():
            patched.setenv(name, value)
        make_bucket(endpoint, "bucket")
        yield "s3://bucket"


def cached(place: str) -> list[str]:
    return list(Store(Disk(cache_of(place))).blobs())


def test_to_a_bucket_and_back_on_an_empty_machine(bucket, shared, tmp_path, corpus, monkeypatch):
    place = f"{bucket}/runs"
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "one"))
    assert told("push", place, "--store", shared)["keys"] == 7
    assert told("push", place, "--store", shared)["keys"] == 0
    assert cached(place) == []
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "two"))
    here = toy_engine(tmp_path / "here", corpus, *OTHER)
    assert told("pull", place, "--store", here.store.root)["keys"] == 7
    assert cached(place) == [] and is_whole(here.store)
    run(here)
    whole = toy_engine(tmp_path / "whole", corpus, *OTHER)
    run(whole)
    assert digests(here) == digests(whole)
    back = told("push", place, "--store", here.store.root)
    assert (back["keys"], back["results"]) == (3, 3)


def test_a_server_that_cannot_create_exclusively_is_a_mirror(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with sftp_server(tmp_path / "sftp") as (server, home):
        monkeypatch.setenv("HOME", str(home))
        place = f"{server}/runs"
        assert told("push", place, "--store", shared)["keys"] == 7
        assert told("push", place, "--store", shared)["keys"] == 0
        assert told("pull", place, "--store", tmp_path / "here")["keys"] == 7
        assert is_whole(local_store(tmp_path / "here"))
        answer = pipeline("pull", shared, "--store", place)
        assert answer.code == 1 and "cannot serve as --store" in answer.err


def test_from_bucket_to_bucket_the_store_keeps_its_cache_and_the_other_place_has_none(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path))
    seed = random.Random(7)
    local = local_store(tmp_path / "local")
    claim = begin(local, "key")
    files = {str(i): put(local, seed.randbytes(70_000)) for i in range(5)}
    claim.append("result", {"files": files, "metrics": {}, "seconds": 1})
    assert told("push", f"{bucket}/a", "--store", local.root)["bytes"] == 350_000
    assert cached(f"{bucket}/a") == []
    assert told("push", f"{bucket}/b", "--store", f"{bucket}/a")["files"] == 5
    assert len(cached(f"{bucket}/a")) == 5 and cached(f"{bucket}/b") == []
    assert is_whole(open_store(f"{bucket}/b"))


def test_progress_counts_every_byte_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path))
    local = local_store(tmp_path / "local")
    blobs = {
        each["digest"]: each["size"] for each in (put(local, b"%d" % i * 999) for i in range(9))
    }
    for source, target in (
        (local, open_store(f"{bucket}/p")),
        (open_store(f"{bucket}/p"), open_store(f"{bucket}/q")),
        (open_store(f"{bucket}/q"), local_store(tmp_path / "back")),
        (local, local_store(tmp_path / "copy")),
    ):
        counted: list[int] = []
        assert carry(source, target, blobs, counted.append) == set()
        assert sum(counted) == sum(blobs.values())
