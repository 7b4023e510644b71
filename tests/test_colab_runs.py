"""The notebook as Colab runs it: to its end, taken away in the middle, and run again."""

import os
import signal

import pytest
from boxes import MACHINE
from fakes.colab import Colab, Taken
from pipelines import SETTINGS, digests, local_store, run, toy_engine
from servers import s3_environment

from launchers import bundle
from launchers.colab.notebook import Told, notebook
from launchers.colab.unattended import Unattended
from launchers.credentials import unhidden
from launchers.history import FINISHED, history
from launchers.launches import Launch, Order
from pipeline import recipe
from pipeline.engine import log
from pipeline.engine.engine import Engine
from pipeline.engine.needed import needed_by
from pipeline.store.places import open_store

NAME = "ignite-tiny-c01ab0"
STEPS = 400  # enough that a copy falls into training on a busy machine
LONG = (f"train.steps={STEPS}",)


@pytest.fixture
def colab(tmp_path, monkeypatch) -> Colab:
    return Colab(tmp_path / "colab", monkeypatch)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus) -> dict[str, str]:
    """What the run gives where nobody interrupts it."""
    engine = toy_engine(tmp_path_factory.mktemp("straight"), corpus, *LONG)
    run(engine)
    return digests(engine)


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch) -> str:
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://runs/{tmp_path.name}"


def told(corpus, place: str = "", drive: str = "", *settings: str) -> Told:
    tree = recipe.load("tiny", data=str(corpus), settings=(*SETTINGS, *LONG, *settings)).tree()
    packed = bundle.make()
    options = {"store": place, "drive": drive, "floors": {"disk": 0.0, "store": 0.0}}
    order = Order(NAME, "colab", tree, MACHINE, packed.digest, options)
    environment = unhidden(os.environ)
    return Told(order, packed, place, drive, environment=environment)


def steps(store) -> int:
    """How far training is, as its checkpoints tell."""
    states = [log.read(store, key) for key in log.keys(store)]
    return max((each.body["step"] for state in states for each in state.checkpoints), default=-1)


def test_a_run_on_drive_survives_its_machine(colab, corpus, straight):
    made = told(corpus, drive="runs")
    mirror = local_store(colab.drive / "runs" / NAME)
    with pytest.raises(Taken):
        colab.run_until(notebook(made), lambda: steps(mirror) >= 4, COPY_MINUTES=0.005)
    assert 4 <= steps(mirror) < STEPS and "unmount" not in colab.asked()
    colab.wipe()
    out = colab.run_all(notebook(made), COPY_MINUTES=0.02)
    assert "took the run so far" in out and "nothing to do" not in out
    assert digests(toy_engine(mirror.root, corpus, *LONG)) == straight
    assert colab.asked()[-2:] == ["unmount", "unassign"]
    # what newer checkpoints have replaced takes no room there, but for what the kill cut off
    assert len(set(mirror.blobs()).difference(*needed_by(mirror).values())) <= 8
    seen = history(Launch(mirror, NAME).events())
    assert [each.code for each in seen.attempts] == [None, 0]
    assert seen.over.body["outcome"] == FINISHED


@pytest.mark.slow
def test_a_run_in_a_bucket_survives_its_machine(colab, corpus, straight, bucket, tmp_path):
    made, store = told(corpus, bucket), open_store(bucket)
    colab.allow(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing")
    with pytest.raises(Taken):
        colab.run_until(notebook(made), lambda: steps(store) >= 10)
    assert steps(store) < STEPS
    out = colab.run_all(notebook(made))
    engine = Engine(open_store(bucket), recipe.from_tree(made.order.recipe))
    assert digests(engine) == straight, out
    assert colab.asked()[-1] == "unassign" and "mount" not in " ".join(colab.asked())


@pytest.mark.slow
def test_a_kernel_that_is_restarted_leaves_a_session_that_saves(colab, corpus, straight):
    made = told(corpus, drive="runs")
    own = local_store(colab.root / NAME / "store")
    with pytest.raises(Taken):
        colab.run_until(notebook(made), lambda: steps(own) >= 10, only_the_kernel=True)
    out = colab.run_all(notebook(made))  # at once: the session before may still save
    assert "another session has begun" not in out
    seen = history(Launch(own, NAME).events())
    assert [each.code for each in seen.attempts] == [75, 0]
    assert digests(toy_engine(own.root, corpus, *LONG)) == straight


@pytest.mark.slow
def test_the_stop_button_saves_all_and_keeps_the_machine(colab, corpus):
    made = told(corpus, "", "runs", "train.steps=100000")
    own = local_store(colab.root / NAME / "store")
    out = colab.run_until(notebook(made), lambda: steps(own) >= 4, number=signal.SIGINT)
    assert "stopping as soon as all is saved" in out and "still yours" in out
    assert "Go on with: Runtime > Run all" in out
    mirror = local_store(colab.drive / "runs" / NAME)
    assert steps(mirror) == steps(own) > 4
    assert colab.asked()[-1] == "unmount"
    assert history(Launch(mirror, NAME).events()).attempts[0].code == 75


def test_without_a_browser_the_machine_goes_and_no_secret_is_told(
    colab, corpus, bucket, monkeypatch, capfd
):
    made, store = told(corpus, bucket, "", "train.steps=12"), open_store(bucket)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-5f1d22c0a9e8")
    colab.program(monkeypatch)
    (colab.account / "tired").touch()
    job = Unattended(made, None, mine=True)
    job.check()
    launch = Launch(store, NAME)
    launch.place(made.order)
    assert job.run(launch) == 0, capfd.readouterr()
    assert "prompt:" in capfd.readouterr().out
    calls = colab.calls()
    assert [call[0] for call in calls][:4] == ["sessions", "new", "upload", "exec"]
    assert not list((colab.account / "sessions").iterdir())
    assert [call[0] for call in calls][4:] == ["stop", "sessions", "stop", "sessions"]
    left = [colab.account / "calls", colab.account / "script.py"]
    left += [path for path in colab.root.rglob("*") if path.is_file()]
    assert not [path for path in left if b"canary-5f1d22" in path.read_bytes()]
