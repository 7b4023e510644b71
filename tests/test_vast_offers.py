"""Which machine of Vast.ai is taken, for what price, and what is sent to rent it."""

import json
import time

import pytest
from fakes.vast import FakeVast, market, offer
from test_vast_client import until

from launchers.target import Errand, Offer, Refused, Spoiled
from launchers.vast.client import Client
from launchers.vast.offers import query
from launchers.vast.order import IMAGE, VastOptions, request
from launchers.vast.target import Vast

DIGEST = "ab" * 32
SECRETS = {"AWS_SESSION_TOKEN": "canary-" + "t" * 900, "AWS_SECRET_ACCESS_KEY": "canary-k"}
# disk of 40 GB at 0.15 a month
DISK = 0.15 * 40 / 720


def errand(**changes):
    told = {"name": "ignite-tiny-0a1b2c", "attempt": 2, "store": "s3://runs/a", "bundle": DIGEST}
    return Errand(**{**told, "seconds": 3600.0, **changes})


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    with FakeVast(tmp_path_factory.mktemp("vast"), boot=60.0) as running:
        yield running


def vast(fake, hours=lambda gpu, gpus: 2.0, secrets=SECRETS, **options):
    client = Client(fake.key, fake.url, spacing={})
    return Vast(client, VastOptions(**options), hours, lambda seconds: secrets)


def ids(found):
    return [each.id for each in found]


# what is offered


def test_only_what_fits_and_the_least_total_first(fake):
    found = vast(fake).offers(())
    # 207 is the second cheapest by the hour, and its traffic costs 5 dollars
    assert ids(found) == ["101", "102", "103", "104", "105", "106", "107", "108", "207"]
    first, last = found[0], found[-1]
    assert first.per_hour == pytest.approx(0.20 + DISK)
    assert first.idle_per_hour == pytest.approx(DISK)
    assert first.hours == 2.0
    assert first.total == pytest.approx(2 * (0.20 + DISK))
    assert last.total == pytest.approx(2 * (0.21 + DISK) + 10 * 0.5)
    assert (first.machine, first.gpu, first.gpus) == ("1101", "RTX 4090", 1)
    json.dumps(first.facts)


def test_traffic_counts_both_ways(fake):
    (last,) = [each for each in vast(fake, upload=4, download=1000).offers(()) if each.id == "207"]
    assert last.facts["traffic"] == pytest.approx(4 * 0.5)  # its inet_down_cost is null


def test_without_an_estimate_the_hour_counts(fake):
    found = vast(fake, hours=lambda gpu, gpus: None).offers(())
    assert ids(found)[:3] == ["101", "207", "102"]
    assert found[0].total is None and found[0].hours is None


def test_what_the_service_is_asked():
    asked = query(
        VastOptions(gpu="RTX_4090, RTX 3090", gpus=2, region="no,se", max_price=0.9),
        lambda gpu, gpus: {"RTX 4090": 4.0, "RTX 3090": 8.0}[gpu],
    )
    assert asked["gpu_name"] == {"in": ["RTX 4090", "RTX 3090"]}
    assert asked["duration"] == {"gte": 10.5 * 3600}  # of the slower one, and some more
    assert asked["geolocation"] == {"in": ["NO", "SE"]}
    assert asked["cuda_max_good"] == {"gte": 12.8}  # as the image's name says
    assert asked["dph_total"] == {"lte": 0.9}
    assert asked["num_gpus"] == {"eq": 2} and asked["allocated_storage"] == 40
    assert asked["verified"] == asked["rentable"] == {"eq": True}


def test_machines_that_failed_are_avoided(fake):
    assert ids(vast(fake).offers({"1101", "1103"}))[:2] == ["102", "104"]
    with pytest.raises(Refused, match="on machines that have failed"):
        vast(fake, max_price=0.22).offers({"1101", "1207"})


def test_what_is_rented_is_not_offered(tmp_path):
    with FakeVast(tmp_path, boot=60.0) as fake:
        target = vast(fake)
        target.create(errand(), target.offers(())[0])
        assert ids(target.offers(()))[0] == "102"


def test_nothing_under_the_price_says_the_cheapest(fake):
    words = r"no 1 x RTX 4090 .*under \$0.1/h: the cheapest is \$0.208/h on machine 1101 \(Norway"
    with pytest.raises(Refused, match=words) as raised:
        vast(fake, max_price=0.1).offers(())
    allowed = float(str(raised.value).rpartition("--max-price ")[2])
    assert ids(vast(fake, max_price=allowed).offers(())) == ["101"]


def test_nothing_at_any_price(fake):
    words = "no 1 x RTX 9999 now that is verified, reliable to 0.98, good for CUDA 12.8"
    with pytest.raises(Refused, match=words):
        vast(fake, gpu="RTX 9999").offers(())


def test_fields_may_be_null_or_strings(tmp_path):
    odd = offer(301, 0.3, machine_id=None, reliability2=None, geolocation=None)
    with FakeVast(tmp_path, offers=[odd]) as fake:
        client = Client(fake.key, fake.url, spacing={})
        rows = [
            {**client.search({})[0], "dph_total": "0.31", "storage_total_cost": None},
            {"id": 5, "dph_total": None},
            {"id": None, "dph_total": 1.0},
            {"id": 6, "dph_total": 0.2, "rented": True},
        ]
        client.search = lambda asked: rows
        target = Vast(client, VastOptions(), lambda gpu, gpus: None, lambda seconds: {})
        (found,) = target.offers(())
    assert (found.id, found.machine, found.per_hour) == ("301", "", pytest.approx(0.31))
    assert found.facts["where"] == "somewhere"


