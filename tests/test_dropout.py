"""Dropout's masks: right on average, and the same for a sample however a batch is cut."""

import pytest
import torch

from model.config import ModelConfig
from model.dropout import Masks
from model.gpt import GPT

CPU = torch.device("cpu")
SHAPE = (5, 64, 48)


def draw(keys, p=0.1, dtype=torch.float32, shape=SHAPE):
    return Masks.draw(keys, shape, p, dtype, CPU)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_so_many_are_dropped_and_the_others_make_up_for_it(p):
    masks = draw(range(20), p)
    kept = masks.keep_PBTD
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    numbers = kept.numel()
    # 4 standard deviations of a binomial share; the seeds are fixed
    assert abs(kept.mean().item() - (1 - p)) < 4 * (p * (1 - p) / numbers) ** 0.5 + 2**-16
    assert masks.scale == pytest.approx(1 / (1 - p), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_has_its_masks_wherever_it_stands(dtype):
    together = draw([7, 8, 9], dtype=dtype).keep_PBTD
    for at, key in enumerate((7, 8, 9)):
        assert torch.equal(together[:, at], draw([key], dtype=dtype).keep_PBTD[:, 0])
    assert torch.equal(together, draw([7, 8, 9], dtype=torch.float32).keep_PBTD.to(dtype))


def test_no_two_samples_parts_or_positions_share_a_mask():
    kept = draw([1, 2], 0.5).keep_PBTD
    rows = kept.flatten(0, 2)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    # neighbours in the stream of random bits are independent: half of them agree
    flat = draw([3], 0.5).keep_PBTD.flatten()
    for lag in (1, 2, 3, 4, 8):
        agree = (flat[lag:] == flat[:-lag]).double().mean().item()
        assert abs(agree - 0.5) < 4 * 0.5 / (len(flat) - lag) ** 0.5


def test_a_size_that_is_no_multiple_of_four():
    assert draw([1, 2, 3], shape=(1, 1, 3)).keep_PBTD.shape == (1, 3, 1, 3)


def test_what_is_dropped_is_as_the_formula_says():
    masks = draw([1, 2], 0.3)
    x_BTD, branch_BTD = torch.randn(2, 2, 64, 48)
    kept = masks.keep_PBTD[2] * masks.scale
    torch.testing.assert_close(masks.drop(2, x_BTD), x_BTD * kept)
    torch.testing.assert_close(masks.add(2, x_BTD, branch_BTD), x_BTD + branch_BTD * kept)
    rough = draw([1, 2], 0.3, torch.bfloat16).add(2, x_BTD, branch_BTD.bfloat16())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, x_BTD + branch_BTD.bfloat16().float() * kept)


def test_the_model_drops_what_the_masks_say_and_nothing_without():
    config = ModelConfig(2, 32, 2, 64, 16, dropout=0.5)
    model = GPT(config, 50)
    ids_BT = torch.arange(24).view(2, 12)
    plain = model.loss(ids_BT, ids_BT)
    assert torch.equal(plain, model.train().loss(ids_BT, ids_BT))
    masks = model.masks([1, 2], 12)
    assert masks.keep_PBTD.shape == (5, 2, 12, 32)
    dropped = model.loss(ids_BT, ids_BT, masks)
    assert dropped != plain
    assert torch.equal(dropped, model.loss(ids_BT, ids_BT, model.masks([1, 2], 12)))
    assert dropped != model.loss(ids_BT, ids_BT, model.masks([2, 1], 12))
    assert GPT(ModelConfig(2, 32, 2, 64, 16), 50).masks([1], 12) is None
