"""Whole launches at a Vast.ai that runs what it rents, on a store that both sides reach over S3."""

import pytest
from commands import TOY, launch
from fakes.vast import FakeVast, Fault, Life
from pipelines import digests, run, toy_engine
from servers import s3_environment

from pipeline.engine import log
from pipeline.store.places import open_store

LONG = ("--set", "train.steps=1000")


@pytest.fixture
def s3(endpoint, tmp_path, monkeypatch):
    """This side's environment, and that of every box but for the keys, which it is given."""
    ours = {**s3_environment(endpoint), "IGNITE_CACHE": str(tmp_path / "cache")}
    ours |= {"IGNITE_PACE": "0.02", "HOME": str(tmp_path / "home"), "IGNITE_TELL_EVERY": "0.2"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return {name: ours[name] for name in ("IGNITE_CACHE", "IGNITE_TELL_EVERY")}


@pytest.fixture
def vast(tmp_path, monkeypatch, s3):
    """Starts the service with faults, and shows it to this process."""
    running = []

    def start(*faults, **more):
        fake = FakeVast(tmp_path / "boxes", faults=faults, env=s3, **more)
        running.append(fake)
        fake.__enter__()
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        return fake

    yield start
    for fake in running:
        fake.__exit__()


def checkpoints(place):
    """How many checkpoints of training the store has."""
    store = open_store(place)
    states = [log.read(store, key) for key in log.keys(store)]
    return sum(e.kind == "checkpoint" for s in states if s.stage == "train" for e in s.entries)


def rent(place, corpus, *more):
    words = ["vast", "--store", place, "--data", corpus, *TOY, *more, "-y", "--my-credentials"]
    return launch(*words)


def undisturbed(tmp_path, corpus, *settings):
    engine = toy_engine(tmp_path / "undisturbed", corpus, *settings)
    run(engine)
    return digests(engine)


def brought(corpus, *settings):
    """The digests of what `launch` has fetched into ./artifacts."""
    engine = toy_engine("artifacts", corpus, *settings)
    return digests(engine)


def test_a_run_goes_from_an_order_to_results_that_are_here(tmp_path, vast, corpus):
    fake = vast()
    said = rent("s3://runs/plain", corpus)
    assert said.code == 0, (
        said.out
        + said.err
        + "".join(
            file.read_text() for file in (tmp_path / "boxes").rglob("*log*") if file.is_file()
        )
    )
    assert fake.billing_now() == 0 and len(fake.boxes) == 1
    assert brought(corpus) == undisturbed(tmp_path, corpus)
    assert "bits per byte" in said.out


@pytest.mark.slow
def test_no_loss_of_a_machine_changes_a_bit(tmp_path, vast, corpus):
    """Three outbids, one host that never boots, one that dies, one that comes back."""
    place = "s3://runs/stormy"

    def reached(count):
        return lambda: checkpoints(place) >= count

    fake = vast(
        Fault(Life.OUTBID, nth=1, when=reached(2)),
        Fault(Life.STUCK, nth=2),
        Fault(Life.OUTBID, nth=3, when=reached(4)),
        Fault(Life.EXITED, nth=4, when=reached(6)),
        Fault(Life.RESURRECTS, nth=4, after=0.5),
        Fault(Life.OUTBID, nth=5, when=reached(8)),
    )
    said = rent(place, corpus, *LONG, "--interruptible", "--budget", "50")
    print(said.err)
    assert said.code == 0, said.out + said.err
    assert len(fake.boxes) == 6
    assert fake.billing_now() == 0
    assert 0 < fake.ledger() <= 50
    assert brought(corpus, "train.steps=1000") == undisturbed(tmp_path, corpus, "train.steps=1000")
