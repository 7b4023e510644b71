"""A client that is killed, or asleep: what bills then, and who goes on.

Where a client is killed is found by what it has written or asked for, not by time: see ``Gate``.
"""

import json

import pytest
from fakes.vast import Call, Fault, Life
from renting import MANY, Gate, together, undisturbed

pytestmark = pytest.mark.slow
BOOTED, NEVER = 0.3, 1e9


def wrote(end, word=b""):
    """Stops when the client has written a record whose name ends so, with that word in it."""
    return lambda request, _: (
        request.method == "PUT" and request.path.endswith(end) and word in request.body
    )


def said(kind):
    """Stops when the client has written an event of that kind."""
    word = f'"kind":"{kind}"'.encode()
    return lambda request, _: (
        request.method == "PUT" and "/event/" in request.path and word in request.body
    )


def read(part, word=b""):
    """Stops before the client learns what it has read at such a name."""
    return lambda request, answer: (
        request.method == "GET" and part in request.path and word in answer
    )


# a client that is killed, and started again, and killed ...


def killed_at(world, stops):
    """Start the command, and kill it where its way to the store ends."""
    gate = Gate(world.endpoint, stops)
    with gate.open() as url:
        client = world.start(AWS_ENDPOINT_URL=url)
        yield lambda: gate.held.is_set() or client.ended_early()
        client.kill()


def killed_when(world, reached):
    client = world.start()
    yield lambda: reached() or client.ended_early()
    client.kill()


def killed_everywhere(world, check):
    """The same command in every state; ``check`` is called after each death with (state, told),
    what there is of the launch in its store. Its machine cannot destroy itself."""
    vast = world.vast
    vast.boot = NEVER

    def looked(times):
        """Has somebody looked so often from now on?"""
        before = len(vast.asked("GET", "/api/v1/instances/"))
        return lambda: len(vast.asked("GET", "/api/v1/instances/")) >= before + times

    yield from killed_at(world, wrote("/order"))
    check("ordered", [])
    yield from killed_at(world, wrote("/event/0000000000"))
    check("creating", ["creating"])
    yield from killed_when(world, lambda: vast.boxes)  # and the answer comes much later
    first = ["creating", "left", "creating"]
    check("accepted", first)
    yield from killed_at(world, said("created"))
    check("created", [*first, "created"])
    yield from killed_when(world, looked(3))
    check("booting", [*first, "created"])
    client, ready = world.start(), looked(2)
    yield lambda: ready() or client.ended_early()
    vast.boot = BOOTED
    yield lambda: world.word(2) == "running" or client.ended_early()
    client.kill()
    check("running", [*first, "created"])
    yield from killed_at(world, read("/box/2", b'"state":"ended"'))
    check("ended", [*first, "created"])
    yield from killed_at(world, said("over"))
    check("over", [*first, "created", "left", "over"])
    yield from killed_at(world, read("/blob/"))
    check("fetching", [*first, "created", "left", "over"])


def gone_on_with(world, expected):
    """The same command once more after each death, until one is let live."""

    def check(state, kinds):
        assert world.kinds() == kinds, state
        assert len(world.vast.creates()) == len(world.vast.boxes) <= 1, state

    yield from killed_everywhere(world, check)
    last = world.start()
    yield last.is_over
    assert last.ended().code == 0, world.printed()
    assert world.brought() == expected
    assert len(world.launches()) == 1 and len(world.vast.creates()) == 1
    assert world.vast.billing_now() == 0


def reaped(world, expected):
    """`launch reap` after each death: it lets a machine be on which a run lives, or is about to."""
    alive = ("accepted", "created", "booting", "running")

    def check(state, kinds):
        assert world.kinds() == kinds, state
        told = world.launch("ps", "--json", "--store", world.place, at="elsewhere")
        stray = [each["id"] for each in json.loads(told.out)["billing_for_nothing"]]
        ids = [str(each.id) for each in world.vast.billing]
        assert (told.code, stray) == ((3, ids) if state == "ended" else (0, [])), state
        assert world.launch("reap", "--store", world.place, at="elsewhere").code == 0, state
        assert [str(each.id) for each in world.vast.billing] == (ids if state in alive else [])

    yield from killed_everywhere(world, check)
    last = world.start()
    yield last.is_over
    assert last.ended().code == 0, world.printed()
    assert world.brought() == expected
    assert world.vast.billing_now() == 0 and len(world.vast.boxes) == 1


def test_a_client_that_is_killed_in_every_state(rented, tmp_path, corpus):
    expected = undisturbed(tmp_path / "undisturbed", corpus)
    faults = Fault(Call.LATE), Fault(Life.NO_KEY)
    on, reap = (rented(name, *faults, late=300.0) for name in ("on", "reap"))
    together(gone_on_with=gone_on_with(on, expected), reaped=reaped(reap, expected))


# nobody is there


def never_back(world, expected):
    """The box ends by itself, and all that it made is in the store."""
    yield from killed_when(world, lambda: world.word() == "running")
    yield lambda: world.vast.billing_now() == 0
    assert world.word() == "ended"
    assert [each.by for each in world.vast.asked("DELETE", "/")] == [str(world.vast.boxes[0].id)]
    told = world.launch("reap", "--store", world.place)
    assert told.code == 0 and len(world.vast.asked("DELETE", "/")) == 1
    name = world.first().name
    assert world.launch("pull", name, "--store", world.place, at="elsewhere").code == 0
    assert world.brought("elsewhere") == expected


def all_reaped(world, expected):
    """Also the living are destroyed, if that is said; the same command goes on elsewhere."""
    yield from killed_when(world, lambda: world.checkpoints() >= 1)
    assert world.launch("reap", "--store", world.place).code == 0 and world.vast.billing
    assert world.launch("reap", "--all", "-y", "--store", world.place).code == 0
    assert not world.vast.billing
    again = world.start()
    yield again.is_over
    assert again.ended().code == 0, world.printed()
    assert world.brought() == expected
    assert len(world.launches()) == 1 and len(world.vast.boxes) == 2
    assert world.vast.billing_now() == 0


def asleep(world, expected):
    """The lid is closed, the machine is lost, and the lid is opened again."""
    client = world.start()
    yield lambda: world.checkpoints() >= 1
    client.sleep()
    world.vast.outbid(world.vast.boxes[0])
    requests = len(world.vast.requests)
    yield lambda: world.vast.boxes[0].status == "stopped"
    assert len(world.vast.requests) == requests  # it does sleep
    client.wake()
    yield client.is_over
    assert client.ended().code == 0, world.printed()
    assert world.brought() == expected
    assert len(world.vast.boxes) == 2 and world.vast.beside == [[], []]
    assert world.vast.billing_now() == 0


def test_a_client_that_is_away(rented, tmp_path, corpus):
    expected = undisturbed(tmp_path / "undisturbed", corpus, MANY)
    stories = {each.__name__: each for each in (never_back, all_reaped, asleep)}
    worlds = {name: rented(name, steps=MANY, one_disk=True) for name in stories}
    together(**{name: story(worlds[name], expected) for name, story in stories.items()})
