"""``kill -9`` at any moment, start again: the same bytes as if nothing had happened."""

import importlib
import os
import random
import signal
import time
from dataclasses import replace

from pipelines import MACHINE, digests, run, toy_engine, write_corpus

from pipeline.stages import STAGES

KILLS = 20
SETTINGS = ("train.steps=40", "train.eval_every=20", "tokenizer.vocab_size=400")


def start(store, corpus) -> int:
    """A process that runs the whole pipeline: a fork, which has imported everything already."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(toy_engine(store, corpus, *SETTINGS), machine=replace(MACHINE, checkpoint_steps=3))
            code = 0
        finally:
            os._exit(code)
    return child


def test_killed_at_random_moments(tmp_path):
    for stage in STAGES:
        importlib.import_module(stage.module)
    seed = 20_260
    print(f"seed {seed}")
    draw = random.Random(seed)
    corpus = write_corpus(tmp_path / "text.txt", words=60_000)
    began = time.monotonic()
    assert os.waitpid(start(tmp_path / "whole", corpus), 0)[1] == 0
    whole_run = time.monotonic() - began
    expected = digests(toy_engine(tmp_path / "whole", corpus, *SETTINGS))
    kills, stores, struck = 0, 0, set()
    while kills < KILLS:
        store = tmp_path / f"store{stores}"
        stores += 1
        engine = toy_engine(store, corpus, *SETTINGS)
        while True:
            child = start(store, corpus)
            time.sleep(draw.uniform(0, whole_run * 0.5))
            os.kill(child, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break  # it was faster
            kills += 1
            struck.add(next((p.stage.name for p in engine.plan() if p.result is None), "end"))
            if kills >= KILLS:
                assert os.waitpid(start(store, corpus), 0)[1] == 0
                break
        assert digests(engine) == expected, f"after {kills} kills, the last in {struck}"
    print(f"{kills} kills over {stores} runs, in the stages {sorted(struck)}")
    assert len(struck) >= 3
