"""A matrix product by convolution is the matrix product, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import layers
from model.layers import Linear, convolved


def found(product, x: Tensor, layer: Linear) -> list[Tensor]:
    inputs = [each.detach().to(x.dtype).requires_grad_() for each in (x, *layer.parameters())]
    y = product(*inputs, *[None] * (3 - len(inputs)))
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y, *torch.autograd.grad(y, inputs, weights.to(y.dtype))]


@pytest.mark.parametrize("shape", [(3, 100, 24), (1, 300, 24), (300, 1, 24), (300, 24), (1, 1, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(24, 40, bias), torch.randn(shape)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    exact = found(F.linear, x.double(), layer)
    for one, other in zip(found(convolved, x, layer), exact, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-4, rtol=1e-5)
    again = (found(convolved, x, layer) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(*again))


def test_it_is_for_many_rows_in_float32_on_amd(monkeypatch) -> None:
    taken = []

    def spied(x: Tensor, *rest: Tensor) -> Tensor:
        taken.append(tuple(x.shape))
        return convolved(x, *rest)

    monkeypatch.setattr(layers, "convolved", spied)
    layer = Linear(8, 8, bias=True)
    torch.nn.init.normal_(layer.weight)
    for amd in (True, False):
        monkeypatch.setattr(layers, "_on_amd", lambda amd=amd: amd)
        layer(torch.randn(2, 128, 8))
        layer(torch.randn(2, 1, 8))
        layer(torch.randn(2, 128, 8).bfloat16())
    assert taken == [(2, 128, 8)]
