"""float16: small gradients survive, an overflow costs a step and nothing else."""

from dataclasses import replace

import pytest
import torch
from test_trainer import SHAPE, TRAIN, copied_state, losses, trainer

from model import scaler as scaler_module
from model.scaler import Scaler

INFINITE, FINE = torch.tensor(float("inf")), torch.tensor(1.0)


def in_float16(train=TRAIN, shape=SHAPE, **options):
    return trainer(train, shape, dtype=torch.float16, **options)


def test_the_factor_halves_at_once_and_doubles_after_a_while(monkeypatch):
    monkeypatch.setattr(scaler_module, "PATIENCE", 3)
    scaler = Scaler()
    start = scaler.factor
    assert not scaler.finite(INFINITE)
    assert not scaler.finite(torch.tensor(float("nan")))
    assert (scaler.factor, scaler.skipped) == (start / 4, 2)
    assert [scaler.finite(FINE) for _ in range(3)] == [True] * 3
    assert scaler.factor == start / 2
    assert not scaler.finite(INFINITE)
    assert [scaler.finite(FINE) for _ in range(2)] == [True] * 2
    assert scaler.factor == start / 4  # the count began anew


def test_the_factor_stays_within_bounds(monkeypatch):
    monkeypatch.setattr(scaler_module, "PATIENCE", 1)
    scaler = Scaler()
    for _ in range(60):
        scaler.finite(INFINITE)
    assert scaler.factor == 1.0
    for _ in range(60):
        scaler.finite(FINE)
    assert scaler.factor == scaler_module.LARGEST


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float16_learns_as_float32_does(optimizer):
    train = replace(TRAIN, optimizer=optimizer, steps=30)
    exact, rough = losses(trainer(train), 30), losses(in_float16(train), 30)
    assert rough == pytest.approx(exact, abs=0.02)
    assert exact[-1] < exact[0] - 0.5


def test_gradients_that_float16_cannot_hold_are_kept():
    """Without the factor the way back loses what is below 6e-8."""
    run, lost = in_float16(), in_float16()
    lost.scaler.factor = 2.0**-16
    for each in (run, lost):
        each.model.zero_grad()
        each._backward(0, 8)
    exact = trainer()
    exact._backward(0, 8)
    name = "blocks.0.feed_forward.up.weight"

    def distance(each):
        gradient = each.model.get_parameter(name).grad / (
            each.scaler.factor if each is not exact else 1.0
        )
        true = exact.model.get_parameter(name).grad
        return ((gradient - true).norm() / true.norm()).item()

    assert distance(run) < 0.02 < 0.3 < distance(lost)


def test_an_overflow_costs_its_step_and_nothing_else():
    run = in_float16()
    losses(run, 3)
    before = copied_state(run)
    run.scaler.factor = 2.0**60  # more than float16 can hold
    report = run.run_step()
    after = run.state()
    assert (run.scaler.skipped, int(after["step"])) == (1, 4)
    assert report.loss > 0
    weights = [name for name in before if name not in ("step", "scaler")]
    assert all(torch.equal(before[name], after[name]) for name in weights)
    for _ in range(60):
        run.run_step()
        if run.scaler.quiet:
            break
    assert not torch.equal(before["model.embedding.weight"], run.state()["model.embedding.weight"])


def test_a_resumed_run_has_the_same_factor_and_the_same_bits():
    shape = replace(SHAPE, dropout=0.1)
    straight = in_float16(shape=shape, micro_batch=3)
    straight.scaler.factor = 2.0**60
    expected = losses(straight, 14)
    before = in_float16(shape=shape, micro_batch=3)
    before.scaler.factor = 2.0**60
    losses(before, 6)
    after = in_float16(shape=shape, micro_batch=3, start_seed=99)
    after.load(copied_state(before))
    assert after.scaler.factor == before.scaler.factor
    assert losses(after, 8) == expected[6:]
    final, resumed = straight.state(), after.state()
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_muon_multiplies_in_what_the_run_computes_in_but_never_in_float16():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        run = trainer(replace(TRAIN, optimizer="muon"), dtype=dtype)
        run.run_step()
        narrow = dtype == torch.bfloat16
        assert run.optimizers["muon"].dtype == (dtype if narrow else torch.float32)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_changes_its_precision_at_a_checkpoint(optimizer):
    """float32, float16, bfloat16, float32: one curve, without a jump."""
    train = replace(TRAIN, steps=40, optimizer=optimizer)
    exact = losses(trainer(train), 40)
    seen, state = [], None
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float32):
        run = trainer(train, dtype=dtype)
        if state is not None:
            run.load(state)
        seen += losses(run, 10)
        state = copied_state(run)
    assert seen == pytest.approx(exact, abs=0.03)
