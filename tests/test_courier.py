"""Checkpoints on their way: the courier alone, and whole runs over a bad network.

What is away here is a directory that stands for a store elsewhere, with faults in front of it.
"""

import io
import threading
import time

import pytest
from faults import Fault, Faulty, well
from pipelines import MACHINE, SETTINGS, digests, toy_engine

from pipeline import recipe
from pipeline.engine import beat, courier, engine, log, work
from pipeline.engine.courier import Checkpoint, Courier
from pipeline.engine.engine import Engine
from pipeline.engine.unsent import read_unsent
from pipeline.errors import Interrupted, Lost, StoreAway, StoreError
from pipeline.store.disk import Disk
from pipeline.store.store import Store
from pipeline.ui import Ui

SOON = 20.0  # seconds within which everything here has happened, or the test fails


def until(happened) -> None:
    deadline = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Network:
    """Carries checkpoints once it is let; ``failing`` are what the next attempts raise."""

    def __init__(self, *failing: Exception) -> None:
        self.failing = list(failing)
        self.begun: list[int] = []
        self.carried: list[int] = []
        self.let = threading.Event()

    def carry(self, checkpoint: Checkpoint) -> None:
        self.begun.append(checkpoint.step)
        assert self.let.wait(SOON)
        if self.failing:
            raise self.failing.pop(0)
        self.carried.append(checkpoint.step)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a courier over a network: (courier, what it notes, a checkpoint of a step)."""
    monkeypatch.setattr(courier, "_RETRY", 0.01)
    made = []

    def make_one(carry):
        notes: list[str] = []
        made.append(Courier(carry, notes.append))
        return made[-1], notes

    yield make_one
    for each in made:
        each.cancel()


@pytest.fixture
def checkpoint(tmp_path):
    def make_one(step: int) -> Checkpoint:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "state").write_bytes(b"%d" % step)
        return Checkpoint(step, 0.0, folder)

    return make_one


def unseen(step: int, sent: int) -> None:
    """Nobody looks at the sending."""


# the courier alone


def test_the_newest_takes_the_place_of_what_waits(make, checkpoint):
    network = Network()
    sender, notes = make(network.carry)
    made = [checkpoint(step) for step in range(1, 6)]
    sender.submit(made[0])
    until(lambda: network.begun)
    for each in made[1:]:  # none of these waits for the one that is stuck
        sender.submit(each)
    assert network.carried == []
    assert [each.folder.exists() for each in made] == [True, False, False, False, True]
    network.let.set()
    assert sender.finish(unseen) is None
    assert network.carried == [1, 5] and notes == []


def test_nothing_to_send_is_nothing_to_wait_for(make):
    sender, _ = make(Network().carry)
    assert sender.finish(unseen) is None
    sender.cancel()


def test_a_store_that_was_away_is_noted_twice(make, checkpoint):
    network = Network(*[StoreAway("the store is away") for _ in range(3)])
    network.let.set()
    sender, notes = make(network.carry)
    sender.submit(checkpoint(1))
    assert sender.finish(unseen) is None
    assert network.begun == [1, 1, 1, 1] and network.carried == [1]
    assert notes == [
        "the store is away. Training goes on; checkpoints wait on this machine",
        "the store is back and has step 1",
    ]


def test_a_newer_one_goes_before_one_that_was_put_back(make, checkpoint):
    network = Network(StoreAway("the store is away"))
    sender, _ = make(network.carry)
    sender.submit(checkpoint(1))
    until(lambda: network.begun)
    sender.submit(checkpoint(2))
    network.let.set()
    assert sender.finish(unseen) is None
    assert network.begun == [1, 2] and network.carried == [2]


@pytest.mark.parametrize("error", [Lost("another's"), StoreError("no rights"), OSError("disk")])
def test_what_ends_the_carrying_is_raised_where_it_is_asked_for(make, checkpoint, error):
    network = Network(error)
    sender, _ = make(network.carry)
    sender.submit(checkpoint(1))
    network.let.set()
    until(lambda: not sender._thread.is_alive())
    calls = [sender.check, lambda: sender.submit(checkpoint(2)), lambda: sender.finish(unseen)]
    for call in calls:
        with pytest.raises(type(error), match=str(error)):
            call()
    assert network.begun == [1]


def test_cancelled_in_the_middle(make, checkpoint):
    sending = threading.Event()

    def carry(_: Checkpoint) -> None:
        while True:
            sending.set()
            sender.report(1)
            time.sleep(0.001)

    sender, notes = make(carry)
    sender.submit(checkpoint(1))
    assert sending.wait(SOON)
    sender.cancel()
    assert not sender._thread.is_alive() and notes == []


def test_what_waits_is_not_carried_after_a_cancel(make, checkpoint):
    network = Network()
    sender, _ = make(network.carry)
    sender.submit(checkpoint(1))
    until(lambda: network.begun)
    sender.submit(checkpoint(2))
    threading.Timer(0.05, network.let.set).start()
    sender.cancel()
    assert network.carried == [1]


def test_the_end_does_not_wait_long_for_a_store_that_stays_away(make, checkpoint, monkeypatch):
    monkeypatch.setattr(courier, "AWAY_WITHIN", 0.3)
    network = Network(*[StoreAway("the store is away") for _ in range(10_000)])
    network.let.set()
    sender, notes = make(network.carry)
    sender.submit(checkpoint(1))
    shown = []
    assert sender.finish(lambda step, sent: shown.append(step)) == 1
    assert set(shown) == {1} and len(notes) == 1


def test_the_end_waits_longer_while_bytes_go_out_but_not_for_ever(make, checkpoint, monkeypatch):
    monkeypatch.setattr(courier, "AWAY_WITHIN", 0.0)
    monkeypatch.setattr(courier, "SEND_WITHIN", 0.3)
    network = Network()
    sender, _ = make(network.carry)
    sender.submit(checkpoint(1))
    until(lambda: network.begun)
    sender.submit(checkpoint(2))
    start = time.monotonic()
    assert sender.finish(unseen) == 2
    assert time.monotonic() - start >= 0.3
    network.let.set()


def test_who_watches_the_sending_may_end_it(make, checkpoint):
    network = Network()
    sender, _ = make(network.carry)
    sender.submit(checkpoint(1))

    def impatient(step: int, sent: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sender.finish(impatient)
    network.let.set()


# whole runs


class Watcher(Ui):
    """Calls ``at`` with every step of training; keeps what was said."""

    def __init__(self, at=lambda step: None) -> None:
        super().__init__(io.StringIO())
        self.at = at

    def progress(self, stage, done, total, unit, shown) -> None:
        if stage == "train" and unit == "steps":
            self.at(done)

    @property
    def said(self) -> str:
        return self.out.getvalue()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus) -> dict[str, str]:
    """The digests of a run on a directory."""
    whole = toy_engine(tmp_path_factory.mktemp("whole") / "store", corpus)
    whole.run("sample", MACHINE, Watcher(), lambda: False)
    return digests(whole)


@pytest.fixture
def elsewhere(tmp_path, corpus, monkeypatch):
    """Makes an engine on a store elsewhere: this machine's part of it stays from call to call."""
    for module, name in [(courier, "_RETRY"), (work, "_ONE_TRY"), (engine, "PATIENCE")]:
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(courier, "AWAY_WITHIN", 0.5)
    monkeypatch.setattr(beat, "REMOTE_DEAD_AFTER", 1.0)
    chosen = recipe.load("tiny", data=str(corpus), settings=SETTINGS)

    def make_one(choose=well) -> Engine:
        remote = Faulty(Disk(tmp_path / "remote"), choose)
        return Engine(Store(Disk(tmp_path / "cache"), remote), chosen)

    return make_one


