"""The two small layers that everything else is made of: a matrix product and a norm.

Both keep their weights in float32 and compute in the type of what flows in. That is all there is
to mixed precision here: no autocast decides behind one's back, the residual stream stays float32
(see ``GPT.compiled`` for where it does not), and a norm's output type (see ``Norm``) is where each
branch goes down to bfloat16.

Shape suffixes, here and in every file of this folder: B batch, T time (tokens), D width,
H heads, K head size, F feed-forward width, V vocabulary. Then N what was put together (tokens of
all texts, heads of all texts, heads of queries, keys and values), S a slice of tokens or of the
past, P the places of dropout, O and I outputs and inputs of any layer; numbers are as they are.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """``y = x W^T + b`` with W of shape [outputs, inputs], computed in x's type."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and x.dtype == torch.float32 and x.shape[:-1].numel() >= 256 and _on_amd():
            return convolved(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


@cache
def _on_amd() -> bool:
    """Is this an AMD processor under Linux? A rule, not a trial: restarts must compute alike."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "AuthenticAMD" in words and torch.backends.mkldnn.is_available()


def convolved(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """``F.linear`` of many rows as a convolution of one pixel each, for float32 on AMD.

    Torch gives float32 products to MKL and convolutions to oneDNN. On one of AMD's cores the two
    are as fast (MKL by a few percent), but MKL shares work out less well: bench/linear.py.
    """
    return _Convolved.apply(x.flatten(0, -2), weight_OD, bias_O).view(*x.shape[:-1], -1)


class _Convolved(torch.autograd.Function):
    """Convolutions for y and dx; their dW is slow, above all without AVX-512, so MKL has it."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_ND: Tensor,
        weight_OD: Tensor,
        bias_O: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x_ND, weight_OD)
        ctx.biased = bias_O is not None
        return _pixels(x_ND, weight_OD, bias_O)

    @staticmethod
    def backward(ctx, dy_NO: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_ND, weight_OD = ctx.saved_tensors
        dx_ND = _pixels(dy_NO, weight_OD.mT)
        return dx_ND, dy_NO.mT @ x_ND, dy_NO.sum(0) if ctx.biased else None


def _pixels(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """An image of 1 x N pixels with D channels, which lie together as in x: nothing is copied."""
    image_1D1N = x_ND[None, None].permute(0, 3, 1, 2)
    return F.conv2d(image_1D1N, weight_OD[:, :, None, None], bias_O).permute(0, 2, 3, 1)[0, 0]


class Norm(nn.Module):
    """Bring each vector to unit scale, then stretch every channel by a learned factor.

    ``layernorm`` also subtracts the mean (Ba et al. 2016, arXiv:1607.06450, section 3);
    ``rmsnorm`` does without (Zhang and Sennrich 2019, arXiv:1910.07467, section 4). The statistics
    are float32 whatever comes in: squares of 16-bit numbers overflow or vanish too soon.
    """

    def __init__(self, size: int, kind: str, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias and kind == "layernorm" else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise over the last dimension; the result has type ``dtype``."""
        x = x.float()
        if self.kind == "rmsnorm":
            return F.rms_norm(x, self.weight.shape, self.weight, 1e-5).to(dtype)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5).to(dtype)
