"""Limits of money and time, with and without anybody who watches, and what is asked beforehand.

Money goes by here as it does at Vast.ai, and a machine is dear enough for a budget to last seconds.
So that a run never gets done before that, however fast this machine is, its host stands still after
the first checkpoints, until it is time to save.
"""

import time

import pytest
from fakes.vast import offer
from renting import together, undisturbed

HOUR = 90.0  # dollars: a quarter for ten seconds
SECONDS = 50.0  # that each limit leaves
STEPS = 120
BUDGET = HOUR * SECONDS / 3600
# Seconds at that price which may come on top. The box counts its time from when it starts, the
# client from before it asks: that is the boot, of which only the disk is billed. At the end it
# waits 2 s for its last words to be logged, and its own request to destroy it takes a moment.
MORE = 6.0


def dear(rented, name):
    return rented(name, steps=STEPS, speed=1.0, offers=[offer(101, HOUR)])


def until_it_is_time_to_save(world):
    (box,) = world.vast.boxes
    with world.standing_still():
        yield lambda: time.time() > box.started + SECONDS - 4.0


def client_watches(world, limits, words, expected):
    """It says so; all is saved, and the same command with more of it goes on to the end."""
    client = world.start(*world.rents("--max-price", "100", *limits, "-y"))
    yield lambda: world.checkpoints() >= 1
    yield from until_it_is_time_to_save(world)
    yield client.is_over
    said = client.ended()
    assert said.code == 1 and words in said.err, world.printed()
    assert world.vast.billing_now() == 0 and len(world.vast.boxes) == 1
    assert world.vast.ledger() <= BUDGET + HOUR * MORE / 3600
    assert world.first().events()[-1].body["outcome"] == "failed"
    yield from more_of_it(world, expected)


def more_of_it(world, expected):
    more = world.start(*world.rents("--max-price", "100", "--budget", "50", "-y"))
    yield more.is_over
    assert more.ended().code == 0, world.printed()
    assert world.brought() == expected
    assert world.vast.billing_now() == 0 and len(world.vast.boxes) == 2
    steps = [e.body["step"] for e in world.entries("checkpoint")]
    assert len(steps) == len(set(steps))  # nothing that was saved is computed again


def nobody_watches(world, limits, words):
    """The box keeps the limit by itself: it saves all, and is gone in time."""
    client = world.start(*world.rents("--max-price", "100", *limits, "-y"))
    yield lambda: world.checkpoints() >= 1
    client.kill()
    (box,) = world.vast.boxes
    yield from until_it_is_time_to_save(world)
    yield lambda: world.vast.billing_now() == 0
    assert box.spent <= BUDGET + HOUR * MORE / 3600
    assert [each.by for each in world.vast.asked("DELETE", "/")] == [str(box.id)]
    assert world.launch("ps", "--store", world.place).code == 0
    said = world.launch("watch", world.first().name, "--store", world.place)
    assert (said.code == 1 and "is reached" in said.err + "") or "is spent" in said.err


@pytest.mark.slow
def test_limits_are_kept(rented, tmp_path, corpus):
    expected = undisturbed(tmp_path / "undisturbed", corpus, STEPS)
    money = ("--budget", f"{BUDGET:.4f}"), f"the budget of ${BUDGET:.2f} is spent"
    hours = ("--deadline", f"{SECONDS:.0f}s", "--budget", "50"), "the deadline, "
    together(
        money=client_watches(dear(rented, "money"), *money, expected),
        hours=client_watches(dear(rented, "hours"), *hours, expected),
        money_alone=nobody_watches(dear(rented, "money-alone"), *money),
        hours_alone=nobody_watches(dear(rented, "hours-alone"), *hours),
    )


# before anything is rented


def test_nothing_under_the_price(rented):
    """It is said before anything is asked, and so is what there is."""
    world = rented("price")
    said = world.launch(*world.rents("--max-price", "0.05"))
    assert said.code == 1
    assert "the cheapest is $0.208/h" in said.err and "--max-price 0.21" in said.err
    assert "Rent" not in said.out + said.err
    assert not world.vast.creates() and not world.launches()


def test_a_no_rents_nothing(rented):
    """Nobody is there to say yes, and a table of offers was shown."""
    world = rented("declined")
    client = world.start(*world.rents())
    said = client.ended()
    assert said.code == 1 and "in all" in said.err and "Aborted" in said.err
    assert not world.vast.creates() and not world.launches()


def test_a_machine_for_one_texts_recipe_is_not_for_another(rented, tmp_path):
    """The same command goes on with a launch, and one with another text is another command."""
    from pipelines import toy_engine, write_corpus

    from launchers.start import open_one

    world, other = rented("texts"), write_corpus(tmp_path / "other.txt", seed=1)
    said = world.launch(*world.rents("-y", "-d"))
    assert said.code == 0 and len(world.launches()) == 1, said.err

    def meant(text):
        engine = toy_engine(tmp_path / "here", text, *world.settings)
        engine.store = world.store
        return open_one(engine, "vast")

    assert meant(world.corpus).name == world.first().name
    assert meant(other) is None
