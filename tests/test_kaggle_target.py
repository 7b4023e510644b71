"""Kaggle as a target: quota, pushes, what is told of sessions, and what they leave."""

import json
import tarfile
import time
from dataclasses import replace

import pytest
from boxes import ordered
from fakes.kaggle import OWNER, FakeKaggle
from kaggle_bundles import stand_in
from pipelines import SETTINGS, toy_engine
from test_transfer import begin, checkpoint

from launchers.kaggle import pack
from launchers.kaggle.client import Client
from launchers.kaggle.target import Kaggle
from launchers.launches import Launch, Order
from launchers.target import Away, Errand, Refused, Spoiled
from pipeline import recipe
from pipeline.engine import log
from pipeline.store.disk import Disk
from pipeline.store.store import Store

NAME = "ignite-tiny-0000aa"
# what a box of ours does with its store, in a moment
WORKS = """
from launchers.launches import Launch
from pipeline.engine import log
from pipeline.engine.log import Claim
from pipeline.store.places import open_store

store = open_store(errand["store"])
launch = Launch(store, errand["name"])
launch.tell(errand["attempt"], state="running")

def put(data):
    with store.scratch() as scratch:
        (scratch / "file").write_bytes(data)
        return {"digest": store.put(scratch / "file"), "size": len(data)}

for key in log.keys(store):
    seen = log.read(store, key)
    print(key[:4], [entry.body["step"] for entry in seen.checkpoints], flush=True)
    claim = Claim.take(store, key, seen, "a-box", {"record": seen.record})
    step = 10 + max((entry.body["step"] for entry in seen.checkpoints), default=0)
    claim.append("checkpoint", {"step": step, "files": {"state": put(b"state %d" % step)}})
    claim.release("interrupted")
launch.print(errand["attempt"], 0, b"hello\\n")
"""
ENDS = WORKS + 'launch.tell(errand["attempt"], state="ended", code=75)\nsys.exit(75)\n'
HANGS = WORKS + 'print("hangs", flush=True)\ntime.sleep(60)\n'


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


@pytest.fixture
def store(tmp_path):
    return Store(Disk(tmp_path / "store"))


def kaggle(store, **options):
    return Kaggle(store, pause=lambda seconds: time.sleep(0.02), **options)


def launched(store, bootstrap, name=NAME, place="", **options):
    """A launch with an order; and the errand of its first attempt."""
    packed = stand_in(bootstrap)
    tree = recipe.load("tiny", settings=SETTINGS).tree()
    Launch(store, name).place(Order(name, "kaggle", tree, [], packed.digest))
    store.create(f"bundle/{packed.digest}", packed.data)
    return Errand(name, 1, place, packed.digest, None)


def push(target, errand):
    return target.create(errand, target.offers()[0])


def only(target):
    (box,) = target.boxes()
    return box


# quota


def test_the_offer_says_what_is_left_and_that_it_costs_nothing(fake, store):
    fake.used = 3600.0
    (offer,) = kaggle(store, hours=lambda gpu, gpus: 3.0 * gpus).offers()
    assert (offer.gpu, offer.gpus, offer.per_hour, offer.total) == ("Tesla T4", 2, 0.0, 0.0)
    assert offer.hours == 6.0 and offer.facts["quota_hours"] == 29.0
    assert "2026-11-28" in offer.facts["refresh"] and "warning" not in offer.facts


def test_a_quota_that_is_too_small_is_said_before_anything_is_sent(fake, store):
    fake.quota, fake.used = 36_000.0, 35_500.0
    with pytest.raises(Refused, match=r"used up: 0.1 of 10 h are left, until 2026-11-28"):
        kaggle(store).offers()
    fake.used = 30_000.0
    (offer,) = kaggle(store, hours=lambda gpu, gpus: 4.0).offers()
    assert "takes about 4.0 h, and this week's quota will not do" in offer.facts["warning"]
    assert {method for method, _ in fake.requests} == {"GetAcceleratorQuotaStatistics"}


@pytest.mark.parametrize(
    ("asked", "quota", "trains", "timeout"),
    [
        (None, 30.0, 42_000.0, 43_200),
        (3600.0, 30.0, 3600.0, 4800),
        (None, 2.0, 6000.0, 7200),
        (None, 0.5, 900.0, 2100),
    ],
)
def test_a_session_ends_before_it_is_cut_off(fake, store, asked, quota, trains, timeout):
    fake.quota = quota * 3600
    errand, target = replace(launched(store, ENDS), seconds=asked), kaggle(store)
    order, data = Launch(store, NAME).order(), store.read(f"bundle/{errand.bundle}")
    (told,) = target.describe(errand, target.offers()[0], order, data)
    assert told["body"]["sessionTimeoutSeconds"] == timeout
    assert f'"seconds": {trains}' in told["body"]["text"]


# pushing


def test_a_push_that_is_refused_says_why_and_made_nothing(fake, store):
    errand, target = launched(store, ENDS), kaggle(store)
    fake.fail("SaveKernel", 200, body={"error": "Phone verification is required for GPUs"})
    with pytest.raises(Refused, match="Verify your phone number once"):
        push(target, errand)
    fake.fail("SaveKernel", 200, body={"error": "Maximum batch GPU session count of 2 reached."})
    with pytest.raises(Refused, match="does not run the kernel: Maximum batch GPU session count"):
        push(target, errand)
    with pytest.raises(Refused, match="has no bundle"):
        push(target, replace(errand, bundle="0" * 64))
    assert target.boxes() == []


def test_a_push_that_saved_the_kernel_and_complains_has_made_a_box(fake, store):
    fake.fail(
        "SaveKernel",
        200,
        carried_out=True,
        body={"versionNumber": 1, "invalidDatasetSources": ["ada/x"]},
    )
    with pytest.raises(Spoiled, match="ada/x cannot be mounted") as caught:
        push(kaggle(store), launched(store, ENDS))
    assert caught.value.id == f"{OWNER}/{NAME}/1"


