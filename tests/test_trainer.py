"""The loop: slicing changes nothing, stopping changes nothing, and the loss falls."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import noisy_text

from model.batches import Batches
from model.config import ModelConfig, TrainConfig
from model.gpt import GPT
from model.trainer import Trainer, build_optimizers

VOCAB = 11
SHAPE = ModelConfig(layers=2, width=16, heads=2, feed_forward=32, context=8)
TRAIN = TrainConfig(steps=20, batch=8, lr=1e-2, warmup=3, seed=1)


def trainer(
    train: TrainConfig = TRAIN,
    shape: ModelConfig = SHAPE,
    micro_batch: int = 8,
    start_seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Trainer:
    model = GPT(shape, VOCAB, start_seed)
    model.compute_dtype = dtype
    return Trainer(
        model,
        train,
        Batches(noisy_text(600, VOCAB), shape.context, train.batch, train.seed),
        micro_batch=micro_batch,
        device=torch.device("cpu"),
    )


def losses(run: Trainer, steps: int) -> list[float]:
    return [run.run_step().loss for _ in range(steps)]


def copied_state(run: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.state().items()}


# --- slicing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8, 100])
def test_slicing_does_not_change_the_losses(
    micro_batch: int, optimizer: str, dropout: float
) -> None:
    train = replace(TRAIN, optimizer=optimizer, batch=32, steps=50)
    shape = replace(SHAPE, dropout=dropout)
    whole = losses(trainer(train, shape, micro_batch=32), 50)
    sliced = losses(trainer(train, shape, micro_batch=micro_batch), 50)
    assert sliced == pytest.approx(whole, abs=1e-5)


def test_the_loss_is_the_mean_over_the_tokens_of_the_batch() -> None:
    run = trainer(micro_batch=3)
    inputs, targets = (torch.from_numpy(rows) for rows in run.batches.slice(0, 0, 8))
    mean = run.model.loss(inputs, targets).item() / (8 * 8)
    assert run.run_step().loss == pytest.approx(mean, rel=1e-6)


# --- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_with_the_same_bits(optimizer: str, dropout: float) -> None:
    train, shape = replace(TRAIN, optimizer=optimizer), replace(SHAPE, dropout=dropout)
    straight = trainer(train, shape, micro_batch=3)
    expected = losses(straight, 14)
    before = trainer(train, shape, micro_batch=3)
    losses(before, 6)
    # another machine: other starting weights, another state of torch's random numbers
    after = trainer(train, shape, micro_batch=3, start_seed=99)
    torch.manual_seed(12345)
    after.load(copied_state(before))
    assert losses(after, 8) == expected[6:]
    final, resumed = straight.state(), after.state()
    assert final.keys() == resumed.keys()
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_two_runs_of_one_seed_are_the_same_run() -> None:
    shape = replace(SHAPE, dropout=0.1)
    assert losses(trainer(shape=shape), 5) == losses(trainer(shape=shape), 5)


def test_dropout_draws_new_masks_each_step() -> None:
    # one window, no learning: all that differs between the steps are the masks
    shape = replace(SHAPE, dropout=0.5)
    train = replace(TRAIN, batch=1, lr=1e-30, weight_decay=0.0)
    run = trainer(train, shape)
    run.batches = Batches(np.arange(9) % VOCAB, 8, 1, seed=0)
    assert len(set(losses(run, 4))) == 4


def test_the_state_holds_the_step_and_every_weight() -> None:
    run = trainer()
    losses(run, 3)
    state = run.state()
    assert int(state["step"]) == 3
    assert {f"model.{name}" for name, _ in run.model.named_parameters()} <= state.keys()


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls_to_what_the_text_allows(optimizer: str) -> None:
    # the noise is one bit a token, so no model can do better than ln 2
    train = replace(TRAIN, steps=80, batch=16, optimizer=optimizer)
    seen = losses(trainer(train, micro_batch=16), 80)
    assert seen[0] == pytest.approx(math.log(VOCAB), abs=0.1)
    assert math.log(2) * 0.9 < seen[-1] < 1.2 * math.log(2)


def test_a_report_may_be_read_late() -> None:
    soon, late = trainer(), trainer()
    expected = [
        (report.loss, report.gradient_norm) for report in (soon.run_step(), soon.run_step())
    ]
    reports = [late.run_step(), late.run_step()]
    assert [(report.loss, report.gradient_norm) for report in reports] == expected


def test_reports_count_steps_and_tell_the_rate() -> None:
    run = trainer()
    reports = [run.run_step() for _ in range(4)]
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert [report.lr for report in reports[:3]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])


def test_a_share_of_the_rate_moves_weights_less() -> None:
    full, half = trainer(), trainer()
    half.lr_factor = 0.5
    start = full.model.embedding.weight.detach().clone()
    reports = full.run_step(), half.run_step()
    assert reports[1].lr == reports[0].lr / 2
    moved = [(run.model.embedding.weight - start).norm().item() for run in (full, half)]
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_moves(optimizer: str) -> None:
    train = replace(TRAIN, optimizer=optimizer)
    run = trainer(train)
    owned = [name for o in build_optimizers(run.model, train).values() for name in o.parameters]
    assert sorted(owned) == sorted(name for name, _ in run.model.named_parameters())
    before = copied_state(run)
    losses(run, 2)
    after = run.state()
    assert not [
        name for name in owned if torch.equal(before[f"model.{name}"], after[f"model.{name}"])
    ]


# --- clipping ------------------------------------------------------------------------------------


def gradient_norm(run: Trainer) -> float:
    gradients = [p.grad.flatten() for p in run.model.parameters()]
    return torch.linalg.vector_norm(torch.cat(gradients)).item()


def test_clipping_bounds_the_norm_and_reports_the_one_before() -> None:
    free = trainer(replace(TRAIN, clip=0.0))
    norm = free.run_step().gradient_norm
    assert gradient_norm(free) == pytest.approx(norm, rel=1e-5)
    clipped = trainer(replace(TRAIN, clip=norm / 4))
    assert clipped.run_step().gradient_norm == pytest.approx(norm, rel=1e-5)
    assert gradient_norm(clipped) == pytest.approx(norm / 4, rel=1e-4)


def test_clipping_leaves_small_gradients_alone() -> None:
    free, clipped = trainer(replace(TRAIN, clip=0.0)), trainer(replace(TRAIN, clip=1e6))
    free.run_step()
    clipped.run_step()
    for one, other in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
