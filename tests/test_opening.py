"""What is said before the first step: what computes, and which GPUs do not."""

from dataclasses import replace

import pytest
import torch
from test_trainer import SHAPE, TRAIN, trainer

from model.parallel import Team
from model.trainer import Trainer
from pipeline import opening as looks
from pipeline.hardware import Gpu, Torch
from pipeline.machine import Machine
from pipeline.opening import opening
from pipeline.recipe import MANY
from pipeline.stages import train as stage

MUCH = TRAIN.steps * TRAIN.batch * SHAPE.context


class Two(Team):
    size = 2


@pytest.fixture
def on_gpu(monkeypatch):
    """A trainer that thinks it is on the first of two cards."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test Card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = trainer(dtype=torch.bfloat16)
    run.device, run.model.compiled = torch.device("cuda"), True
    return run


def told(run: Trainer, tokens: int = MUCH, validation: int = MUCH, **asked) -> list[str]:
    return list(opening(run, Machine(**asked), tokens, validation))


def test_a_validation_split_that_means_nothing():
    (line,) = told(trainer(), device="cpu", validation=999)[1:]
    assert line.startswith("the validation split has 999 tokens: too few")


def test_more_at_once_than_there_is():
    (line,) = told(trainer(), device="cpu", micro_batch=1000)[1:]
    assert line.startswith("--micro-batch 1,000 is more than there is to do at once: ")


def test_on_a_cpu():
    run = trainer(micro_batch=4)
    assert told(run, device="cpu") == ["computing on the CPU, 1 thread, float32, micro-batch 4"]


def test_on_one_gpu_of_two(on_gpu):
    first = "computing on Test Card, bfloat16, compiled, micro-batch 8"
    unused = "torch sees 2 GPUs, and 1 trains: --processes auto takes all"
    assert told(on_gpu) == [first, unused]
    assert told(on_gpu, device="cuda:0") == [first]
    on_gpu.team, on_gpu.model.recompute = Two(), True
    words = (
        "computing on 2 x Test Card, bfloat16, compiled, micro-batch 8, activation checkpointing"
    )
    assert told(on_gpu) == [words]


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(looks, "ask_torch", lambda device: Torch("2.13.0+cpu"))
    monkeypatch.setattr(looks, "ask_gpu", lambda: Gpu(True, "580.65.06"))
    run = trainer()
    (_, line) = told(run)
    assert "a GPU with NVIDIA driver 580.65.06" in line
    assert "torch 2.13.0+cpu computes on the CPU alone" in line and "/whl/cu130" in line
    assert len(told(run, device="cpu")) == 1, "who asks for the CPU knows"
    monkeypatch.setattr(looks, "ask_gpu", Gpu)
    assert len(told(run)) == 1


def test_a_text_that_is_read_very_often():
    run = trainer()
    assert len(told(run, 2 * MUCH // MANY, device="cpu")) == 1
    line = told(run, MUCH // 64, device="cpu")[1]
    assert "read 64 times" in line and "may learn them by heart" in line


def test_weights_that_do_not_fit_are_answered_with_what_would_help(monkeypatch, tmp_path):
    from pipelines import MACHINE, run, toy_engine, write_corpus

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage, "build", full)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test Card")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 << 30)
    engine = toy_engine(tmp_path / "store", write_corpus(tmp_path / "text.txt"))
    for total, others in ((8, ": "), (16, r" \(8\.0 GiB are in use by others: nvidia-smi")):
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device, at=total: (1 << 30, at << 30)
        )
        with pytest.raises(ValueError, match=rf"for the {total}\.0 GiB of Test Card{others}"):
            run(engine, "train", replace(MACHINE, device="cpu"))
