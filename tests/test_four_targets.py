"""One run across four targets: a container, Kaggle with two processes, Vast.ai, and a notebook.

IGNITE_TEST_IMAGE    the project's own image: ``pytest -m container``
"""

import itertools
import json
import os
import threading

import pytest
from commands import TOY, launch, pipeline, start
from containers import no_engine
from fakes.colab import Colab
from fakes.kaggle import FakeKaggle
from fakes.vast import FakeVast
from pipelines import run, toy_engine
from servers import s3_environment

from launchers.census import known
from pipeline.engine import log
from pipeline.store.places import open_store

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(no_engine() is not None, reason=f"no Docker engine: {no_engine()}"),
]
STEPS = 1200
SETTINGS = (f"train.steps={STEPS}", "train.eval_every=400")
PLACE = "s3://runs/four"


def reached(place):
    """How many steps of training are saved."""
    store = open_store(str(place))
    states = [log.read(store, key) for key in log.keys(store)]
    return max((each.body["step"] for state in states for each in state.checkpoints), default=0)


class Until(threading.Thread):
    """Ends what runs on a store once it has come so far; a context manager."""

    def __init__(self, place, steps, end):
        super().__init__(daemon=True)
        self.place, self.steps, self.end, self.over = place, steps, end, threading.Event()

    def run(self):
        while not self.over.wait(0.2):
            if reached(self.place) >= self.steps:
                self.end()
                return

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.over.set()
        self.join()


def stop_the_launch():
    """As `launch stop` does from another machine."""
    for each in known(open_store(PLACE)):
        if each.told.over is None:
            each.launch.stop("it goes on elsewhere")


def stop_the_container():
    start("stop", program="launchers.cli").wait(120)


def history(engine):
    planned = next(each for each in engine.plan() if each.stage.name == "train")
    return json.loads(engine.file(planned, "history.json").read_text())


def test_one_run_goes_from_here_to_kaggle_to_vast_to_colab(tmp_path, endpoint, corpus, monkeypatch):
    image = os.environ.get("IGNITE_TEST_IMAGE")
    if not image:
        pytest.skip("IGNITE_TEST_IMAGE names no image")
    environment = {**s3_environment(endpoint), "IGNITE_CACHE": str(tmp_path / "cache")}
    environment |= {"IGNITE_PACE": "0.05", "IGNITE_TELL_EVERY": "0.3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    words = ["--data", corpus, *TOY, *(w for each in SETTINGS for w in ("--set", each))]

    with Until("artifacts", 100, stop_the_container):
        assert launch("local", "--cpu", "--image", image, *words).code == 75
    assert pipeline("push", PLACE).code == 0
    reports = [reached(PLACE)]

    boxes = {name: environment[name] for name in ("IGNITE_CACHE", "IGNITE_TELL_EVERY")}
    secrets = {name: environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    with FakeKaggle(tmp_path / "kaggle", secrets) as kaggle:
        kaggle.install(monkeypatch)
        with Until(PLACE, reports[-1] + 200, stop_the_launch):
            said = launch("kaggle", "--store", PLACE, *words, "--processes", 2, "-y")
    assert said.code == 75, said.out + said.err
    reports.append(reached(PLACE))

    with FakeVast(tmp_path / "boxes", env=boxes) as vast:
        for name, value in vast.environment().items():
            monkeypatch.setenv(name, value)
        with Until(PLACE, reports[-1] + 200, stop_the_launch):
            said = launch("vast", "--store", PLACE, *words, "--my-credentials", "-y")
        assert said.code == 75, said.out + said.err
        assert vast.billing_now() == 0
    reports.append(reached(PLACE))

    assert launch("colab", "--store", PLACE, *words, "-o", "four.ipynb").code == 0
    colab = Colab(tmp_path / "colab", monkeypatch)
    colab.allow(**secrets)
    out = colab.run_all((tmp_path / "four.ipynb").read_text())
    assert 0 < reports[0] < reports[1] < reports[2] < STEPS, out

    engine = toy_engine(tmp_path / "none", corpus, *SETTINGS)
    engine.store = open_store(PLACE)
    (train,) = (each for each in engine.plan() if each.stage.name == "train")
    parts = train.result.body["metrics"]["segments"]
    assert [part["from"] for part in parts] == [1, *(1 + each for each in reports)]
    assert [part["to"] for part in parts] == [*reports, STEPS]
    assert [part["world_size"] for part in parts] == [1, 2, 1, 1]
    # each step's loss is that of the samples that one machine would have drawn for it, but for the
    # rounding of sums; two batches differ by a hundred times as much
    alone = toy_engine(tmp_path / "alone", corpus, *SETTINGS)
    run(alone)
    ours, theirs = history(engine)["losses"], history(alone)["losses"]
    assert len(ours) == len(theirs) == STEPS
    apart = [abs(one - other) for one, other in zip(ours, theirs)]
    between = [abs(one - other) for one, other in itertools.pairwise(theirs)]
    assert max(apart) < 1e-2 * sum(between) / len(between)
