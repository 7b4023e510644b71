"""``kill -9`` at any moment, start again: the same bytes as if nothing had happened."""

import importlib
import os
import random
import signal
import sys
import time
from dataclasses import replace

from pipelines import MACHINE, digests, run, toy_engine, write_corpus

from pipeline.engine.log import Claim
from pipeline.stages import STAGES

KILLS = 20
SETTINGS = ("train.steps=40", "train.eval_every=20", "tokenizer.vocab_size=400")


def start(store, corpus, dies_at: str = "", acts: int = 0) -> int:
    """A process that runs the whole pipeline: a fork, which has imported everything already.

    With ``dies_at`` it kills itself when all files of that stage are published and its result is
    about to be appended: the last instant at which work can be lost. With ``acts`` it does so
    when it is about to do that many things to files.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if dies_at:
                die_before_the_result_of(dies_at)
            if acts:
                die_after(acts)
            run(toy_engine(store, corpus, *SETTINGS), machine=replace(MACHINE, checkpoint_steps=3))
            code = 0
        finally:
            os._exit(code)
    return child


def die_before_the_result_of(stage: str) -> None:
    module = importlib.import_module(f"pipeline.stages.{stage}")
    ran, appended, finished = module.run, Claim.append, []

    def run_it(context):
        metrics = ran(context)
        finished.append(stage)
        return metrics

    def append(claim, kind, body):
        if kind == "result" and finished:
            os.kill(os.getpid(), signal.SIGKILL)
        return appended(claim, kind, body)

    module.run, Claim.append = run_it, append


def die_after(acts: int) -> None:
    """Opening, naming, linking, removing: whatever changes what others see goes with one."""
    left = acts

    def count(event: str, _):
        nonlocal left
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def test_killed_between_the_bytes_and_the_result_of_every_stage(tmp_path):
    import_stages()
    corpus = write_corpus(tmp_path / "text.txt")
    assert os.waitpid(start(tmp_path / "whole", corpus), 0)[1] == 0
    expected = digests(toy_engine(tmp_path / "whole", corpus, *SETTINGS))
    store = tmp_path / "store"
    for stage in STAGES:
        assert os.waitpid(start(store, corpus, stage.name), 0)[1] == signal.SIGKILL
        engine = toy_engine(store, corpus, *SETTINGS)
        unfinished = next(item for item in engine.plan() if item.result is None)
        assert unfinished.stage is stage
    assert os.waitpid(start(store, corpus), 0)[1] == 0
    assert digests(engine) == expected


def import_stages() -> None:
    for stage in STAGES:
        importlib.import_module(stage.module)


def test_killed_at_random_moments(tmp_path):
    """Moments of time, and moments between two acts: those do not depend on how busy it is here."""
    import_stages()
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
        while kills < KILLS:
            acts = draw.randint(1, 150) if draw.random() < 0.7 else 0
            child = start(store, corpus, acts=acts)
            if not acts:
                time.sleep(draw.uniform(0, whole_run * 0.5))
                os.kill(child, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break  # it was faster
            kills += 1
            struck.add(next((p.stage.name for p in engine.plan() if p.result is None), "end"))
        assert os.waitpid(start(store, corpus), 0)[1] == 0
        assert digests(engine) == expected, f"after {kills} kills, the last in {struck}"
    print(f"{kills} kills over {stores} runs, in the stages {sorted(struck)}")
    assert len(struck) >= 3
