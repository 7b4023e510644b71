"""The two small layers that everything else is made of: a matrix product and a norm.

Both keep their weights in float32 and compute in the type of what flows in. That is all there is
to mixed precision here: no autocast decides behind one's back, the residual stream stays float32,
and a norm's output type (see ``Norm``) is where each branch goes down to bfloat16.

Shape suffixes, here and in every file of this folder: B batch, T time (tokens), D width,
H heads, K head size, F feed-forward width, V vocabulary.
"""

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
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


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
