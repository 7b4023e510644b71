"""The verbs on a launch at Vast.ai, from whichever machine they are typed."""

import json

import pytest
from renting import together, undisturbed

ENDLESS = 100_000  # steps


def verb(world, *words, at="home", code=0):
    """A verb as a process of its own; what it said."""
    store = () if "--store" in words else ("--store", world.place)
    client = world.start(*words, *store, at=at)
    yield client.is_over
    said = client.ended()
    assert said.code == code, (words, said)
    return said


def stopped_where_it_is_watched(world):
    """From another machine, while somebody watches; both see it to its end."""
    client = world.start()
    yield lambda: world.checkpoints() >= 1
    with world.standing_still():
        told = json.loads((yield from verb(world, "ps", "--json", at="elsewhere")).out)
        shown = yield from verb(world, "ps", at="elsewhere")
        stop = world.start("stop", "--why", "rain", "--store", world.place, at="elsewhere")
        yield lambda: world.first().stopping()
    (listed,) = told["launches"]
    assert listed["state"] == "running" and listed["boxes"][0]["live"] is True
    assert 0 < listed["per_hour"] == told["per_hour"] and listed["spent"] >= 0
    assert told["billing_for_nothing"] == [] and told["not_asked"] == {}
    assert [each["stage"] for each in told["workers"]] == ["train"]
    assert listed["launch"] in shown.out and "seen to by" in shown.out
    yield lambda: client.is_over() and stop.is_over()
    said = client.ended()
    assert said.code == 75 and "rain" in said.err and stop.ended().code == 0, world.printed()
    assert world.vast.billing_now() == 0 and len(world.vast.boxes) == 1
    yield from and_goes_on(world)


def and_goes_on(world):
    """What was stopped is gone on with by the same command: not from the beginning."""
    reached = max(e.body["step"] for e in world.entries("checkpoint"))
    client = world.start()
    yield lambda: max(e.body["step"] for e in world.entries("checkpoint")) > reached
    with world.standing_still():
        yield from verb(world, "stop", "--now")
    yield client.is_over
    assert client.ended().code == 75 and world.vast.billing_now() == 0
    steps = [e.body["step"] for e in world.entries("checkpoint")]
    assert len(steps) == len(set(steps)) and len(world.launches()) == 2


def stopped_where_nobody_watches(world):
    """The one that stops sees it to its end."""
    said = yield from verb(world, *world.rents("-y", "--detach"))
    assert "nobody replaces" in said.out and len(world.vast.boxes) == 1
    yield lambda: world.checkpoints() >= 1
    with world.standing_still():
        stop = world.start("stop", "--store", world.place, at="elsewhere")
        yield lambda: world.first().stopping()
    yield stop.is_over
    assert stop.ended().code == 0 and "stopped" in stop.said()
    assert world.vast.billing_now() == 0 and world.word() == "ended"
    assert world.first().events()[-1].body["outcome"] == "stopped"


def watched_from_elsewhere(world, expected):
    """The one that watches replaces what is lost, and it is fetched to where that is."""
    yield from verb(world, *world.rents("-y", "-d"))
    yield lambda: world.word() == "running" and world.first().printed(1, 0)
    world.vast.outbid(world.vast.boxes[0])
    keys = ("--credentials", str(world.folder / "keys"))
    name = world.first().name
    said = yield from verb(world, "watch", name.removeprefix("ignite-"), *keys, at="elsewhere")
    assert world.brought("elsewhere") == expected and len(world.vast.boxes) == 2
    assert world.vast.billing_now() == 0 and "sample" in said.out
    said = yield from verb(world, "logs", name)
    assert said.err.count("== attempt") == 2 and "taken away" in said.err
    assert said.out.count("ok   torch") == 2 and "train: find the weights" in said.out
    yield from verb(world, "pull", name, at="third")
    assert world.brought("third") == expected
    said = yield from verb(world, "ps")
    assert name not in said.out
    assert "finished" in (yield from verb(world, "ps", "--all")).out


@pytest.mark.slow
def test_from_any_machine(rented, tmp_path, corpus):
    expected = undisturbed(tmp_path / "undisturbed", corpus)
    together(
        watched=stopped_where_it_is_watched(rented("watched", steps=ENDLESS, one_disk=True)),
        unwatched=stopped_where_nobody_watches(rented("unwatched", steps=ENDLESS)),
        elsewhere=watched_from_elsewhere(rented("elsewhere", one_disk=True), expected),
    )


def test_a_dry_run_shows_what_it_would_ask_and_asks_for_nothing(rented):
    world = rented("dry")
    said = world.launch(*world.rents("-n", "--json", "--interruptible"))
    assert said.code == 0, said.err
    told = json.loads(said.out)
    create, search = told["requests"]["create"], told["requests"]["search"]
    assert create["path"].startswith("/api/v0/asks/") and create["body"]["price"] > 0
    assert create["body"]["args"][0] == "python3" and search["body"]["type"] == "bid"
    assert create["body"]["env"] and all("***" in each for each in create["body"]["env"].values())
    assert {each.path for each in world.vast.requests} == {"/api/v0/bundles/"}
    assert not world.launches()
