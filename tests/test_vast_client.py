"""Vast.ai's client against the stand-in, through the package vastai: what the wire can answer."""

import subprocess
import sys
import time

import pytest
from fakes.vast import Call, FakeVast, Fault, Life
from servers import Answer, web

from launchers.target import Away, Refused, Spoiled
from launchers.vast.client import Client
from launchers.vast.target import box

LABEL = "ignite-tiny-0a1b2c/1"


def body(**changes):
    wanted = {"image": "any", "label": LABEL, "disk": 40, "env": {}, "runtype": "args"}
    return {**wanted, "args": ["sleep", "60"], **changes}


@pytest.fixture
def service(tmp_path):
    """A function that starts the service with faults, and its end."""
    running = []

    def start(*faults, boot=30.0, **options):
        running.append(FakeVast(tmp_path, faults, boot=boot, **options).__enter__())
        return running[-1]

    yield start
    for each in running:
        each.__exit__()


def client(fake, **options):
    return Client(fake.key, fake.url, **{"spacing": {}, "patience": 0.7, **options})


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


# making: each fault, what is raised, and how many instances there are afterwards

MAKING = [
    (Call.BUSY, Away, 0, "API requests too frequent: endpoint"),
    (Call.BUSY_FOR, Away, 0, "wait 7 s"),
    (Call.GATEWAY, Away, 0, "502 Bad Gateway"),
    (Call.GATEWAY_AFTER, Away, 1, "502 Bad Gateway"),
    (Call.DROPPED, Away, 0, "does not answer"),
    (Call.LOST, Away, 1, "does not answer"),
    (Call.LATE, Away, 1, "does not answer"),
    (Call.SPOILED, Spoiled, 1, "the bid is too low"),
    (Call.NO, Refused, 0, "no credit is left"),
    (Call.GONE, Refused, 0, "no longer available"),
    (Call.FORBIDDEN, Refused, 0, "Is the API key right"),
]


@pytest.mark.parametrize("fault, error, made, words", MAKING, ids=[each[0].name for each in MAKING])
def test_making_that_fails(service, fault, error, made, words):
    fake = service(Fault(fault), late=1.5)
    with pytest.raises(error, match=words) as raised:
        client(fake).create("101", body())
    assert len(fake.asked("PUT", "/api/v0/asks/")) == 1  # never sent twice
    if fault is Call.LATE:
        until(lambda: fake.boxes)
    found = client(fake).instances()
    assert [each["label"] for each in found] == [LABEL] * made
    if error is Spoiled:
        assert raised.value.id == str(found[0]["id"])
        assert fake.billing_now() > 0
    if error is Refused:
        assert raised.value.offer_gone == (fault is Call.GONE)
    assert fake.key not in str(raised.value)


def test_one_request_can_make_two(service):
    fake = service(Fault(Call.DOUBLE))
    id = client(fake).create("101", body())
    found = client(fake).instances()
    assert [each["label"] for each in found] == [LABEL] * 2
    assert id in [str(each["id"]) for each in found]


def test_an_offer_that_is_not_there(service):
    with pytest.raises(Refused, match="no_such_ask") as raised:
        client(service()).create("999", body())
    assert raised.value.offer_gone


@pytest.mark.parametrize(
    "wrong", [{"label": "x" * 257}, {"env": {"A": "x" * 257}}, {"args": ["x" * 4049]}, {"disk": 7}]
)
def test_what_the_service_does_not_take(service, wrong):
    fake = service()
    with pytest.raises(Refused, match="Invalid args") as raised:
        client(fake).create("101", body(**wrong))
    assert not raised.value.offer_gone and not fake.boxes


def test_numbers_may_be_strings(service):
    fake = service()
    client(fake).create("101", body(disk="40", price="0.3"))
    assert fake.boxes[0].gpu_hour == 0.3


# listing


def test_instances_that_are_a_second_old_have_nulls(service):
    from vastai import VastAI

    fake = service()
    client(fake).create("101", body())
    with pytest.raises(TypeError):  # which is why its own function is not used
        VastAI(api_key=fake.key, server_url=fake.url).show_instances()
    (row,) = client(fake).instances()
    assert row["start_date"] is None and row["extra_env"] is None
    assert box(row).state == "starting" and box(row).since is None


