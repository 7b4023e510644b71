"""Two processes train as one does: the same curves, whoever has too little memory, and in parts.

The processes run once, all their cases in a row (parallel_ranks.py); each test looks at one.
"""

import os
import subprocess
import sys
from dataclasses import replace

import parallel_ranks as ranks
import pytest
import torch
from parallel_ranks import SHARDED, SHORT, SLICED, UNEVEN, curve, trainer
from test_trainer import SHAPE, TRAIN

from model.parallel import Team

CLOSE = 1e-5


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, ranks.__file__]
    both = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment) for rank in (0, 1)
    ]
    try:
        assert [each.wait(timeout=180) for each in both] == [0, 0]
    finally:
        for each in both:
            each.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def close(one, other) -> bool:
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=0, atol=CLOSE)


def test_every_slot_is_somebodys():
    for size in (1, 2, 3, 8):
        for slots in (1, 2, 3, 7, 8, 64):
            team = Team()
            team.size, shares = size, []
            for team.rank in range(size):
                shares.append(team.share(slots))
            assert [begin for begin, _ in shares] == [0, *(end for _, end in shares[:-1])]
            assert shares[-1][1] == slots
            largest = max(end - begin for begin, end in shares)
            assert largest == team.largest_share(slots)
            assert min(end - begin for begin, end in shares) >= slots // size


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_processes_and_slices_do_not_change_the_curve(told, drop):
    """Loss and gradient norm of 50 steps; test_trainer.py has the slices of one process."""
    expected = ranks.sliced(cases=[(32, drop)])[32, drop]
    for case in SLICED:
        for each in told:
            assert case[1] != drop or close(each["sliced"][case], expected), case


def test_both_processes_have_the_same_bits(told):
    one, other = told
    assert one["sliced"] == other["sliced"] and one["uneven"] == other["uneven"]
    states = [each["resumed"]["muon"][4] for each in told]
    assert all(torch.equal(states[0][name], each) for name, each in states[1].items())


@pytest.mark.parametrize("batch", UNEVEN)
def test_a_batch_need_not_be_divisible_nor_have_a_slot_for_everybody(told, batch):
    assert close(told[1]["uneven"][batch], ranks.uneven()[batch])


def test_loss_scaling_decides_alike_everywhere(told):
    (curves, skipped, factor, _), (other, *scaler, _) = (each["scaled"] for each in told)
    alone = ranks.scaled()
    assert skipped > 0 and scaler == [skipped, factor] == list(alone[1:3])
    assert str(curves) == str(other)  # one that overflowed is no number
    assert [loss for loss, _ in curves] == pytest.approx([loss for loss, _ in alone[0]], abs=2e-3)


@pytest.mark.parametrize("case", range(len(SHORT)))
def test_what_one_has_no_memory_for_is_done_again_by_all(told, case):
    for each in told:
        same_curve, same_state, micro_batch, events = each["short"][case]
        assert same_curve and same_state
        assert micro_batch == SHORT[case][2] and events
        assert {step for step, _ in events} == {SHORT[case][1] + 1}
    assert told[0]["short"][case][3] == told[1]["short"][case][3]


def test_all_give_up_what_one_cannot_do(told):
    for rank, words in ((0, "on the device of another process"), (1, "CUDA out of memory")):
        assert "step 1 does not fit into the memory of cpu" in told[rank]["hopeless"]
        assert told[rank]["hopeless"].endswith(f"({words})")


@pytest.mark.parametrize("optimizer", ranks.OPTIMIZERS)
def test_the_same_processes_go_on_with_the_same_bits(told, optimizer):
    for each in told:
        assert each["resumed"][optimizer][:2] == (True, True)


@pytest.mark.parametrize("optimizer", ranks.OPTIMIZERS)
def test_one_process_goes_on_where_two_were(told, optimizer):
    _, _, state, expected, final = told[0]["resumed"][optimizer]
    train, shape = replace(TRAIN, optimizer=optimizer), replace(SHAPE, dropout=0.1)
    run = trainer(None, train, shape, seed=5)
    run.load(state)
    assert close(curve(run, 6), expected)
    ours = run.state()
    assert ours.keys() == final.keys()
    assert all(torch.allclose(ours[name], each, atol=1e-4) for name, each in final.items())


def test_the_least_counts(told):
    assert [each["least"] for each in told] == [4, 4]


# parts of a model


@pytest.mark.parametrize("case", range(len(SHARDED)))
def test_parts_of_a_model_learn_what_replicas_learn(told, case):
    for each in told:
        (expected, state), (seen, parts), *_, looks = each["sharded"][case]
        assert close(seen, expected)
        assert state.keys() == parts.keys()
        for name, value in state.items():
            assert value.shape == parts[name].shape and value.dtype == parts[name].dtype
            assert torch.allclose(value, parts[name], atol=1e-4), name
        assert torch.allclose(*looks, atol=1e-4)


@pytest.mark.parametrize("case", range(len(SHARDED)))
def test_checkpoints_do_not_tell_whether_they_were_in_parts(told, case):
    """Replicas go on from parts and parts from replicas; another six steps, the same curve."""
    for each in told:
        _, _, (replicas, state), (parts, other), _ = each["sharded"][case]
        assert close(replicas, parts)
        assert int(state["step"]) == int(other["step"]) == 12
    optimizer, more, _ = SHARDED[case]
    run = trainer(None, replace(TRAIN, optimizer=optimizer), replace(SHAPE, **more), 2)
    curve(run, 6)
    assert close(curve(run, 6), parts)
