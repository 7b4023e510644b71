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
    # turned by a right angle; all else is a weighted sum of the two
    across_BHTK = torch.cat((-second, first), dim=-1)
    return torch.addcmul(x_BHTK * cos_TK, across_BHTK, sin_TK)