# bids


def test_a_bid_is_above_the_least_and_within_the_cap(fake):
    found = vast(fake, interruptible=True).offers(())
    assert found[0].facts["bid"] == pytest.approx(0.12)  # 0.1, and a fifth more
    assert found[0].per_hour == pytest.approx(0.12 + DISK)
    capped = vast(fake, interruptible=True, max_price=0.115).offers(())
    assert ids(capped) == ["101", "207"]
    assert 0.1149 < capped[0].per_hour <= 0.115


def test_a_bid_of_ones_own(fake):
    found = vast(fake, interruptible=True, bid=0.12).offers(())
    assert ids(found) == ["101", "102", "103", "207"]  # those that take it
    assert {each.facts["bid"] for each in found} == {0.12}
    with pytest.raises(Refused, match=r"takes a bid of \$0.01"):
        vast(fake, interruptible=True, bid=0.01).offers(())
    with pytest.raises(ValueError, match=r"--bid 0\.2 goes with --interruptible"):
        VastOptions(bid=0.2)


def test_a_bid_that_has_become_too_low_makes_a_box_that_bills(tmp_path):
    with FakeVast(tmp_path, offers=market()) as fake:
        target = vast(fake, interruptible=True)
        chosen = target.offers(())[0]
        fake.offers[0]["min_bid"] = 0.19
        with pytest.raises(Spoiled) as raised:
            target.create(errand(), chosen)
        (box,) = target.boxes()
        assert (box.id, box.state) == (raised.value.id, "stopped")
        assert box.per_hour == pytest.approx(fake.billing_now()) != 0
        target.destroy(box.id)
        assert fake.billing_now() == 0


# boxes


def test_only_our_boxes(tmp_path):
    with FakeVast(tmp_path, boot=0.1) as fake:
        target = vast(fake)
        client, chosen = target.client, target.offers(())[0]
        request = {"image": "any", "disk": 8, "runtype": "args", "args": ["sleep", "9"], "env": {}}
        client.create("105", {**request, "label": "somebody's"})
        client.create("106", {**request, "label": None})
        id = client.create(chosen.id, {**request, "label": errand().label})
        until(lambda: fake.boxes[-1].status == "running")
        (box,) = target.boxes()
        assert (box.id, box.launch, box.attempt) == (id, "ignite-tiny-0a1b2c", 2)
        assert (box.state, box.machine, box.gpu) == ("running", "1101", "RTX 4090")
        assert box.per_hour == pytest.approx(0.20 + 0.15 * 8 / 720)
        assert abs(box.since - time.time()) < 60


# the request


def test_the_request_is_small_and_its_secrets_in_pieces():
    body = request(errand(), Offer("1", "m", "RTX 4090", 1, 0.3), VastOptions(), SECRETS)
    assert sum(map(len, body["args"])) + len(body.get("onstart") or "") <= 4000
    assert body["label"] == "ignite-tiny-0a1b2c/2" and body["runtype"] == "args"
    assert (body["image"], body["disk"]) == (IMAGE, 40) and "price" not in body
    assert len(body["env"]) > 4 and all(len(value) <= 240 for value in body["env"].values())
    assert "canary" not in json.dumps(body)


def test_a_dry_run_shows_the_requests_without_the_secrets(fake):
    target = vast(fake, interruptible=True)
    chosen = target.offers(())[0]
    shown = target.describe(errand(), chosen)
    assert fake.boxes == []
    assert shown["create"]["path"] == "/api/v0/asks/101/"
    env = shown["create"]["body"]["env"]
    assert set(env.values()) == {"*** (of AWS_SESSION_TOKEN, AWS_SECRET_ACCESS_KEY)"}
    sent = request(errand(), chosen, target.options, SECRETS)
    assert {**shown["create"]["body"], "env": sent["env"]} == sent
    assert not [value for value in sent["env"].values() if value in json.dumps(shown)]
    asked = fake.asked("POST", "/api/v0/bundles/")[-1].body
    assert shown["search"] == {"method": "POST", "path": "/api/v0/bundles/", "body": asked}


@pytest.mark.parametrize(
    "changes, secrets, words",
    [
        ({"store": "runs"}, {}, "'runs' is here: give --store a URL"),
        ({"store": ""}, {}, "own disk goes with it"),
        ({"store": "s3://" + "x" * 900}, {}, "give --store a shorter URL"),
        ({}, {"BIG": "x" * 30_000}, r"the secrets for the box \(BIG\) take"),
    ],
)
def test_what_cannot_be_sent(changes, secrets, words):
    with pytest.raises(ValueError, match=words):
        request(errand(**changes), Offer("1", "m", "g", 1, 0.3), VastOptions(), secrets)


def test_images_say_which_driver_they_need():
    assert VastOptions(image="me/ignite-llm:cu130").needs_cuda == 13.0
    assert VastOptions(image="me/ignite-llm:latest", cuda=12.6).needs_cuda == 12.6
    with pytest.raises(ValueError, match="say it with --cuda"):
        _ = VastOptions(image="me/ignite-llm:latest").needs_cuda


@pytest.mark.parametrize("wrong", [{"disk": 5}, {"gpu": " "}, {"gpus": 0}, {"image": ""}])
def test_options_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match="--"):
        VastOptions(**wrong)
