"""Attention a block of queries at a time: what attention written out gives, forwards and back."""

import pytest
import torch
from torch import Tensor

from model.attention import Attention, attention
from model.blockwise import BLOCK, blockwise_attention
from model.config import ModelConfig
from model.embeddings import rotary_table

SHAPES = [(0, 2 * BLOCK), (0, 3 * BLOCK + 5), (0, BLOCK - 1), (0, 1), (7, 1), (BLOCK + 3, 70)]


def inputs(past: int, time: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as they lie in memory there, heads of a token side by side."""
    torch.manual_seed(0)
    lengths = (time, past + time, past + time)
    return [torch.randn(2, length, 3, 8).to(dtype).transpose(1, 2) for length in lengths]


def found(attend, qkv: list[Tensor], past: int) -> list[Tensor]:
    """The output, and the gradients of one function of it."""
    qkv = [x.clone().requires_grad_() for x in qkv]
    y_BHTK = attend(*qkv, past)
    weights_BHTK = torch.randn(y_BHTK.shape, generator=torch.Generator().manual_seed(1))
    return [y_BHTK, *torch.autograd.grad(y_BHTK, qkv, weights_BHTK.to(y_BHTK.dtype))]


@pytest.mark.parametrize(("past", "time"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_attention(past: int, time: int, dtype: torch.dtype) -> None:
    qkv = inputs(past, time, dtype)
    for one, other in zip(found(blockwise_attention, qkv, past), found(attention, qkv, past)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("past", "time"), SHAPES)
def test_in_bfloat16_it_is_as_exact_as_attention(past: int, time: int) -> None:
    qkv = inputs(past, time, torch.bfloat16)
    exact = found(attention, [x.double() for x in qkv], past)

    def errors(attend) -> list[float]:
        pairs = zip(found(attend, qkv, past), exact)
        return [(one.double() - other).norm().item() for one, other in pairs]

    for one, other in zip(errors(blockwise_attention), errors(attention)):
        # sums of keys' gradients are rounded once a block; a difference of two roundings is
        # left where a token sees itself alone and the gradient is zero
        assert one <= 1.5 * other + 0.05


def test_memory_may_hold_anything_before() -> None:
    """Products that overwrite must not read: what is allocated here starts as not-a-number."""
    qkv = inputs(0, 2 * BLOCK + 9, torch.bfloat16)
    first = found(blockwise_attention, qkv, 0)
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with not-a-number
    try:
        again = found(blockwise_attention, qkv, 0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, again))


def test_a_layer_in_bfloat16_takes_it(monkeypatch) -> None:
    layer = Attention(ModelConfig(layers=1, width=32, heads=2, feed_forward=8, context=16))
    torch.nn.init.normal_(layer.qkv.weight)
    rotary = tuple(table.bfloat16() for table in rotary_table(16, 16, 10_000.0))
    taken = []

    def spied(*arguments) -> Tensor:
        taken.append(True)
        return blockwise_attention(*arguments)

    monkeypatch.setattr("model.attention.blockwise_attention", spied)
    layer(torch.randn(2, 16, 32).bfloat16(), rotary)
    assert taken
