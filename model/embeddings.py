"""From token ids to vectors, and from positions to rotations.

What: a table with one row a token, and rotary position encoding (RoPE: Su et al. 2021,
arXiv:2104.09864, section 3.2). Why rotations: turning query and key by an angle proportional to
their position makes their dot product depend on the distance between them alone, costs no
parameters, and needs no learned row for every position. Cost: the table is V x D parameters (most
of a small model that has a large vocabulary); the rotation is a few multiplications per channel.
"""

import torch
from torch import Tensor, nn


class Embedding(nn.Module):
    """One learned vector per token: ids [B, T] -> vectors [B, T, D]."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids_BT, self.weight)


def rotary_table(context: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each of shape [context, head_size].

    Channel pair i turns by ``position * base^(-2i / head_size)``: fast hands for near distances,
    slow hands for far ones. Float64 until the end, because large angles lose float32 digits.
    """
    frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle_TK = torch.arange(context, dtype=torch.float64)[:, None] * frequency
    angle_TK = torch.cat((angle_TK, angle_TK), dim=-1)
    return angle_TK.cos().float(), angle_TK.sin().float()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each channel pair (i, i + K/2) of every head by its position's angle.

    Of x [B, T, H, K] as well, with tables [T, 1, K].

    Pairs are the two halves of a head, as in GPT-NeoX, rather than neighbours, as in the paper:
    the same up to a permutation of channels, and halves are contiguous in memory.
    """
    first, second = x_BHTK.chunk(2, dim=-1)
    cos, sin = cos_TK.chunk(2, dim=-1)[0], sin_TK.chunk(2, dim=-1)[0]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Rotated(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        qkv_BTNK: Tensor,
        heads: int,
        cos_TK: Tensor,
        sin_TK: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.heads = heads
        ctx.save_for_backward(cos_TK, sin_TK)
        turned_BTNK = torch.empty_like(qkv_BTNK[:, :, : 2 * heads])
        _turn(qkv_BTNK[:, :, : 2 * heads], cos_TK, sin_TK, turned_BTNK)
        q_BTHK, k_BTHK = turned_BTNK.split(heads, dim=2)
        return q_BTHK, k_BTHK, qkv_BTNK[:, :, 2 * heads :]

    @staticmethod
    def backward(ctx, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor):
        cos_TK, sin_TK = ctx.saved_tensors
        batch, time, heads, size = v_BTHK.shape
        qkv_BTNK = v_BTHK.new_empty(batch, time, 3 * heads, size)
        parts = qkv_BTNK.split(heads, dim=2)
        for gradient_BTHK, part_BTHK in zip((q_BTHK, k_BTHK), parts):
            _turn(gradient_BTHK, cos_TK, -sin_TK, part_BTHK)
        parts[2].copy_(v_BTHK)
        return qkv_BTNK, None, None, None


def _turn(x_BTNK: Tensor, cos_TK: Tensor, sin_TK: Tensor, out_BTNK: Tensor) -> None:
    """``rotate`` in few passes over memory, whole heads at a time.

    Half a head is too short a row for vectors of 16-bit numbers.
    """
    first, second = x_BTNK.chunk(2, dim=-1)
    crossed_BTNK = torch.cat((-second, first), dim=-1)
    torch.addcmul(x_BTNK * cos_TK[:, None], crossed_BTNK, sin_TK[:, None], out=out_BTNK)


def split_rotated(
    qkv_BTNK: Tensor, heads: int, cos_TK: Tensor, sin_TK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned, values as they are, each [B, T, H, K], of [q | k | v] heads.

    What ``split`` and twice ``rotate`` give, in half as many passes over memory; on the way back
    the three gradients are put together where they belong at once.
    """
    return _Rotated.apply(qkv_BTNK, heads, cos_TK, sin_TK)
