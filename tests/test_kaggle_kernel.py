"""The one file of code that Kaggle gets, and what it does there."""

import json
import os
import random
import signal
import time

import pytest
from fakes.kaggle import OWNER, FakeKaggle
from kaggle_bundles import stand_in

from launchers import bundle
from launchers.kaggle import kernel
from launchers.kaggle.bring import last_word
from launchers.kaggle.client import Client
from launchers.target import Errand, Refused

NAME = "ignite-tiny-0000aa"
PRINTS = 'print(errand["store"], sys.path[0], os.environ["AWS_SECRET_ACCESS_KEY"], flush=True)\n'
KEYS = {"AWS_ACCESS_KEY_ID": "an id", "AWS_SECRET_ACCESS_KEY": "a secret"}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


def errand(packed, store="s3://bucket/run", seconds=60.0):
    return Errand(NAME, 1, store, packed.digest, seconds)


def written(packed, store="s3://bucket/run", environ=None, seconds=60.0):
    told = kernel.told(errand(packed, store, seconds), b'{"name": "x"}', "-", environ or {})
    return kernel.source(told, packed.data)


def run(fake, text, seconds=60.0):
    Client().save(kernel.request(OWNER, NAME, text, [], seconds))
    return fake.wait(NAME)


# what it is


def test_the_real_bundle_fits_and_can_be_read_at_its_top():
    text = written(bundle.make())
    assert len(text.encode()) < 0.7 * kernel.MOST, "there should be room to grow"
    compile(text, "script.py", "exec")
    assert text.startswith(f"# launch {NAME}/1\n") and kernel.label(text) == f"{NAME}/1"
    assert "def main(told" in text[:2500] and max(map(len, text.splitlines())) <= 200
    assert kernel.label("print('hello')") is None


def test_a_program_that_is_too_large_is_named():
    packed = bundle.Bundle("0" * 64, random.Random(0).randbytes(800_000))
    with pytest.raises(Refused, match="bytes as one file of code, and Kaggle takes 1,000,000"):
        written(packed)


def test_the_request_leaves_nothing_to_chance():
    told = kernel.request(OWNER, NAME, "", [f"{OWNER}/x"], 60.0)
    assert told["machineShape"] == "NvidiaTeslaT4" and told["isPrivate"] is True
    assert told["enableInternet"] is True and told["sessionTimeoutSeconds"] == 60
    assert told["slug"] == f"{OWNER}/{NAME}" and told["newTitle"] == NAME


def test_no_secret_of_this_machine_is_in_it():
    environ = {
        "AWS_ACCESS_KEY_ID": "canary-id",
        "AWS_SECRET_ACCESS_KEY": "canary-key",
        "AWS_SESSION_TOKEN": "canary-token",
        "AWS_ENDPOINT_URL": "https://me:canary@storage",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "KAGGLE_KEY": "canary-kaggle",
    }
    text = written(bundle.make(), environ=environ)
    readable = text[: text.index('archive = """')]
    assert "canary" not in readable and "eu-west-1" in readable


def test_which_secrets_a_store_needs():
    assert kernel.secrets("") == {"needed": [], "optional": []}
    assert kernel.secrets("s3://b/r")["needed"] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    azure = kernel.secrets("abfs://b/r")  # there are several ways in, and none is needed by all
    assert azure["needed"] == [] and "AZURE_STORAGE_SAS_TOKEN" in azure["optional"]
    assert kernel.secrets("gs://b/r")["needed"] == ["GOOGLE_APPLICATION_CREDENTIALS_JSON"]
    with pytest.raises(Refused, match="sftp://"):
        kernel.secrets("sftp://b/r")


def test_what_is_shown_of_it_is_short():
    told = kernel.request(OWNER, NAME, written(bundle.make()), [], 60.0)
    shown = kernel.shown(told)["text"]
    assert len(shown) < 10_000 and "letters)" in shown and "def main(told" in shown


def test_names_of_outputs():
    assert kernel.output_name("store.ignite") == "store.ignite"
    assert kernel.output_name("store/log/k/1") == "log/k/1"
    assert kernel.output_name("elsewhere/log/k/1") is None


# what it does


def test_the_bundle_runs_from_where_it_was_unpacked_with_the_secrets_of_the_account(fake):
    fake.secrets = KEYS
    session = run(fake, written(stand_in(PRINTS)))
    store, path, secret = session.log.splitlines()[0].split(" ", 2)
    assert (store, secret) == ("s3://bucket/run", "a secret") and "ignite-" in path
    assert session.state == "COMPLETE" and last_word(session.log) == {"code": 0, "why": ""}
    assert list(session.working.iterdir()) == []


def test_missing_secrets_are_named_with_the_way_to_attach_them(fake):
    fake.secrets = {"AWS_ACCESS_KEY_ID": "canary"}
    session = run(fake, written(stand_in(PRINTS)))
    word = last_word(session.log)
    assert session.state == "ERROR" and word["code"] == 77
    assert "needs AWS_SECRET_ACCESS_KEY, and" in word["why"] and "Add-ons > Secrets" in word["why"]
    assert "canary" not in session.log and "Traceback" not in session.log


def test_a_file_that_was_damaged_on_its_way_runs_nothing(fake):
    fake.secrets, packed = KEYS, stand_in("print('it ran')")
    session = run(fake, written(bundle.Bundle(packed.digest, packed.data[:-20])))
    assert "it ran" not in session.log and "is damaged" in last_word(session.log)["why"]


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETE"), (75, "COMPLETE"), (69, "ERROR")])
def test_a_session_that_can_go_on_has_not_failed(fake, code, state):
    fake.secrets = KEYS
    session = run(fake, written(stand_in(f"sys.exit({code})")))
    assert session.state == state and last_word(session.log)["code"] == code


def test_the_box_knows_when_it_must_be_gone(fake):
    fake.secrets = KEYS
    session = run(fake, written(stand_in('print(os.environ["IGNITE_ENDS"])'), seconds=1000.0))
    assert 900 < float(session.log.split()[0]) - time.time() < 1000


def test_a_session_that_is_told_to_end_lets_the_box_end_first(fake):
    fake.secrets = KEYS
    waits = """
import signal
signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(75)))
print("parent", os.getppid(), flush=True)
time.sleep(60)
"""
    Client().save(kernel.request(OWNER, NAME, written(stand_in(waits)), [], 60.0))
    (session,) = fake.sessions(NAME)
    until = time.monotonic() + 20
    while "parent" not in session.log and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(int(session.log.split()[1]), signal.SIGTERM)
    fake.wait(NAME)
    assert "saving" in session.log and last_word(session.log)["code"] == 75


def test_the_last_word_is_the_last_line_of_its_own():
    says = 'ignite-llm ended: {"code": %d, "why": ""}\n'
    log = says % 1 + says % 75 + "[something of Kaggle's]"
    assert last_word(log) == {"code": 75, "why": ""}
    assert last_word("killed") is None and last_word("ignite-llm ended: {") is None


def test_what_is_told_is_json_whatever_is_in_it():
    packed = bundle.make()
    told = kernel.told(errand(packed, ""), json.dumps({"a": '""" \\ \n ä'}).encode(), "-", {})
    text = kernel.source(told, b"x")
    room: dict = {"__name__": "read"}
    exec(compile(text, "script.py", "exec"), room)
    assert room["told"] == told and room["told"]["errand"]["store"] == "/kaggle/working/store"
