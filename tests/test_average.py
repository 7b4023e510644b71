"""The running mean of the weights: right, without influence, and part of what is saved."""

from dataclasses import replace

import pytest
import torch
from test_trainer import TRAIN, copied_state, losses, trainer
from torch import nn

from model.average import Average

AVERAGED = replace(TRAIN, ema=0.8)


def test_the_mean_is_that_of_the_formula():
    linear = nn.Linear(2, 1, bias=False)
    average = Average(linear, 0.5)
    expected = linear.weight.detach().clone()
    for step in range(1, 31):
        with torch.no_grad():
            linear.weight.fill_(float(step))
        average.follow()
        decay = min(0.5, step / (step + 10))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.mean["weight"], expected)


def test_it_does_not_change_what_is_trained():
    assert losses(trainer(AVERAGED), 10) == losses(trainer(TRAIN), 10)


def test_the_result_is_the_mean_and_only_while_it_is_looked_at():
    run = trainer(AVERAGED)
    losses(run, 10)
    before = copied_state(run)
    name = "embedding.weight"
    trained, mean = before[f"model.{name}"], before[f"average.mean.{name}"]
    assert not torch.allclose(trained, mean)
    assert torch.equal(run.weights()[name], mean)
    with pytest.raises(KeyError), run.result() as model:
        assert torch.equal(model.get_parameter(name), mean)
        raise KeyError
    assert all(torch.equal(before[key], value) for key, value in run.state().items())


def test_without_one_the_result_are_the_weights():
    run = trainer(TRAIN)
    losses(run, 3)
    assert not [name for name in run.state() if "average" in name]
    with run.result() as model:
        assert model is run.model
    assert run.weights()["embedding.weight"] is run.model.embedding.weight


def test_a_resumed_run_has_the_same_mean():
    straight = trainer(AVERAGED)
    losses(straight, 14)
    before = trainer(AVERAGED)
    losses(before, 6)
    after = trainer(AVERAGED, start_seed=99)
    after.load(copied_state(before))
    losses(after, 8)
    final, resumed = straight.state(), after.state()
    assert final.keys() == resumed.keys()
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_a_skipped_step_is_no_step_of_the_mean():
    run = trainer(AVERAGED, dtype=torch.float16)
    run.scaler.factor = 2.0**60
    before = copied_state(run)
    run.run_step()
    assert run.scaler.skipped == 1
    names = [name for name in before if name.startswith("average")]
    assert all(torch.equal(before[name], run.state()[name]) for name in names)
