"""What was agreed to is what is rented: other terms, two commands at once, Ctrl-C, no terminal."""

import json
import os
import signal
import threading
import time

import click
import pytest
from commands import TOY, launch
from fakes.vast import FakeVast

from launchers import start
from launchers.attendance import attended
from launchers.history import history
from launchers.launches import Launch, Order, launches
from launchers.target import Offer
from pipeline import recipe
from pipeline.engine.engine import Engine
from pipeline.errors import Interrupted
from pipeline.store.places import open_store

PLACE = "s3://runs/terms"


@pytest.fixture
def vast(tmp_path, hasty, monkeypatch):
    with FakeVast(tmp_path / "boxes") as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def unattended(monkeypatch):
    """Nothing is attended: a launch is placed, and that is all."""
    attended = []
    monkeypatch.setattr(start, "see_through", lambda *told: attended.append(told) or 0)
    return attended


def rent(place, corpus, *more):
    return launch("vast", "--store", place, "--data", corpus, *TOY, "--my-credentials", *more)


def test_who_says_yes_late_goes_on_with_what_another_has_begun(
    vast, unattended, corpus, monkeypatch
):
    """Else two machines would be paid for one run."""

    def meanwhile(*_, **__):
        assert rent(f"{PLACE}-late", corpus, "-y").code == 0
        return True

    monkeypatch.setattr(click, "confirm", meanwhile)
    said = rent(f"{PLACE}-late", corpus)
    assert said.code == 0 and "going on with" in said.err
    assert len(launches(open_store(f"{PLACE}-late"))) == 1
    assert len({told[0].name for told in unattended}) == 1


def test_going_on_is_on_the_terms_that_were_agreed_to(vast, unattended, corpus):
    place = f"{PLACE}-other"
    assert rent(place, corpus, "--max-price", "0.4", "-y").code == 0
    refused = rent(place, corpus, "--max-price", "5")
    assert refused.code == 2 and "under way with 0.4" in refused.err
    assert rent(place, corpus, "--deadline", "9h").code == 2
    assert rent(place, corpus).code == 0
    assert rent(place, corpus, "--max-price", "0.4").code == 0
    assert [told[1].options.max_price for told in unattended] == [0.4] * 3


def test_without_a_terminal_and_a_yes_nothing_is_rented(vast, corpus):
    said = rent(f"{PLACE}-no", corpus)
    assert said.code == 1 and not vast.boxes and not launches(open_store(f"{PLACE}-no"))


def test_json_is_json_and_goes_with_a_dry_run(vast, corpus):
    said = rent(f"{PLACE}-json", corpus, "-n", "--json")
    assert said.code == 0 and json.loads(said.out)["requests"]["create"]["body"]
    said = rent(f"{PLACE}-json", corpus, "-y", "--json")
    assert said.code == 2 and "--dry-run" in said.err and not vast.boxes


def test_logs_name_what_is_over(vast, unattended, corpus):
    place = f"{PLACE}-over"
    assert rent(place, corpus, "-y").code == 0
    (only,) = launches(open_store(place))
    assert only.append("over", outcome="stopped", why="somebody asked for it")
    said = launch("logs", "--store", place)
    assert said.code == 1 and only.name in said.err and "nothing runs" in said.err


@pytest.mark.parametrize("finishes", [False, True])
def test_ctrl_c_while_the_text_is_sent_starts_nothing(vast, corpus, monkeypatch, finishes):
    def prepare(self, stage, machine, shown, asked):
        os.kill(os.getpid(), signal.SIGINT)
        if not finishes and asked():
            raise Interrupted

    monkeypatch.setattr(Engine, "run", prepare)
    said = rent(f"{PLACE}-text", corpus, "-y")
    assert said.code == 75 and "nothing was started" in said.err
    assert not vast.boxes and not launches(open_store(f"{PLACE}-text"))


# Ctrl-C


class Slow:
    """A service that takes its time; ``listed`` counts how often it was asked."""

    name, session = "slow", None

    def __init__(self, seconds):
        self.seconds, self.listed = seconds, 0

    def boxes(self):
        self.listed += 1
        time.sleep(self.seconds)
        return []

    def offers(self, avoid):
        time.sleep(self.seconds)
        return [Offer("o1", "m1", "RTX 4090", 1, 0.36)]

    def create(self, errand, offer):
        raise AssertionError("nothing is to be rented any more")


@pytest.fixture
def placed(tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_PACE", "0.02")
    store = open_store(str(tmp_path / "store"))
    found = Launch(store, "ignite-tiny-000000")
    found.place(Order(found.name, "slow", recipe.load().tree(), [], "b" * 64, {"store": "s"}))
    return found


def press(*seconds):
    def run():
        for pause in seconds:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=run, daemon=True).start()


def test_a_second_ctrl_c_does_not_wait_for_a_service(placed):
    press(0.2, 0.7)
    began = time.monotonic()
    assert attended(placed, Slow(20.0)) == 130
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("detach", "after"), [(False, 0.2), (True, 0.2), (False, 0.7)])
def test_ctrl_c_before_anything_is_rented_ends_it(placed, detach, after):
    """While boxes are listed, and while offers are looked for."""
    press(after)
    assert attended(placed, Slow(0.5), detach) == 75
    assert history(placed.events()).over.body["outcome"] == "stopped"
