"""The real program in sessions of FakeKaggle: cut off by their limit, and going on in the next."""

import time

import pytest
from boxes import MACHINE
from fakes.kaggle import FakeKaggle
from pipelines import digests, run, toy_engine
from servers import make_bucket, s3_environment, s3_server

from launchers import bundle
from launchers.kaggle.target import Kaggle
from launchers.launches import Launch, Order
from launchers.target import Errand
from pipeline.store.places import open_store

NAME = "ignite-tiny-0000aa"
LONG = ("train.steps=1200", "train.eval_every=400")
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
    """A session that is cut by its limit, one that is killed, and one that ends the run."""
    engine = toy_engine(tmp_path / "store", corpus, *LONG)
    run(engine, "prepare")
    launch, target = launched(engine), kaggle(engine.store)
    last = cut(fake, target, launch, "", engine)
    reached = steps(engine)
    lost = session(fake, target, launch, "", last + 1, kill=lambda each: "ETA" in each.log)
    assert lost[0] is None and steps(engine) == reached
    code, told = session(fake, target, launch, "", last + 2)
    assert code == 0 and f"going on from step {reached:,}" in told, told
    assert digests(engine) == expected


def cut(fake, target, launch, place, engine):
    """Sessions that end by their limit, until one was long enough to train; the last attempt."""
    for attempt in range(1, 6):
        code, told = session(fake, target, launch, place, attempt, seconds=5.0 * 2**attempt)
        assert code == 75, told
        if steps(engine):
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
    run(engine)
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
        last = cut(fake, target, launch, "s3://runs/one", engine)
        code, told = session(fake, target, launch, "s3://runs/one", last + 1)
        assert code == 0 and "going on from step" in told, told
        assert digests(engine) == expected and not fake.datasets
