"""What Vast.ai does to a launch: requests to rent that go wrong, and machines that do.

Each story is one launch to which one thing after the other happens, so that one run is trained in
the end and not one for each.
"""

import boto3
import pytest
from canaries import plant
from fakes.vast import Call, Fault, Life
from renting import together, undisturbed

from launchers.credentials import together as together_again
from launchers.history import history

pytestmark = pytest.mark.slow


def boxes_of(world):
    """attempt: how many boxes were made for it"""
    labels = [each.body["label"].rpartition("/")[2] for each in world.vast.boxes]
    return {number: labels.count(number) for number in sorted(set(labels))}


def attempts(world):
    return history(world.first().events()).attempts


# requests to rent

# (what happens to the request, how many boxes come of it, what is said of the attempt)
REQUESTS = [
    (Call.BUSY, 0, "never made"),
    (Call.GATEWAY, 0, "never made"),
    (Call.DROPPED, 0, "never made"),
    (Call.GONE, 0, "no longer available"),
    (Call.SPOILED, 1, "the bid is too low"),
    (Call.GATEWAY_AFTER, 1, "taken away"),
    (Call.LOST, 1, "taken away"),
    (Call.LATE, 1, "taken away"),
    (Call.DOUBLE, 2, "done"),
]


def requests_that_fail(world, expected):
    client = world.start()
    yield client.is_over
    said = client.ended()
    assert said.code == 0, world.printed()
    assert world.brought() == expected
    assert len(world.vast.creates()) == len(REQUESTS) and world.vast.looked_between_creates()
    made = {str(n): each[1] for n, each in enumerate(REQUESTS, 1) if each[1]}
    assert boxes_of(world) == made
    for attempt, (fault, _, why) in zip(attempts(world), REQUESTS, strict=True):
        assert why in attempt.why, (fault, attempt.why)
    assert world.vast.billing_now() == 0
    first = world.vast.boxes[-2].id  # of the two that one request has made
    assert world.vast.beside == [*[[]] * (len(world.vast.boxes) - 1), [first]]
    assert world.vast.asked("DELETE", f"/api/v0/instances/{first}")[0].by == "account"


def test_a_no_that_looks_like_a_yes(rented):
    """HTTP 200 with success: false. A person is told; nothing was made, and nothing asked again."""
    here = rented("credit", Fault(Call.NO))
    said = here.launch(*here.rents(), "-y")
    assert said.code == 1 and "no credit is left" in said.err
    assert len(here.vast.creates()) == 1 and not here.vast.boxes
    assert here.launch("ps", "--store", here.place).code == 0


# machines


def machines_that_fail(world, expected):
    """One loads for ever, with no log; on one no container can be made; one has no room for a
    cache; one goes offline; the last cannot destroy itself, and comes back after it was."""
    client = world.start()
    yield lambda: "created" in world.kinds()
    fresh = world.vast.boxes[0].row()
    assert fresh["start_date"] is fresh["extra_env"] is None
    logs = world.start("logs", "--store", world.place, at="elsewhere")
    yield logs.is_over
    said = logs.ended()
    assert said.code == 0 and "7001 starting" in said.out and "cannot read the log" in said.out
    yield client.is_over
    assert client.ended().code == 0, world.printed()
    assert world.brought() == expected
    told = attempts(world)
    words = ("not booted within", "OCI runtime create failed", "cannot write", "offline", "done")
    for attempt, word in zip(told, words, strict=True):
        assert word in attempt.why
    machines = [attempt.offer["machine"] for attempt in told]
    assert len(set(machines)) == len(machines)  # none of them was taken again
    assert world.vast.beside == [[]] * 5
    yield lambda: world.vast.billing  # the last one is back, and nobody watches
    ps = world.launch("ps", "--store", world.place)
    assert ps.code == 3 and "launch reap" in ps.err and "(7005, " in ps.err
    assert world.launch("reap", "--store", world.place).code == 0
    assert world.vast.billing_now() == 0
    assert world.launch("ps", "--store", world.place).code == 0
    logs = world.launch("logs", world.first().name, "--store", world.place)
    assert logs.code == 0 and logs.err.count("== attempt") == 5
    assert "FAIL" in logs.out and "sample: write" in logs.out


def test_what_goes_wrong_costs_time_and_nothing_else(rented, tmp_path, corpus):
    expected = undisturbed(tmp_path / "undisturbed", corpus)
    made, calls = 0, []
    for number, (fault, count, why) in enumerate(REQUESTS, 1):
        made += count
        calls.append(Fault(fault, nth=number))
        if why == "taken away":
            calls.append(Fault(Life.OUTBID, nth=made))
    lives = [Fault(Life.STUCK), Fault(Life.NO_LOG), Fault(Life.OCI, nth=2)]
    lives += [Fault(Life.READ_ONLY, nth=3), Fault(Life.OFFLINE, nth=4, after=1.0)]
    lives += [Fault(Life.NO_KEY, nth=5), Fault(Life.RESURRECTS, nth=5, after=4.0)]
    together(
        requests=requests_that_fail(rented("requests", *calls, late=6.0), expected),
        machines=machines_that_fail(rented("machines", *lives), expected),
    )


# secrets


def test_no_secret_leaves_where_it_belongs(rented, tmp_path, monkeypatch):
    canaries = plant(monkeypatch, tmp_path)
    here = rented("secret")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "VAST_API_KEY")
    here.keys |= {name: canaries.words[name] for name in names[:3]}
    here.vast.key = canaries.words["VAST_API_KEY"]
    (here.folder / "keys").write_text(  # of the store alone, made by somebody
        "AWS_ACCESS_KEY_ID=testing\nAWS_SECRET_ACCESS_KEY=for-boxes-alone\n"
        f"AWS_ENDPOINT_URL={here.endpoint}\nAWS_DEFAULT_REGION=us-east-1\n"
    )
    shown = here.launch(*here.rents(), "-n")
    assert shown.code == 0 and not here.vast.creates()
    said = here.launch(*here.rents(), "-y")
    assert said.code == 0, here.printed()
    verbs = [here.launch(verb, "--store", here.place) for verb in ("ps", "reap")]
    verbs.append(here.launch("logs", here.first().name, "--store", here.place))
    seen = [shown, said, *verbs]
    canaries.assert_none_in(*(each.out for each in seen), *(each.err for each in seen))
    canaries.assert_none_in([vars(each) for each in here.vast.requests])
    canaries.assert_none_in(here.folder / "home", *(each.printed() for each in here.vast.boxes))
    stored = objects(here.endpoint)
    assert any("/launch/" in name for name in stored)
    canaries.assert_none_in(*stored, *stored.values())
    (create,) = here.vast.creates()
    given = together_again(create.body["env"])
    assert given == dict(line.split("=") for line in (here.folder / "keys").read_text().split())
    for each in seen:
        assert "for-boxes-alone" not in each.out + each.err


def objects(endpoint):
    """name: bytes, of all that lies in the bucket"""
    s3 = boto3.client("s3", endpoint_url=endpoint)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="runs")
    names = [each["Key"] for page in pages for each in page["Contents"]]
    return {name: s3.get_object(Bucket="runs", Key=name)["Body"].read() for name in names}
