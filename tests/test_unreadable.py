"""What an entry that cannot be read may have named stays, until it cannot matter any more."""

import json
import re
import shutil

import pytest
from commands import pipeline
from pipelines import local_store
from stores import KEY, OTHER, checkpoint, claim, finish, put, store_at, sweep

from pipeline.engine import beat as beat_module
from pipeline.engine import log
from pipeline.engine.beat import Beat
from pipeline.engine.gc import prune
from pipeline.engine.log import Claim
from pipeline.engine.needed import all_blobs, needed_by, unreadable
from pipeline.engine.settle import settle
from pipeline.store.locks import machine_id
from pipeline.store.store import Store


@pytest.fixture(params=["local", "elsewhere"])
def store(request, tmp_path):
    return store_at(request.param, tmp_path)


def harm(store: Store, how: str, position: int, key: str = KEY) -> Store:
    """Damage an entry, or remove it; returns the store as another process sees it."""
    path = store.records.path(log.entry_name(key, position))
    if how == "gone":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(b"\0")
    return Store(store.disk, store.remote)


def freed(store: Store) -> list[str]:
    sweep(store, 0.0)
    return sorted(sweep(store, 0.0))


def unsettled(store: Store) -> list[int]:
    return [each.position for each in unreadable(store, log.keys(store)) if not each.settled]


def test_what_a_damaged_result_may_have_named_stays(store):
    """And what other entries name, and nobody needs, goes all the same."""
    weights, old, new = (put(store, data) for data in (b"weights", b"old", b"new"))
    finish(claim(store), weights)
    other = claim(store, OTHER)
    for step, blob in enumerate((old, new, put(store, b"newest"))):
        checkpoint(other, step, blob)
    again = harm(store, "damaged", 1)
    assert freed(again) == [old] and weights in all_blobs(again)
    assert unsettled(again) == [1]


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_what_a_lost_checkpoint_may_have_named_stays(store, how):
    blobs = [put(store, b"%d" % step) for step in range(3)]
    owner = claim(store)
    for step, blob in enumerate(blobs):
        checkpoint(owner, step, blob)
    again = harm(store, how, 2)
    assert freed(again) == [] and unsettled(again) == [2]
    assert sorted(all_blobs(again)) == sorted(blobs)


def test_a_result_made_since_settles_it(store):
    weights, checkpoints = put(store, b"weights"), put(store, b"checkpoint")
    checkpoint(claim(store), 4, checkpoints)
    again = harm(store, "damaged", 1)
    assert freed(again) == []
    finish(claim(again), weights)
    assert unsettled(again) == [] and freed(again) == [checkpoints]


def test_an_owner_still_frees_the_checkpoints_that_it_replaces(store):
    weights = put(store, b"weights")
    finish(claim(store, OTHER), weights)
    again = harm(store, "damaged", 1, OTHER)
    blobs = [put(again, b"%d" % step) for step in range(3)]
    owner = claim(again)
    for step, blob in enumerate(blobs):
        checkpoint(owner, step, blob)
    prune(again, KEY, set(), set())
    assert sorted(all_blobs(again)) == sorted([weights, *blobs[1:]])


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_it_can_be_given_up(store, how):
    blobs = [put(store, b"%05d" % step) for step in range(3)]
    owner = claim(store)
    for step, blob in enumerate(blobs):
        checkpoint(owner, step, blob)
    again = harm(store, how, 2)
    assert settle(again, KEY, pytest.fail)
    assert unsettled(again) == [] and freed(again) == [blobs[1]]
    state = log.read(again, KEY)
    assert [entry.body["step"] for entry in state.checkpoints] == [0, 2]
    assert settle(again, KEY, pytest.fail) and log.read(again, KEY) == state


def test_what_is_worked_on_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.1)
    store = store_at("local", tmp_path)
    checkpoint(claim(store), 4, put(store, b"one"))
    again, told = harm(store, "damaged", 1), []
    with Beat(again, KEY) as beat:
        body = {"machine_id": machine_id(), "record": {"stage": "train"}}
        Claim.take(again, KEY, log.read(again, KEY), beat.owner, body)
        assert not settle(again, KEY, told.append)
    assert unsettled(again) == [1] and beat.owner in told[0]
    assert len(log.read(again, KEY).entries) == 3


def test_strange_names_in_a_log_do_no_harm(store):
    finish(claim(store), put(store, b"one"))
    store.replace(f"log/{KEY}/9999999999", b"{}")
    store.replace(f"log/{KEY}/notes.txt", b"mine")
    store.replace("log/notes.txt", b"mine")
    assert set(needed_by(store)[KEY]) == set(all_blobs(store))


# as users meet it


@pytest.fixture
def damaged(finished, tmp_path):
    """A finished run whose result of train cannot be read; and the entry's name."""
    shutil.copytree(finished, tmp_path / "store")
    root, key = (
        tmp_path / "store",
        json.loads(pipeline("status", "--store", finished, "--json").out)["stages"]["train"]["key"],
    )
    state = log.read(local_store(root), key)
    harm(local_store(root), "damaged", state.result.position, key)
    return root, log.entry_name(key, state.result.position), set(state.result.digests)


def test_gc_says_what_stays_and_verify_does_not_invite_it(damaged):
    root, name, blobs = damaged
    told = pipeline("verify", "--store", root)
    assert told.code == 1 and "`pipeline gc` frees" not in told.out
    assert name in told.err and "`pipeline pull` from one" in told.err
    for _ in range(2):
        told = pipeline("gc", "--store", root, "--grace", "0s")
        assert told.code == 0 and told.err.count("\n") == 1
        assert f"{name} of train cannot be read, so all blobs stay that no other" in told.err
        assert "`pipeline gc --despite-damage`" in told.err
    assert blobs <= set(all_blobs(local_store(root)))
    found = json.loads(pipeline("gc", "-n", "--json", "--store", root).out)
    assert found["unreadable"] == [name] and found["marked"] == []


def test_a_copy_heals_it(damaged, finished):
    root, _, _ = damaged
    assert pipeline("pull", finished, "--store", root).code == 0
    assert pipeline("verify", "--store", root).code == 0
    assert pipeline("gc", "--store", root).err == ""
    assert "nothing to do" in pipeline("run", "--store", root).out


def test_gc_gives_it_up_if_told_to(damaged):
    root, name, blobs = damaged
    words = ["gc", "--despite-damage", "--grace", "0s", "--store", root]
    promised = json.loads(pipeline(*words, "-n", "--json").out)
    assert {item["name"] for item in promised["marked"]} == blobs
    told = pipeline(*words)
    assert told.code == 1 and "Give up for good" in told.err and "train cannot be read" in told.out
    told = pipeline(*words, "-y")
    assert told.code == 0 and re.search(rf"marked: {len(blobs)} blobs", told.out), told
    told = pipeline("verify", "--store", root)
    assert told.code == 0 and f"{name} of train cannot be read, and nothing hangs" in told.err
    pipeline("gc", "--grace", "0s", "--store", root)
    assert not blobs & set(all_blobs(local_store(root)))