def newest_step(made: Engine) -> int:
    """The newest step of training that the store has; 0 if it has none."""
    state = next(item.state for item in made.plan() if item.stage.name == "train")
    return state.checkpoints[-1].body["step"] if state and state.checkpoints else 0


def test_what_could_not_be_sent_is_gone_on_from(elsewhere, undisturbed):
    """The store goes away for good, and somebody stops the run: this machine knows the way on."""
    gone, stopped = threading.Event(), threading.Event()
    made = elsewhere(lambda call, name: Fault.FAIL if gone.is_set() else None)
    other = elsewhere()

    def at(step: int) -> None:
        if step == 5:
            until(lambda: newest_step(other) >= 2)
            gone.set()
        if step == 9:
            until(lambda: "cannot be reached. Training goes on" in ui.said)
            stopped.set()

    ui = Watcher(at)
    with pytest.raises(Interrupted, match="checkpoint written at step 9"):
        made.run("sample", MACHINE, ui, stopped.is_set)
    assert "cannot be reached. Training goes on" in ui.said
    assert "train: the checkpoint of step 9 could not be sent to" in ui.said
    assert "It is kept on this machine" in ui.said
    assert 2 <= newest_step(other) < 9
    after = Watcher()
    again = elsewhere()
    again.run("sample", MACHINE, after, lambda: False)
    assert "going on from step 9" in after.said
    assert digests(again) == undisturbed


