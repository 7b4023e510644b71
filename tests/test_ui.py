"""What a person sees of a run, in whatever order the engine tells it."""

import io
import itertools
import re
import time
from types import SimpleNamespace

import pytest

from pipeline import ui as ui_module
from pipeline.engine.log import Entry
from pipeline.engine.session import Session
from pipeline.machine import Machine
from pipeline.ui import LiveUi, Ui

STAGE = SimpleNamespace(name="train", summary="find the weights")
OWNER = Entry(0, "claim", {"owner": "elsewhere", "at": "2026-01-01T00:00:00+00:00"})
BEAT = {"done": 380, "total": 400, "unit": "steps", "loss": "3.1"}
CALLS = (
    lambda ui: ui.following("train", OWNER),
    lambda ui: ui.other_progress("train", {}),
    lambda ui: ui.other_progress("train", BEAT),
    lambda ui: ui.progress("train", 5_000_000, None, "B", {"doing": "fetching"}),
    lambda ui: ui.progress("train", 40, 400, "steps", {"loss": "3.1"}),
    lambda ui: ui.stage_started(STAGE, 20),
)


@pytest.fixture(params=[Ui, LiveUi])
def lines(request, monkeypatch):
    """Makes a user interface; what it prints or shows in its bar is appended to ``made``."""
    monkeypatch.setattr(ui_module, "_PLAIN_EVERY", 0.0)

    class Kept(request.param):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.made = io.StringIO(), []

        def line(self, *told) -> str:
            self.made.append(super().line(*told))
            return self.made[-1]

    return Kept


def test_no_order_of_calls_shows_nonsense(lines):
    shown = 0
    for order in itertools.permutations(CALLS, 4):
        ui = lines()
        for call in order:
            call(ui)
        ui.close()
        shown += len(ui.made)
        assert not [line for line in ui.made if re.search(r"nan|inf|-\d", line)], ui.made
    assert shown > 0


def test_the_rate_of_another_counts_from_where_it_is_when_we_come(lines, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ui = lines()
    ui.following("train", OWNER)
    now += 5  # its first beat says nothing yet
    ui.other_progress("train", {})
    now += 5
    ui.other_progress("train", {**BEAT, "done": 300})
    now += 10
    ui.other_progress("train", {**BEAT, "done": 320})
    ui.close()
    assert ui.made[0].startswith("300 of 400 steps, 0.0 steps/s")
    assert ui.made[-1].startswith("320 of 400 steps, 2.0 steps/s, ETA 40.0 s")


def test_each_unit_is_counted_by_itself(lines, monkeypatch):
    """Bytes that were fetched are no steps that were done."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ui = lines()
    for done, unit in ((1 << 20, "B"), (2 << 20, "B"), (100, "steps"), (120, "steps")):
        now += 10
        ui.progress("train", done, None, unit, {})
    ui.close()
    rates = [line.rpartition(", ")[2] for line in ui.made]
    assert rates[1] == "102.4 KiB/s" and rates[3] == "2.0 steps/s"


def test_what_a_stage_fetches_can_be_shown_elsewhere_too():
    shown = []
    session = Session(Machine(), Ui(io.StringIO()), lambda: False)
    report = session.counting(STAGE, lambda *told: shown.append(told))
    report(3)
    report(4)
    assert shown == [(n, None, "B", {"doing": "fetching"}) for n in (3, 7)]
