"""`launch reap` and `launch ps`: what bills, what lives, and what only seems to be dead."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from boxes import ordered
from commands import launch

from launchers import reap as reap_module
from launchers import targets
from launchers.target import Box
from pipeline.hashing import canonical


class Market:
    """A service that lists boxes until they are destroyed."""

    def __init__(self, *boxes):
        self.there = {box.id: box for box in boxes}

    def boxes(self):
        return list(self.there.values())

    def destroy(self, id):
        del self.there[id]


@pytest.fixture
def run(tmp_path, corpus, monkeypatch):
    """A launch whose first attempt is the box b1, and what shows a service to the commands."""
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IGNITE_PACE", "0.02")
    monkeypatch.chdir(tmp_path)
    found = ordered("store", corpus)
    found.append("creating", attempt=1, offer={"per_hour": 0.3})
    found.append("created", attempt=1, id="b1")

    def serve(*boxes):
        market = Market(*boxes)
        monkeypatch.setattr(targets, "has_key", lambda name: name == "vast")
        monkeypatch.setattr(targets, "connect", lambda *_, **__: market)
        monkeypatch.setattr(reap_module, "connect", lambda *_, **__: market)
        return market

    found.serve = serve
    return found


def box(launch_, id="b1", attempt=1, **more):
    return Box(**{
        **{"id": id, "label": f"{launch_.name}/{attempt}", "state": "running", "per_hour": 0.3},
        **more,
    })  # fmt: skip


def say(launch_, minutes, nonce):
    """What the box would say if its clock were late by so much."""
    at = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    told = {"state": "running", "at": at, "nonce": nonce}
    launch_.store.replace(f"launch/{launch_.name}/box/1", canonical(told))


def test_a_dead_one_goes_and_a_live_one_stays(run):
    say(run, 0, "a")
    market = run.serve(box(run), box(run, "b2", 7))
    assert launch("ps", "--store", "store").code == 3
    said = launch("reap", "--store", "store")
    assert said.code == 0 and list(market.there) == ["b1"], said.err
    assert launch("ps", "--store", "store").code == 0


def test_a_run_is_not_ended_because_clocks_differ(run):
    say(run, 90, "a")
    market = run.serve(box(run))
    beats = threading.Event()

    def beat():
        while not beats.wait(0.1):
            say(run, 90, str(time.monotonic()))

    thread = threading.Thread(target=beat)
    thread.start()
    said = launch("reap", "--store", "store")
    beats.set()
    thread.join()
    assert said.code == 0 and market.there and "a run lives on" in said.out
    said = launch("reap", "--store", "store")  # now it says nothing any more
    assert said.code == 0 and not market.there


def test_what_has_no_price_is_taken_to_bill_and_what_is_free_is_not(run):
    run.append("over", outcome="stopped", why="")
    run.serve(box(run, per_hour=0.0))
    said = launch("ps", "--store", "store", "--json")
    assert said.code == 3 and len(json.loads(said.out)["billing_for_nothing"]) == 1
    assert "unknown price" in launch("reap", "--store", "store", "-n").out
    market = run.serve(box(run, per_hour=0.0, free=True, state="ended"))
    assert launch("ps", "--store", "store").code == 0
    said = launch("reap", "--store", "store")
    assert said.code == 0 and "destroying" not in said.out and market.there


def test_killing_a_launch_waits_for_a_box_that_was_just_asked_for(tmp_path, corpus, monkeypatch):
    """Whoever asked was killed, and the service does not list it yet."""

    class Late(Market):
        looks = 0

        def boxes(self):
            self.looks += 1
            return super().boxes() if self.looks > 3 else []

    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IGNITE_PACE", "0.02")
    monkeypatch.chdir(tmp_path)
    found = ordered("store", corpus)
    found.append("creating", attempt=1, offer={"per_hour": 0.3})
    market = Late(box(found))
    monkeypatch.setattr(targets, "connect", lambda *_, **__: market)
    said = launch("stop", found.name, "--now", "--store", "store")
    assert said.code == 0 and not market.there, said.err
