"""Of processes that create one name in the same instant, exactly one wins.

Before each round all meet at a barrier and then watch the clock for a common instant: on a disk
that is not exclusive the gap between looking and writing is some microseconds, which random kills,
random starts and the barrier alone (it wakes one after the other) next to never hit.
"""

import json
import multiprocessing
import time

from pipelines import local_store

from pipeline.engine import log
from pipeline.engine.log import Claim
from pipeline.hashing import canonical
from pipeline.store.store import Store

KEY = "k" * 64
ROUNDS, IN_A_ROW, PROCESSES = 200, 5, 4  # who is late for one name may be in time for the next


def entry(number: int, turn: int) -> bytes:
    """What a process wants to write; longer for some, so that a mixture would show."""
    return canonical({"kind": "checkpoint", "by": number, "turn": turn, "fill": "x" * 500 * number})


def creates(store: Store, together, number: int, results) -> None:
    won = []
    for turn in range(ROUNDS * IN_A_ROW):
        if turn % IN_A_ROW == 0:
            together()
        won.append(store.create(log.entry_name(KEY, turn), entry(number, turn)))
    results.put((number, won))


def claims(store: Store, together, number: int, results) -> None:
    """Each claims what it sees to be free, over and over, and marks what it got."""
    won = 0
    together()
    for _ in range(ROUNDS // PROCESSES):
        try:
            claim = Claim.take(store, KEY, log.read(store, KEY), str(number), {})
            won += 1
            claim.append("checkpoint", {"of": str(number)})
        except log.Lost:
            pass
    results.put((number, won))


def race(store: Store, racer) -> dict[int, object]:
    """What each of the processes put into the queue."""
    context = multiprocessing.get_context("fork")
    instant, results = context.Value("d", lock=False), context.Queue()

    def choose_the_instant() -> None:
        instant.value = time.monotonic() + 0.001

    barrier = context.Barrier(PROCESSES, choose_the_instant)

    def together() -> None:
        barrier.wait()
        while time.monotonic() < instant.value:
            pass

    processes = [
        context.Process(target=racer, args=(store, together, number, results))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    told = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return told


def test_of_racing_processes_exactly_one_writes_each_entry(tmp_path):
    store = local_store(tmp_path / "store")
    won = race(store, creates)
    for turn in range(ROUNDS * IN_A_ROW):
        (winner,) = [number for number, wins in won.items() if wins[turn]]
        assert store.read(log.entry_name(KEY, turn)) == entry(winner, turn)
    assert len(store.names(f"log/{KEY}")) == ROUNDS * IN_A_ROW
    assert store.names("tmp") == []


def test_racing_claims_follow_each_other_and_nobody_writes_into_anothers(tmp_path):
    store = local_store(tmp_path / "store")
    won = race(store, claims)
    owners = []
    for position, name in enumerate(store.names(f"log/{KEY}")):
        assert name == f"{position:010d}"
        body = json.loads(store.read(f"log/{KEY}/{name}"))
        if body["kind"] == "claim":
            owners.append(body["owner"])
        else:
            assert body["of"] == owners[-1]
    assert {number: owners.count(str(number)) for number in won} == won
