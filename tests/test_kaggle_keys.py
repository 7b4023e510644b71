"""Kaggle with a store elsewhere: a person attaches its keys, and the same launch goes on."""

import pytest
from boxes import ordered
from commands import TOY, launch
from fakes.kaggle import FakeKaggle

from launchers.census import known
from launchers.kaggle import kernel
from launchers.target import Errand
from pipeline.store.places import open_store

pytestmark = pytest.mark.slow
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@pytest.fixture
def fake(tmp_path, hasty, monkeypatch):
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


def push(place, corpus):
    return launch("kaggle", "--store", place, "--data", corpus, *TOY, "-y")


def test_the_first_push_asks_for_keys_and_the_same_command_goes_on(fake, corpus):
    place = "s3://runs/keys"
    asked = push(place, corpus)
    assert asked.code == 75 and "waits for you" in asked.err and "Add-ons > Secrets" in asked.err
    fake.secrets = KEYS
    said = push(place, corpus)
    assert said.code == 0, said.out + said.err
    (only,) = known(open_store(place))
    versions = fake.sessions(only.launch.name)  # of the kernel to which they are attached
    assert [each.state for each in versions] == ["ERROR", "COMPLETE"]


def test_a_session_that_a_person_has_started_anew_does_the_work(fake, corpus):
    """Save & Run All makes another version of the same code, of an attempt that was left."""
    place = "s3://runs/again"
    assert push(place, corpus).code == 75
    (only,) = known(open_store(place))
    fake.secrets = KEYS
    fake.SaveKernel(fake.sessions(only.launch.name)[0].request)
    fake.wait(only.launch.name)
    assert only.launch.box(1)["code"] == 0
    said = push(place, corpus)
    assert said.code == 0 and len(known(open_store(place))) == 1, said.out + said.err


def test_a_store_that_is_not_amazons_is_found_there_too(tmp_path, corpus):
    launch_ = ordered(str(tmp_path / "store"), corpus)
    errand = Errand(launch_.name, 1, "s3://bucket/run", "b" * 64, None)
    environ = {"AWS_ENDPOINT_URL_S3": "https://id.r2.cloudflarestorage.com", "AWS_REGION": "auto"}
    told = kernel.told(errand, b"{}", "-", environ)
    assert told["environment"] == environ
    signed = {"AWS_ENDPOINT_URL_S3": "https://host/?X-Amz-Signature=0123456789abcdef"}
    assert kernel.told(errand, b"{}", "-", signed)["environment"] == {}