def test_a_result_that_cannot_be_sent_costs_what_came_after_the_checkpoint(elsewhere, undisturbed):
    """Nobody stops it: training ends, and its result finds no way."""
    gone = threading.Event()
    made = elsewhere(lambda call, name: Fault.FAIL if gone.is_set() else None)
    other = elsewhere()

    def at(step: int) -> None:
        if step == 5:
            until(lambda: newest_step(other) >= 2)
            gone.set()
        if step == 11:  # the checkpoint of step 10 is to be seen by the courier
            until(lambda: b'"step":10' in (made.store.disk.read(unsent()) or b""))

    def unsent() -> str:
        return next(f"unsent/{name}" for name in made.store.disk.names("unsent"))

    with pytest.raises(StoreAway, match="cannot be reached"):
        made.run("sample", MACHINE, Watcher(at), lambda: False)
    after = Watcher()
    again = elsewhere()
    again.run("sample", MACHINE, after, lambda: False)
    assert "going on from step 10" in after.said
    assert digests(again) == undisturbed


def test_a_copy_that_somebody_removed_costs_its_checkpoint_alone(elsewhere, undisturbed):
    """While the store is away the cache is emptied: the next checkpoint is as good."""
    gone = threading.Event()
    made = elsewhere(lambda call, name: Fault.FAIL if gone.is_set() else None)
    other = elsewhere()

    def noted() -> dict:
        keys = made.store.disk.names("unsent")
        return (read_unsent(made.store, keys[0]) if keys else None) or {"step": 0}

    def at(step: int) -> None:
        if step == 5:
            until(lambda: newest_step(other) >= 2)
            gone.set()
        if step == 9:
            until(lambda: noted()["step"] == 8)
            blob = noted()["files"]["state.safetensors"]["digest"]
            made.store.blob_path(blob).unlink()
            gone.clear()
            until(lambda: "the checkpoint of step 8 is not sent" in ui.said)

    ui = Watcher(at)
    made.run("sample", MACHINE, ui, lambda: False)
    assert "another process" not in ui.said
    assert digests(made) == undisturbed


def test_a_store_that_is_away_for_a_while_costs_a_warning(elsewhere, undisturbed):
    gone, failed = threading.Event(), []

    def choose(call: str, name: str) -> Fault | None:
        if gone.is_set():
            failed.append(call)
            return Fault.FAIL
        return None

    def at(step: int) -> None:
        if step == 3:
            gone.set()
        if step == 7:
            until(lambda: len(failed) >= 3)
            gone.clear()
            until(lambda: "the store is back" in ui.said)

    ui, made = Watcher(at), elsewhere(choose)
    made.run("sample", MACHINE, ui, lambda: False)
    assert ui.said.count("cannot be reached") == 1
    assert ui.said.count("the store is back and has step") == 1
    assert digests(made) == undisturbed


def test_a_lost_claim_ends_the_training(elsewhere):
    """Another process takes the work over while this one trains: the next checkpoint finds out."""
    made, other = elsewhere(), elsewhere()

    def at(step: int) -> None:
        if step == 4:
            until(lambda: newest_step(other) == 2)
            key = next(item.key for item in other.plan() if item.stage.name == "train")
            log.Claim.take(other.store, key, log.read(other.store, key), "another", {})
        assert step < 12, "nobody said that the work is another's"
        if step > 5:
            time.sleep(0.2)  # the courier carries

    ui = Watcher(at)
    made.run("encode", MACHINE, ui, lambda: False)
    with pytest.raises(Interrupted, match="goes on in the other process"):
        made.run("train", MACHINE, ui, lambda: "works on this stage now" in ui.said)
