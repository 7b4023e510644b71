"""Kaggle without a store elsewhere: how a run gets there, and what comes back."""

import json
import tarfile
import time
from dataclasses import replace

import pytest
from fakes.kaggle import FakeKaggle
from kaggle_bundles import ENDS, HANGS, NAME, PATIENT, kaggle, launched, only, push
from pipelines import SETTINGS, toy_engine
from test_transfer import begin, checkpoint

from launchers.history import history
from launchers.judging import Pace
from launchers.kaggle import pack
from launchers.launches import Launch
from launchers.lifecycle import Keeper
from launchers.target import Away
from pipeline import recipe
from pipeline.engine import log
from pipeline.store.disk import Disk
from pipeline.store.store import Store

HASTY = Pace(look=0.02, settle=5, boot=0.05, silent=0.05, leaving=0.05, dry=0.02)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


@pytest.fixture
def store(tmp_path):
    return Store(Disk(tmp_path / "store"))


@pytest.fixture
def trained(store, tmp_path, monkeypatch):
    """A store with a key of the recipe's at step 7, and one of another recipe."""
    settings = recipe.load("tiny", settings=SETTINGS).settings(("model", "train"))
    told = {"stage": "train", "recipe": json.loads(json.dumps(settings)), "inputs": {}, "code": {}}
    for key, record in (("a" * 64, told), ("b" * 64, told | {"recipe": {"train.lr": 9}})):
        monkeypatch.setattr("test_transfer.RECORD", record)
        checkpoint(store, begin(store, key), 7)
    return store


def steps(store, key="a" * 64):
    return [entry.body["step"] for entry in log.read(store, key).checkpoints]


def session_after(fake, target, errand):
    push(target, errand)
    session = fake.wait(NAME)
    target.collect(only(target))
    Launch(target.store, NAME).append("left", attempt=errand.attempt)
    return session


def test_the_run_goes_on_there_and_comes_back(fake, trained):
    """Twice, and each time Kaggle mounts it elsewhere."""
    fake.layout, fake.processing, fake.page = "old", 0.1, 3
    target, errand = kaggle(trained), launched(trained, ENDS)
    first = session_after(fake, target, errand)
    assert "aaaa [7]" in first.log and "bbbb" not in first.log, first.log
    assert steps(trained) == [7, 17] and first.state == "COMPLETE"
    assert Launch(trained, NAME).box(1)["code"] == 75
    assert Launch(trained, NAME).printed(1, 0) == b"hello\n"
    fake.layout = "new"
    assert "aaaa [7, 17]" in session_after(fake, target, replace(errand, attempt=2)).log
    assert steps(trained) == [17, 27] and steps(trained, "b" * 64) == [7]
    state = log.read(trained, "a" * 64)
    assert state.owner is None and all(trained.blob(blob).exists() for blob in state.needed)
    assert not list((trained.root.parent / "cache" / "kaggle").iterdir())
    # what was sent is not sent back, and all records are one file
    left = sorted(each.relative_to(first.working) for each in first.working.rglob("*"))
    assert len([each for each in left if len(each.name) == 64]) == 1
    assert {each.parts[:2] for each in left} == {("store",), ("store", "blob"), ("store.ignite",)}


def test_nothing_is_sent_where_there_is_nothing(fake, store):
    session = session_after(fake, kaggle(store), launched(store, ENDS))
    assert not fake.datasets and not session.request["datasetDataSources"]
    assert Launch(store, NAME).box(1)["code"] == 75


def test_a_push_whose_answer_was_lost_does_not_send_the_run_again(fake, trained):
    target, errand = kaggle(trained), launched(trained, ENDS)
    fake.fail("SaveKernel", 503)
    with pytest.raises(Away):
        push(target, errand)
    session_after(fake, target, errand)
    assert [method for method, _ in fake.requests].count("StartBlobUpload") == 1


def test_a_data_set_that_is_not_mounted_yet_ends_the_session_at_once(fake, trained):
    target, errand = kaggle(trained), launched(trained, ENDS)
    session_after(fake, target, errand)
    fake.stale_mounts = True
    session = session_after(fake, target, replace(errand, attempt=2))
    word = Launch(trained, NAME).box(2)
    assert session.state == "ERROR" and word["code"] == 74 and "cannot be used" in word["why"]
    assert "is not mounted under" in session.log and "aaaa" not in session.log
    assert steps(trained) == [7, 17]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_session_that_is_killed_leaves_what_kaggle_keeps(fake, trained, keeps):
    fake.keeps_output = keeps
    target, errand = kaggle(trained), launched(trained, HANGS)
    push(target, errand)
    until = time.monotonic() + 20
    while "hangs" not in fake.sessions(NAME)[-1].log and time.monotonic() < until:
        time.sleep(0.02)
    fake.kill(NAME)
    target.collect(only(target))
    assert steps(trained) == ([7, 17] if keeps else [7])
    assert Launch(trained, NAME).box(1).get("state") == ("running" if keeps else None)


