"""``kill -9`` at every step of a run with all that a run can have: the same bits at its end."""

import hashlib
import importlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch
from pipelines import MACHINE, digests, run, toy_engine, write_corpus

from model.trainer import Trainer
from pipeline.loop import Loop

STEPS = 20
# dropout, two micro-batches a step, a mean of the weights, and (below) float16 with its scaler
SETTINGS = (f"train.steps={STEPS}", "model.dropout=0.2", "train.ema=0.9", "train.eval_every=7")


def start(store: Path, corpus: Path, told: Path, dies_after: int = 0) -> int:
    """A fork that trains, and kills itself when that step is done and not yet saved."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train_in_float16()
            tell_the_final_state(told)
            if dies_after:
                die_after(dies_after)
            machine = replace(MACHINE, micro_batch=2, checkpoint_steps=3)
            run(toy_engine(store, corpus, *SETTINGS), machine=machine)
            code = 0
        finally:
            os._exit(code)
    return child


def train_in_float16() -> None:
    """No user may on a CPU, where it is slow; the scaler starts so high that steps are skipped."""
    stage = importlib.import_module("pipeline.stages.train")
    stage.resolve_precision = lambda name, device: torch.float16
    importlib.import_module("model.scaler").START = 2.0**40


def tell_the_final_state(path: Path) -> None:
    finish = Loop._finish

    def told(loop: Loop):
        whole = hashlib.sha256()
        for name, tensor in sorted(loop._state().items()):
            whole.update(name.encode() + tensor.contiguous().numpy().tobytes())
        path.write_text(f"{whole.hexdigest()} {loop.trainer.scaler.skipped}")
        return finish(loop)

    Loop._finish = told


def die_after(step: int) -> None:
    run_step = Trainer.run_step

    def then_die(trainer: Trainer):
        report = run_step(trainer)
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return report

    Trainer.run_step = then_die


def test_killed_at_every_step(tmp_path):
    importlib.import_module("pipeline.stages.train")
    corpus = write_corpus(tmp_path / "text.txt")
    told = tmp_path / "told"
    assert os.waitpid(start(tmp_path / "whole", corpus, told), 0)[1] == 0
    expected = told.read_text()
    assert int(expected.split()[1]) > 5, "steps were skipped"
    files = digests(toy_engine(tmp_path / "whole", corpus, *SETTINGS))
    told.unlink()
    store = tmp_path / "store"
    for step in range(1, STEPS + 1):
        assert os.waitpid(start(store, corpus, told, step), 0)[1] == signal.SIGKILL, step
    assert not told.exists()
    assert os.waitpid(start(store, corpus, told), 0)[1] == 0
    assert told.read_text() == expected
    assert digests(toy_engine(store, corpus, *SETTINGS)) == files
