"""A store that takes requests and does not answer: what is said, and how soon a run can end."""

import json
import os
import re
import signal
import threading
import time

import pytest
from commands import TOY, pipeline
from pipelines import write_corpus
from servers import forwarded, s3_environment, web

from pipeline.engine import courier, work
from pipeline.engine.courier import Checkpoint, Courier
from pipeline.errors import StoreAway
from pipeline.store import remote
from pipeline.store.places import open_store
from pipeline.store.remote import Remote

SLOW = (*TOY, "--set", "train.steps=4000", "--set", "train.eval_every=1000")


class Silent:
    """In front of a server: once ``hushed``, ``chosen`` requests get no answer for 20 s."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.chosen = endpoint, lambda request: True
        self.hushed, self.over = threading.Event(), threading.Event()

    def answer(self, request):
        if self.hushed.is_set() and self.chosen(request):
            self.over.wait(20)
        return forwarded(request, self.endpoint)


@pytest.fixture
def silent(endpoint, monkeypatch, tmp_path):
    made = Silent(endpoint)
    with web(made.answer) as proxy:
        for name, value in s3_environment(proxy).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
        yield made
        made.over.set()


def test_a_run_that_is_asked_to_stop_gives_up_soon(silent, tmp_path, monkeypatch):
    """Whatever it waits for: the checkpoint, the release of its claim, the end of its beat."""
    monkeypatch.setattr(courier, "AWAY_WITHIN", 1.5)
    monkeypatch.setattr(work, "_LAST_TRY", 0.2)
    url, text = f"s3://runs/{tmp_path.name}", write_corpus(tmp_path / "text.txt")
    asked = []

    def stop() -> None:
        store = open_store(url)
        while not any(b'"kind":"checkpoint"' in entry for entry in entries(store)):
            time.sleep(0.1)
        silent.hushed.set()
        time.sleep(0.3)
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop)
    watcher.start()
    told = pipeline("run", "--store", url, "--data", text, *SLOW)
    took = time.monotonic() - asked[0]
    watcher.join()
    assert told.code == 75, told.err
    assert 1.5 <= took < 5.0
    step = re.search(r"stopped: checkpoint written at step (\d+)", told.err)[1]
    assert f"train: sending the checkpoint of step {int(step):,} to {url}; it stays" in told.out
    assert f"the checkpoint of step {int(step):,} could not be sent" in told.out
    assert "Training goes on" not in told.out
    [unsent] = (tmp_path / "cache").glob("*/unsent/*")
    assert json.loads(unsent.read_bytes())["step"] == int(step)


def entries(store) -> list[bytes]:
    read = store.records.read
    return [
        read(f"log/{key}/{at}") for key in store.names("log") for at in store.names(f"log/{key}")
    ]


def test_whoever_looks_hears_that_no_answer_comes(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_SLOW", 0.3)
    url = f"s3://runs/{tmp_path.name}"
    silent.hushed.set()
    threading.Timer(1.5, silent.over.set).start()
    told = pipeline("status", "--store", url)
    assert told.code == 0, told.err
    assert told.err.count(f"waiting for an answer from {url}") == 1


def test_a_call_under_way_ends_soon_after_the_request_to_stop(silent):
    place, stopping, notes = Remote("s3://runs/here"), threading.Event(), []
    assert place.read("nothing") is None
    place.attend(notes.append, stopping.is_set, 0.5)
    silent.hushed.set()
    threading.Timer(1.0, stopping.set).start()
    start = time.monotonic()
    with pytest.raises(StoreAway, match="no answer for 0 seconds"):
        place.read("nothing")
    assert 1.5 <= time.monotonic() - start < 3.5
    start = time.monotonic()
    with pytest.raises(StoreAway):  # once given up, nothing is waited for
        place.create("entry", b"")
    assert time.monotonic() - start < 0.2 and notes == []


def test_a_place_that_answers_others_is_waited_for(silent):
    """One request may take long, while a large file is on its way."""
    place = Remote("s3://runs/here")
    place.replace("slow", b"at last")
    place.attend(lambda text: None, lambda: True, 0.8)
    silent.chosen = lambda request: request.path.endswith("/slow")
    silent.hushed.set()
    threading.Timer(2.5, silent.over.set).start()
    found = []
    reader = threading.Thread(target=lambda: found.append(place.read("slow")))
    reader.start()
    while reader.is_alive():
        place.replace("beat", b"")
        time.sleep(0.2)
    assert found == [b"at last"]


def test_what_moves_is_sent_although_the_store_was_away(tmp_path, monkeypatch):
    monkeypatch.setattr(courier, "AWAY_WITHIN", 0.5)
    monkeypatch.setattr(courier, "_RETRY", 0.01)
    attempts = []

    def carry(_: Checkpoint) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise StoreAway("the store is away")
        for _ in range(20):
            time.sleep(0.05)
            sender.report(1)

    notes: list[str] = []
    sender = Courier(carry, notes.append)
    (tmp_path / "checkpoint").mkdir()
    sender.submit(Checkpoint(1, 0.0, tmp_path / "checkpoint"))
    assert sender.finish(lambda step, sent: None) is None
    sender.cancel()
    assert notes[-1] == "the store is back and has step 1"