def test_the_session_limit_is_kaggles_own_clock(fake, store):
    fake.speed = 50_000.0
    push(kaggle(store), launched(store, HANGS))
    session = fake.wait(NAME, 30)
    assert session.state == "ERROR" and "time limit" in session.why
    assert fake.used >= 43_200


def test_a_fetch_that_is_cut_goes_on(fake, trained):
    target = kaggle(trained)
    push(target, launched(trained, ENDS))
    fake.wait(NAME)
    fake.fail("GET", 0)
    with pytest.raises(Away):
        target.collect(only(target))
    assert steps(trained) == [7]
    target.collect(only(target))
    assert steps(trained) == [7, 17]


def test_output_that_is_damaged_is_left_out(fake, trained):
    target = kaggle(trained)
    push(target, launched(trained, ENDS))
    session = fake.wait(NAME)
    (blob,) = (each for each in session.working.rglob("*") if len(each.name) == 64)
    blob.chmod(0o644)
    blob.write_bytes(b"rotten")
    target.collect(only(target))
    assert steps(trained) == [7] and Launch(trained, NAME).box(1)["code"] == 75


def test_a_kernel_that_somebody_has_deleted_left_nothing(fake, trained):
    target = kaggle(trained)
    push(target, launched(trained, ENDS))
    fake.wait(NAME)
    box = only(target)
    fake.kernels.clear()
    target.collect(box)
    assert steps(trained) == [7]


def test_a_pack_is_a_function_of_what_is_in_it_and_holds_nothing_else(trained, tmp_path):
    names = [*pack.names(trained, ["a" * 64]), "log/" + "c" * 64 + "/0000000000"]
    for file in ("one", "two"):
        pack.write(trained, names, tmp_path / file)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    pack.unpack(tmp_path / "one", tmp_path / "room")
    assert log.keys(pack.guest(tmp_path / "room")) == ["a" * 64]
    data = (tmp_path / "one").read_bytes()
    (tmp_path / "cut").write_bytes(data[: data.index(b"end\0")])
    with pytest.raises(ValueError, match="is damaged"):
        pack.unpack(tmp_path / "cut", tmp_path / "room")


def test_a_pack_writes_nothing_outside_of_its_folder(tmp_path):
    with tarfile.open(tmp_path / "evil", "w") as archive:
        for name in ("../out", "/tmp/out", "log/x", "blob/aa/../../../out"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("blob/aa/" + "a" * 64)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo(pack.END))
    (tmp_path / "room").mkdir()
    pack.unpack(tmp_path / "evil", tmp_path / "room")
    assert list((tmp_path / "room").iterdir()) == [] and not (tmp_path / "out").exists()


def test_the_keys_of_a_real_run_are_those_of_its_recipe(finished, corpus):
    engine = toy_engine(finished, corpus)
    keys = pack.keys(engine.store, engine.recipe)
    assert len(keys) == 6
    other = toy_engine(finished, corpus, "train.lr=9e-4")
    assert len(pack.keys(engine.store, other.recipe)) == 5  # all but train


def test_a_keeper_waits_for_a_session_that_cannot_speak_and_pushes_until_it_is_done(fake, trained):
    """A session that is cut off and one that ends; none has a word for us while it runs."""
    launched(trained, PATIENT)
    said, launch = [], Launch(trained, NAME)
    assert Keeper(launch, kaggle(trained), said.append, HASTY).run() == "finished"
    codes = [each.code for each in history(launch.events()).attempts]
    assert codes == [75, 0] and steps(trained) == [17, 27], said


def test_a_session_that_cannot_be_stopped_is_waited_for(fake, trained):
    launched(trained, PATIENT)
    said, launch = [], Launch(trained, NAME)
    keeper = Keeper(launch, kaggle(trained), said.append, HASTY)
    keeper.step()
    launch.stop("enough")
    assert keeper.run() == "stopped"
    assert any("cannot be reached, and ends by itself" in line for line in said), said
    assert steps(trained) == [7, 17], "what it has made is here"
