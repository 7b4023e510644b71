"""Kaggle as a target: quota, pushes, and what is told of sessions."""

import json
import time
from dataclasses import replace

import pytest
from boxes import ordered
from fakes.kaggle import OWNER, FakeKaggle
from kaggle_bundles import ENDS, HANGS, NAME, kaggle, launched, only, push

from launchers.kaggle.client import Client
from launchers.launches import Launch
from launchers.target import Away, Errand, Refused, Spoiled
from pipeline.store.disk import Disk
from pipeline.store.store import Store


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


@pytest.fixture
def store(tmp_path):
    return Store(Disk(tmp_path / "store"))


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


def test_an_attempt_that_was_given_up_while_it_was_prepared_is_not_pushed(fake, store, monkeypatch):
    target = kaggle(store)
    errand = launched(store, HANGS)
    meanwhile = Launch(store, errand.name)
    monkeypatch.setattr(target, "_send", lambda order: meanwhile.append("left", attempt=1) and None)
    with pytest.raises(Refused, match="given up"):
        push(target, errand)
    assert not fake.kernels
