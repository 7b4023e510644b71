"""The real program in sessions of FakeKaggle: cut off by their limit, and going on in the next."""

import time
from dataclasses import replace

import pytest
from boxes import MACHINE
from fakes.kaggle import FakeKaggle
from pipelines import MACHINE as TOY_MACHINE
from pipelines import digests, run, toy_engine
from servers import make_bucket, s3_environment, s3_server

from launchers import bundle
from launchers.kaggle.target import Kaggle
from launchers.launches import Launch, Order
from launchers.target import Errand
from pipeline.store.places import open_store

NAME = "ignite-tiny-0000aa"
LONG = ("train.steps=4000", "train.eval_every=2000")
pytestmark = pytest.mark.slow


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    with FakeKaggle(tmp_path / "kaggle") as fake:
        fake.install(monkeypatch)
        yield fake


def launched(engine):
    """A launch of this recipe, with the real bundle."""
    packed = bundle.make()
    options = {"floors": {"disk": 0.0, "store": 0.0}}
    order = Order(NAME, "kaggle", engine.recipe.tree(), MACHINE, packed.digest, options)
    bundle.send(packed, engine.store)
    launch = Launch(engine.store, NAME)
    launch.place(order)
    return launch


def session(fake, target, launch, place, attempt, seconds=None, kill=None):
    """Push one session, and bring what it leaves; the exit code it told, and its log."""
    errand = Errand(NAME, attempt, place, launch.order().bundle, seconds)
    target.create(errand, target.offers()[0])
    if kill is not None:
        until = time.monotonic() + 60
        while not kill(fake.sessions(NAME)[-1]) and time.monotonic() < until:
            time.sleep(0.02)
        fake.kill(NAME)
    ended = fake.wait(NAME)
    for box in target.boxes():
        target.collect(box)
    launch.append("left", attempt=attempt)
    return launch.box(attempt).get("code"), ended.log


def kaggle(store):
    return Kaggle(store, limit=600.0, margin=60.0, pause=lambda seconds: time.sleep(0.05))


def test_without_a_store_elsewhere_the_run_travels(fake, tmp_path, corpus, expected):
    engine = toy_engine(tmp_path / "store", corpus, *LONG)
    run(engine, "prepare")
    launch, target = launched(engine), kaggle(engine.store)
    told = interrupted(fake, target, launch, "", engine)
    assert "going on from step" in told, told
    assert digests(engine) == expected


def interrupted(fake, target, launch, place, engine):
    """A session that ends by its limit, one that is killed, another that ends by its limit, and one
    that ends the run; what that printed."""
    last = cut(fake, target, launch, place, engine)
    reached = steps(engine)
    lost = session(fake, target, launch, place, last + 1, kill=lambda each: "ETA" in each.log)
    assert lost[0] is None and steps(engine) >= reached
    last = cut(fake, target, launch, place, engine, first=last + 2)
    assert reached < steps(engine) < 4000
    code, told = session(fake, target, launch, place, last + 1)
    assert code == 0, told
    return told


def cut(fake, target, launch, place, engine, first=1):
    """Sessions that end by their limit, until one was long enough to train; the last attempt."""
    before = steps(engine)
    for attempt in range(first, first + 5):
        seconds = 10.0 * 2 ** (attempt - first)
        code, told = session(fake, target, launch, place, attempt, seconds=seconds)
        assert code == 75, told
        if steps(engine) > before:
            return attempt
    raise AssertionError(f"no session has come to train:\n{told}")


def steps(engine):
    """How far training has come."""
    (planned,) = (each for each in engine.plan() if each.stage.name == "train")
    found = planned.state.checkpoints if planned.state is not None else ()
    return found[-1].body["step"] if found else 0


@pytest.fixture(scope="module")
def expected(tmp_path_factory, corpus):
    """What comes out where nothing is cut."""
    engine = toy_engine(tmp_path_factory.mktemp("whole") / "store", corpus, *LONG)
    run(engine, machine=replace(TOY_MACHINE, checkpoint_steps=1000))
    return digests(engine)


def test_with_a_store_elsewhere(fake, tmp_path, corpus, expected, monkeypatch):
    with s3_server() as url:
        make_bucket(url, "runs")
        for name, value in s3_environment(url).items():
            monkeypatch.setenv(name, value)
        fake.secrets = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        store = open_store("s3://runs/one")
        engine = toy_engine(tmp_path / "store", corpus, *LONG)
        engine.store = store
        run(engine, "prepare")
        launch, target = launched(engine), kaggle(store)
        fake.env = {"IGNITE_CACHE": str(tmp_path / "disk")}  # so that a lock tells who is dead
        told = interrupted(fake, target, launch, "s3://runs/one", engine)
        assert "going on from step" in told, told
        assert digests(engine) == expected and not fake.datasets