def test_more_instances_than_a_page(service):
    fake = service()
    for _ in range(30):
        client(fake).create("101", body())
    assert len(client(fake).instances()) == 30
    assert len(fake.asked("GET", "/api/v1/instances/")) == 2


@pytest.mark.parametrize("fault", [Call.BUSY, Call.GATEWAY, Call.DROPPED, Call.LATE])
def test_a_list_that_cannot_be_had_is_not_an_empty_one(service, fault):
    fake = service(Fault(fault, of="list"), late=1.5)
    client(fake).create("101", body())
    with pytest.raises(Away, match="cannot list the instances"):
        client(fake).instances()
    assert len(client(fake).instances()) == 1


# destroying


@pytest.mark.parametrize("fault", [Call.BUSY, Call.GATEWAY_AFTER, Call.LOST])
def test_destroying_that_fails(service, fault):
    fake = service(Fault(fault, of="destroy"))
    asked = client(fake)
    id = asked.create("101", body())
    with pytest.raises(Away, match=f"cannot destroy instance {id}"):
        asked.destroy(id)
    asked.destroy(id)
    asked.destroy(id)  # what is gone is no error
    assert fake.billing_now() == 0 and not asked.instances()


def test_destroying_that_is_refused(service):
    fake = service(Fault(Call.NO, of="destroy"))
    id = client(fake).create("101", body())
    with pytest.raises(Refused, match="no credit is left"):
        client(fake).destroy(id)
    assert fake.billing_now() > 0


def test_an_instance_may_be_back(service):
    fake = service(Fault(Life.RESURRECTS, after=0.5), boot=0.1)
    asked = client(fake)
    id = asked.create("101", body())
    until(lambda: fake.boxes[0].status == "running")
    asked.destroy(id)
    assert not asked.instances()
    until(lambda: asked.instances())
    asked.destroy(id)
    time.sleep(0.7)
    assert not asked.instances() and fake.billing_now() == 0


# logs


def test_a_log_is_not_there_at_once(service):
    fake = service(boot=0.1)
    id = client(fake).create("101", body(args=["sh", "-c", "seq 300; sleep 60"]))
    until(lambda: "300" in fake.boxes[0].printed())
    assert client(fake).log(id, 3).split() == ["298", "299", "300"]


def test_a_log_that_cannot_be_had(service):
    fake = service(Fault(Life.NO_LOG))
    id = client(fake).create("101", body())
    with pytest.raises(Away, match="not there after 9 s") as raised:
        client(fake, sleep=lambda _: None).log(id, 3)
    assert "Signature" not in str(raised.value)


# searching


def test_no_more_searches_today(service):
    with pytest.raises(Refused, match=r"Daily search row quota exhausted.*in 2.0 hours"):
        client(service(Fault(Call.QUOTA, of="search"))).search({})


def test_a_search_that_cannot_be_made(service):
    with pytest.raises(Away, match="cannot search"):
        client(service(Fault(Call.BUSY, of="search"))).search({})


# keys


def test_a_box_key_is_good_for_that_box_alone(service):
    fake = service()
    mine, other = (client(fake).create(offer, body()) for offer in ("101", "102"))
    guest = Client(fake.boxes[0].key, fake.url, spacing={})
    for forbidden in (guest.instances, lambda: guest.search({}), lambda: guest.destroy(other)):
        with pytest.raises(Refused, match="for its own instance"):
            forbidden()
    guest.destroy(mine)
    assert [each.id for each in fake.billing] == [int(other)]


@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_secret_is_repeated(status):
    key, secret = "key-0123456789", "a-token-9876"

    def echo(request):
        told = f"{request.headers['Authorization']} {request.body.decode()} https://h/?sig=s3cr3t"
        return Answer(status, {}, b'{"success": false, "msg": "%s"}' % _escaped(told))

    with web(echo) as url:
        asked = Client(key, url, spacing={})
        with pytest.raises((Refused, Away), match="Bearer") as raised:
            asked.create("1", body(env={"T": secret}), hide=[secret])
    assert not [each for each in (key, secret, "s3cr3t") if each in str(raised.value)]
    assert raised.value.__cause__ is None


def _escaped(text):
    return text.replace('"', "'").encode()


