"""Calls to Kaggle: what is asked, and what each way of saying no means."""

import builtins
import json
import random
import subprocess
import sys
import time

import pytest
from fakes.kaggle import KEY, OWNER, TOKEN, FakeKaggle

from launchers.kaggle.client import Client, Denied
from launchers.kaggle.datasets import Datasets
from launchers.kaggle.kernel import request
from launchers.target import Away, Refused


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


def run(fake, text="print('hello')", name="ignite-tiny-0000aa", mounted=()):
    told = Client().save(request(OWNER, name, text, list(mounted), 60))
    return told, fake.wait(name)


def datasets(**options):
    return Datasets(Client(), lambda line: None, lambda seconds: time.sleep(0.01), **options)


# credentials


def test_no_credentials_say_where_they_are_looked_for(fake, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    with pytest.raises(Refused, match=r"looked for in KAGGLE_API_TOKEN.*settings"):
        Client()


@pytest.mark.parametrize("place", [".kaggle", ".config/kaggle"])
def test_a_key_may_lie_in_a_file(fake, monkeypatch, tmp_path, place):
    monkeypatch.delenv("KAGGLE_USERNAME")
    file = tmp_path / "home" / place / "kaggle.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"username": OWNER, "key": KEY}))
    assert Client().quota().allowed == 30 * 3600 and Client().owner == OWNER
    file.write_text(f'{{"key": "{KEY}"')
    with pytest.raises(Refused, match=r"kaggle.json cannot be read") as caught:
        Client()
    assert KEY not in str(caught.value)


def test_a_token_is_asked_whose_it_is(fake, monkeypatch):
    fake.install(monkeypatch, token=True)
    client = Client()
    assert client.owner == client.owner == OWNER
    assert [method for method, _ in fake.requests] == ["IntrospectToken"]


def test_what_kaggle_auth_login_left_is_used(fake, monkeypatch, tmp_path):
    monkeypatch.delenv("KAGGLE_USERNAME")
    told = {"refresh_token": "r", "access_token": TOKEN, "username": OWNER}
    told["access_token_expiration"] = "2999-01-01T00:00:00+00:00"
    (tmp_path / "home" / ".kaggle").mkdir(parents=True)
    (tmp_path / "home" / ".kaggle" / "credentials.json").write_text(json.dumps(told))
    assert Client().quota().left == 30 * 3600


@pytest.mark.parametrize("token", [False, True])
def test_wrong_credentials_are_named_by_their_place_and_never_shown(fake, monkeypatch, token):
    fake.install(monkeypatch, token)
    name = "KAGGLE_API_TOKEN" if token else "KAGGLE_KEY"
    monkeypatch.setenv(name, "canary-of-mine")
    fake.fail("GetAcceleratorQuotaStatistics", 401, "who is canary-of-mine?")
    with pytest.raises(Refused, match=f"credentials of.*{name}.*who is") as caught:
        Client().quota()
    assert "canary-of-mine" not in str(caught.value)
    assert "canary-of-mine" not in repr(Client().transport.login)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "kagglesdk":
            raise ModuleNotFoundError("No module named 'kagglesdk'", name="kagglesdk")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Refused, match=r"kagglesdk\): pip install 'ignite-llm\[kaggle\]'"):
        Client()


def printed(program, **environment):
    command = [sys.executable, "-c", f"import sys; {program}"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    return told.stdout.split() or told.stderr


def test_neither_six_nor_the_package_that_logs_in_while_it_is_imported_is_needed(fake):
    program = (
        "sys.modules['six'] = None; from launchers.kaggle.client import Client;"
        "print(Client().quota().allowed, 'kaggle' in sys.modules)"
    )
    assert printed(program, **fake.environment()) == ["108000.0", "False"]


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = "[m for m in ('kagglesdk', 'requests', 'torch', 'fsspec') if m in sys.modules]"
    assert printed(f"import launchers.kaggle.target; print({heavy})") == ["[]"]


# what it says


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (429, "slow down", Away, "too busy"),
        (503, "", Away, "too busy"),
        (0, "", Away, "cannot be reached"),
        (400, "bad shape", Refused, "bad shape"),
        (403, "Permission 'kernels.get' was denied", Denied, "denied"),
        (403, "Phone verification is required", Refused, "Verify your phone number"),
        (404, "Not found", Denied, "Not found"),
    ],
)
def test_each_way_of_saying_no(fake, status, message, kind, words):
    fake.fail("GetKernel", status, message)
    with pytest.raises((Away, Refused), match=words) as caught:
        Client().kernel("ignite-tiny-0000aa")
    assert type(caught.value) is kind


