"""What only a GPU can show of memory: skipped where there is none, and so seldom run."""

from dataclasses import replace

import pytest
import torch

from model.batches import Batches
from model.config import ModelConfig, TrainConfig
from model.gpt import GPT
from model.trainer import Trainer
from pipeline.fit import fit
from pipeline.machine import Machine, resolve_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
VOCAB = 512
SHAPE = ModelConfig(layers=4, width=256, heads=4, feed_forward=1024, context=512, dropout=0.1)
TRAIN = TrainConfig(steps=20, batch=32, lr=1e-3)


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path))
    tokens = torch.randint(VOCAB, (40_000,), generator=torch.Generator().manual_seed(1)).numpy()

    def make(micro_batch: int = 32, shape: ModelConfig = SHAPE) -> Trainer:
        batches = Batches(tokens, shape.context, TRAIN.batch, TRAIN.seed)
        device = torch.device("cuda")
        model = GPT(shape, VOCAB)
        model.compute_dtype = resolve_precision("auto", device)  # older cards lack bfloat16
        return Trainer(model, TRAIN, batches, micro_batch=micro_batch, device=device)

    yield make
    torch.cuda.set_per_process_memory_fraction(1.0)


def limit(size: int) -> None:
    """Let torch have no more than so many bytes beside what it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)


def test_a_step_does_not_wait_for_the_device(trainer):
    run = trainer()
    run.run_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        report = run.run_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < report.loss < 10
    torch.cuda._sleep(1 << 32)  # seconds
    run.run_step()
    assert not torch.cuda.current_stream().query(), "something that torch does not know of waited"


def test_a_step_is_read_without_waiting_for_what_was_asked_since(trainer):
    run = trainer()
    report = run.run_step()
    torch.cuda._sleep(1 << 32)  # seconds
    assert 0 < report.loss < 10 and report.gradient_norm > 0
    assert not torch.cuda.current_stream().query(), "it waited for the device"


def test_recomputing_changes_no_bit(trainer):
    shape = replace(SHAPE, attention_dropout=0.1)
    kept, recomputed = trainer(8, shape), trainer(8, shape)
    recomputed.model.recompute = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for run in (kept, recomputed):
            run.run_step()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(kept.model.parameters(), recomputed.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_what_was_found_is_run_without_running_out(trainer):
    run = trainer()
    fit(run, Machine())
    run.run_step()
    assert run.micro_batch == 32 and not run.model.recompute
    assert run.events == []


def test_a_step_that_runs_out_is_done_in_smaller_slices(trainer):
    run = trainer()
    run.run_step()  # the optimizer's step has had its memory once
    limit(300 << 20)
    report = run.run_step()
    assert run.events and run.micro_batch < 32
    assert report.step == 2 and 0 < report.loss < 10