@pytest.mark.parametrize("carried_out", [True, False])
def test_after_a_lost_answer_the_boxes_tell_whether_there_is_one(fake, store, carried_out):
    errand = launched(store, HANGS)
    fake.fail("SaveKernel", 503, carried_out=carried_out)
    with pytest.raises(Away):
        push(kaggle(store), errand)
    found = kaggle(store).boxes()
    assert [(box.label, box.id) for box in found] == (
        [(f"{NAME}/1", f"{OWNER}/{NAME}/1")] if carried_out else []
    )


def test_a_kernel_that_the_list_does_not_show_yet_is_found(fake, store):
    push(kaggle(store), launched(store, HANGS))
    fake.fail("ListKernels", 200, body={"kernels": []})
    assert only(kaggle(store)).label == f"{NAME}/1"


def test_attempts_are_told_apart_and_left_ones_go(fake, store):
    errand, target = launched(store, ENDS), kaggle(store)
    launch = Launch(store, NAME)
    push(target, errand)
    fake.wait(NAME)
    assert (only(target).state, only(target).attempt) == ("ended", 1)
    launch.append("left", attempt=1)
    assert target.boxes() == []
    fake.queue = 0.3
    push(target, replace(errand, attempt=4))
    assert (only(target).state, only(target).attempt) == ("starting", 4)
    fake.wait(NAME)
    assert (only(target).state, only(kaggle(store)).attempt) == ("ended", 4)
    launch.append("over", outcome="finished")
    assert kaggle(store).boxes() == []


def test_a_session_of_another_store_is_listed_while_it_runs(fake, store, tmp_path):
    other = Store(Disk(tmp_path / "other"))
    push(kaggle(other), launched(other, HANGS))
    assert only(kaggle(store)).launch == NAME
    fake.kill(NAME)
    assert kaggle(store).boxes() == []
    Client().save({"slug": f"{OWNER}/ignite-mine", "newTitle": "ignite-mine", "text": "1"})
    assert kaggle(store).boxes() == [], "a kernel that nobody's launch has made"


def test_nobody_can_end_a_session_and_destroy_says_so(fake, store):
    target = kaggle(store)
    id = push(target, launched(store, HANGS))
    with pytest.raises(Refused, match=rf"ends after 12 h.*kaggle.com/code/{OWNER}/{NAME}"):
        target.destroy(id)
    fake.kill(NAME)
    target.destroy(id)
    assert fake.kernels, "and what it has left is still there"
    target.destroy(f"{OWNER}/ignite-tiny-9999ff/1")


def test_force_deletes_the_kernel(fake, store):
    target = kaggle(store)
    target.destroy(push(target, launched(store, HANGS)), force=True)
    assert not fake.kernels and target.boxes() == []


def test_what_a_session_prints_is_told_while_it_runs_and_after(fake, store, monkeypatch):
    monkeypatch.setattr("launchers.kaggle.client.LISTEN", 0.3)
    target = kaggle(store)
    push(target, launched(store, HANGS))
    until = time.monotonic() + 20
    while "hangs" not in target.output(only(target)) and time.monotonic() < until:
        time.sleep(0.05)
    assert "hangs" in target.output(only(target))
    fake.kill(NAME)
    assert "hangs" in target.output(only(target))
    assert only(target).why == "the machine was lost"


def test_what_would_be_sent_can_be_shown(fake, store, tmp_path):
    launch = ordered(str(tmp_path / "store"), tmp_path / "none.txt", name=NAME)
    order, data = launch.order(), store.read(f"bundle/{launch.order().bundle}")
    errand = Errand(NAME, 1, "", order.bundle, None)
    target = kaggle(store)
    told = target.describe(errand, target.offers()[0], order, data)
    assert [each["call"] for each in told] == ["SaveKernel"]
    assert len(json.dumps(told)) < 12_000 and not fake.kernels
    assert told[0]["body"]["sessionTimeoutSeconds"] == 43_200


# without a store elsewhere


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


@pytest.mark.parametrize("layout", ["old", "new"])
def test_the_run_goes_on_there_and_comes_back(fake, trained, layout):
    fake.layout, fake.processing, fake.page = layout, 0.1, 3
    target, errand = kaggle(trained), launched(trained, ENDS)
    first = session_after(fake, target, errand)
    assert "aaaa [7]" in first.log and "bbbb" not in first.log, first.log
    assert steps(trained) == [7, 17] and first.state == "COMPLETE"
    assert Launch(trained, NAME).box(1)["code"] == 75
    assert Launch(trained, NAME).printed(1, 0) == b"hello\n"
    assert "aaaa [7, 17]" in session_after(fake, target, replace(errand, attempt=2)).log
    assert steps(trained) == [17, 27] and steps(trained, "b" * 64) == [7]
    state = log.read(trained, "a" * 64)
    assert state.owner is None and all(trained.blob(blob).exists() for blob in state.needed)
    assert not list((trained.root.parent / "cache" / "kaggle").iterdir())


def test_what_was_sent_is_not_sent_back(fake, trained):
    session = session_after(fake, kaggle(trained), launched(trained, ENDS))
    left = sorted(each.relative_to(session.working) for each in session.working.rglob("*"))
    blobs = [each for each in left if len(each.name) == 64]
    assert len(blobs) == 1 and (session.working / "store.ignite").exists()
    assert {each.parts[1] for each in left if len(each.parts) > 1} == {"blob"}


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
    assert session.state == "ERROR" and word["code"] == 1 and "(74)" in word["why"]
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