def test_an_error_may_come_with_status_200(fake):
    fake.fail("GetKernel", 200, body={"code": 503, "message": "later"})
    with pytest.raises(Away, match="later"):
        Client().kernel("ignite-tiny-0000aa")


def test_no_server_there(fake, monkeypatch):
    fake.url = "http://127.0.0.1:9"  # nobody listens there
    fake.install(monkeypatch)
    with pytest.raises(Away, match=r"cannot be reached: GetAcceleratorQuota.*Connection"):
        Client().quota()


def test_an_answer_of_a_later_version_is_no_crash(fake):
    run(fake)
    fake.fail("GetKernelSessionStatus", 200, body={"status": "DREAMING"})
    with pytest.raises(Away, match=r"makes no sense.*upgrade"):
        Client().status("ignite-tiny-0000aa", 1)
    fake.fail("GetKernelSessionStatus", 200, body=["<html>"])
    with pytest.raises(Away, match="makes no sense"):
        Client().status("ignite-tiny-0000aa", 1)


def test_what_it_quotes_has_no_signature(fake):
    fake.fail("GetKernel", 400, "see https://me:canary@storage/x?signature=canary")
    with pytest.raises(Refused) as caught:
        Client().kernel("ignite-tiny-0000aa")
    assert "canary" not in str(caught.value) and "storage/x" in str(caught.value)


# kernels


def test_a_version_is_asked_for_by_its_number(fake):
    run(fake, "print('one')")
    run(fake, "import sys; print('two'); sys.exit(3)")
    client = Client()
    assert client.kernel("ignite-tiny-0000aa").number == 2
    assert "one" in client.kernel("ignite-tiny-0000aa", 1).source
    assert [client.status("ignite-tiny-0000aa", n).word for n in (1, 2)] == ["COMPLETE", "ERROR"]
    assert "failed (3)" in client.status("ignite-tiny-0000aa", 2).why
    assert [client.log("ignite-tiny-0000aa", n) for n in (1, 2)] == ["one\n", "two\n"]
    with pytest.raises(Denied):
        client.kernel("ignite-tiny-0000aa", 3)


def test_lists_come_in_pages(fake):
    fake.page = 2
    for number in range(5):
        run(
            fake, "open(f'{i}.txt', 'w').write('x')".replace("{i}", str(number)), f"ignite-{number}"
        )
    found = Client().listed("ignite-")
    assert sorted(each.slug for each in found) == [f"ignite-{number}" for number in range(5)]
    assert all(abs(each.since - time.time()) < 60 for each in found)
    run(fake, "for i in range(5): open(f'{i}.txt', 'w').write('x')", "ignite-many")
    names = [name for name, _ in Client().files("ignite-many", 1)]
    assert names == [f"{i}.txt" for i in range(5)]


def test_the_log_of_a_session_that_runs_is_heard_while_it_runs(fake, monkeypatch):
    monkeypatch.setattr("launchers.kaggle.client.LISTEN", 0.3)
    text = "import time; print('ä' * 9, flush=True); time.sleep(30)"
    Client().save(request(OWNER, "ignite-tiny-0000aa", text, [], 60))
    until = time.monotonic() + 20
    while not fake.sessions("ignite-tiny-0000aa")[0].log and time.monotonic() < until:
        time.sleep(0.02)
    assert Client().stream("ignite-tiny-0000aa", 1) == "ä" * 9 + "\n"
    fake.kill("ignite-tiny-0000aa")
    assert Client().stream("ignite-tiny-0000aa", 1) == "ä" * 9 + "\n"