def test_a_key_is_looked_for(service, monkeypatch, tmp_path):
    fake = service()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"no API key.*VAST_API_KEY.*vast_api_key"):
        Client(url=fake.url)
    for wrong in ("two words", "one\ntwo", "ключ", " "):
        monkeypatch.setenv("VAST_API_KEY", wrong)
        with pytest.raises(ValueError, match="no key at all") as raised:
            Client(url=fake.url)
        assert wrong == " " or wrong not in str(raised.value)
    monkeypatch.setenv("VAST_API_KEY", fake.key + "\n")
    monkeypatch.setenv("VAST_URL", fake.url)
    assert Client(spacing={}).instances() == []


def test_a_wrong_key(service):
    fake = service()
    with pytest.raises(Refused, match=r"Invalid user key.*Is the API key right"):
        Client("wrong", fake.url).instances()


def test_a_wrong_address(monkeypatch):
    monkeypatch.setenv("VAST_URL", "console.vast.ai")
    with pytest.raises(ValueError, match=r"VAST_URL=console.vast.ai is no address"):
        Client("key")
    with pytest.raises(Away, match="does not answer"):
        Client("key", "http://127.0.0.1:9", patience=0.5).instances()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vastai", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[vast\]'"):
        Client("key")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, launchers.vast.target\n"
        "print(*{'torch', 'vastai', 'requests', 'fsspec'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "\n"


def test_requests_of_a_kind_keep_their_distance(service):
    fake, now, slept = service(), [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    asked = Client(fake.key, fake.url, clock=lambda: now[0], sleep=sleep)
    asked.instances()
    asked.destroy("1")
    assert slept == []
    now[0] += 0.25
    asked.instances()
    assert slept == [0.75]
    now[0] += 10
    asked.instances()
    assert slept == [0.75]


# what an instance is said to be

STATES = [
    ({"actual_status": None}, "starting", 0.1),
    ({"actual_status": "created"}, "starting", 0.1),
    ({"actual_status": "loading"}, "starting", 0.1),
    ({"actual_status": "rebooting"}, "starting", 0.5),
    ({"actual_status": "running"}, "running", 0.5),
    ({"actual_status": "frozen"}, "stopped", 0.5),
    ({"actual_status": "stopped"}, "stopped", 0.1),
    ({"actual_status": "exited"}, "ended", 0.5),
    ({"actual_status": "unknown"}, "away", 0.5),
    ({"actual_status": "offline"}, "away", 0.5),
    ({"actual_status": "a new word"}, "away", 0.5),
    (
        dict.fromkeys(("cur_state", "intended_status", "next_state"), "stopped")
        | {"actual_status": "exited"},
        "stopped",
        0.1,
    ),
    (
        {"actual_status": "running", "cur_state": "stopped", "intended_status": "running"},
        "running",
        0.5,
    ),
]


@pytest.mark.parametrize("told, state, price", STATES)
def test_states(told, state, price):
    money = {"dph_total": "0.5", "storage_total_cost": 0.1}
    found = box({"id": 5, "label": None, **money, **told})
    assert (found.id, found.label, found.state) == ("5", "", state)
    assert found.per_hour == pytest.approx(price)
    assert not found.hopeless


def test_a_container_that_cannot_be_made_is_hopeless(service):
    fake = service(Fault(Life.OCI), boot=0.1)
    client(fake).create("101", body())
    until(lambda: fake.boxes[0].message)
    found = box(client(fake).instances()[0])
    assert found.hopeless and found.state == "starting" and "OCI" in found.why


# the bill of the stand-in


def test_the_bill(service):
    fake = service(boot=0.1, speed=0.0)
    id = client(fake).create("101", body(args=["sleep", "60"]))
    disk = 0.15 * 40 / 720
    fake.advance(3600)
    assert fake.ledger() == pytest.approx(disk)  # loading is not billed, the disk is
    until(lambda: fake.boxes[0].status == "running")
    fake.advance(3600)
    assert fake.ledger() == pytest.approx(2 * disk + 0.2)
    fake.outbid(fake.boxes[0])
    assert fake.boxes[0].processes() == []
    fake.advance(3600)
    assert fake.ledger() == pytest.approx(3 * disk + 0.2)
    assert box(client(fake).instances()[0]).state == "stopped"
    fake.resume(fake.boxes[0])
    fake.die(fake.boxes[0])
    assert fake.billing_now() == pytest.approx(disk + 0.2)
    client(fake).destroy(id)
    fake.advance(3600)
    assert fake.ledger() == pytest.approx(3 * disk + 0.2)
    assert fake.billing == []