def test_a_download_is_whole_or_not_there(fake, tmp_path):
    run(fake, "open('a', 'wb').write(b'x' * 3_000_000)")
    client = Client()
    ((_, url),) = client.files("ignite-tiny-0000aa", 1)
    for status in (0, 503, 403):
        fake.fail("GET", status, "see http://storage/a?signature=canary")
        with pytest.raises((Away, Refused)) as caught:
            client.download(url, tmp_path / "to" / "a")
        assert not (tmp_path / "to" / "a").exists() and "canary" not in str(caught.value)
    client.download(url, tmp_path / "to" / "a")
    assert (tmp_path / "to" / "a").read_bytes() == b"x" * 3_000_000
    assert [each.name for each in (tmp_path / "to").iterdir()] == ["a"]


# data sets


def write(path, size=300_000):
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def test_a_data_set_is_made_and_then_replaced(fake, tmp_path):
    fake.processing = 0.15
    for size in (1000, 2000):
        file = write(tmp_path / "store.ignite", size)
        datasets().publish("ignite-tiny-0000aa-store", file, f"{size}" * 16)
        found = fake.datasets["ignite-tiny-0000aa-store"]
        assert found.versions[-1] == [("store.ignite", file.read_bytes())]
    assert len(found.versions) == 2 and found.request["isPrivate"] is True
    (version,) = (body for method, body in fake.requests if method == "CreateDatasetVersion")
    assert version["body"]["deleteOldVersions"] is True
    # what has arrived is not sent again
    datasets().publish("ignite-tiny-0000aa-store", file, "2000" * 16)
    assert len(found.versions) == 2


def test_a_version_waits_until_the_last_one_is_processed(fake, tmp_path):
    said = []
    waiting = Datasets(Client(), said.append, lambda seconds: time.sleep(0.02))
    waiting.publish("ignite-tiny-0000aa-store", write(tmp_path / "a"), "0" * 64)
    fake.datasets["ignite-tiny-0000aa-store"].ready = time.monotonic() + 0.3
    waiting.publish("ignite-tiny-0000aa-store", write(tmp_path / "a"), "1" * 64)
    assert any("no new version while it processes the last one" in line for line in said)


def test_waiting_for_a_data_set_ends(fake, tmp_path):
    fake.processing = 60
    with pytest.raises(Away, match=r"processes it \(BLOBS_DECOMPRESSED\), for 0 s"):
        datasets(patience=0.05).publish("ignite-x-store", write(tmp_path / "a"), "0" * 64)
    fake.fail("GetDatasetStatus", 200, body={"status": "FAILED"})
    with pytest.raises(Refused, match="could not process the data set"):
        datasets().publish("ignite-x-store", write(tmp_path / "a"), "0" * 64)


def test_an_error_beside_a_data_set_is_a_refusal(fake, tmp_path):
    with pytest.raises(Refused, match="title or the license"):
        datasets().publish("ignt", write(tmp_path / "a"), "0" * 64)


def test_an_upload_that_is_cut_goes_on_where_it_was(fake, tmp_path):
    fake.cuts = [0, 100_000, 50_000]
    file = write(tmp_path / "a")
    datasets().publish("ignite-x-store", file, "0" * 64)
    assert fake.datasets["ignite-x-store"].versions == [[("a", file.read_bytes())]]
    puts = [body for method, body in fake.requests if method == "PUT"]
    sent = [
        int(each["Content-Length"]) for each in puts if "*" not in each.get("Content-Range", "")
    ]
    assert sent == [300_000, 300_000, 200_000, 150_000]


def test_an_upload_that_never_gets_through_is_given_up(fake, tmp_path):
    fake.cuts = [10] * 9
    with pytest.raises(Away, match="too busy: upload") as caught:
        datasets().publish("ignite-x-store", write(tmp_path / "a"), "0" * 64)
    assert "canary" not in str(caught.value)
