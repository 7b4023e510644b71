"""Causal attention a block of queries at a time, for bfloat16 on a CPU.

What: ``attention`` of model/attention.py with its gradient written by hand. Why: half of the square
of scores is masked, and a block of queries needs no key behind its last one: with blocks of 64 and
256 tokens three eighths of the square are never computed. Torch's own kernel skips them too, but
multiplies bfloat16 slowly. Cost: bench/attention.py; kept for the way back are the weights, a good
half of T^2 numbers a head.

Scores stand on their side here, keys down and queries across. oneDNN, which multiplies for torch,
then gets the weights as they lie in memory where they are most of the work: on the way back.
"""

import math

import torch
from torch import Tensor

BLOCK = 64  # queries; smaller blocks skip more, larger ones multiply faster


def blockwise_attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, past: int = 0, dropout: float = 0.0
) -> Tensor:
    """The same as ``attention``, without dropout."""
    assert not dropout, "attention's dropout is in the written-out and the fused one only"
    # [B, H, ...] becomes N = B x H: to a batched product all heads are alike
    y_NTK = _Blockwise.apply(*(x.flatten(0, 1) for x in (q_BHTK, k_BHSK, v_BHSK)), past)
    return y_NTK.view(q_BHTK.shape)


def _blocks(time: int, past: int) -> list[tuple[slice, slice]]:
    """Queries and the keys that the last of them sees, the longest first."""
    ends = [(first, min(first + BLOCK, time)) for first in range(0, time, BLOCK)]
    return [(slice(first, end), slice(0, past + end)) for first, end in reversed(ends)]


class _Blockwise(torch.autograd.Function):
    """For weights P = softmax(S) and y = P v: dv = P^T dy and dS = P (dy v^T - sum(dy y))."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        q_NTK: Tensor,
        k_NSK: Tensor,
        v_NSK: Tensor,
        past: int,
    ) -> Tensor:
        count, time, size = q_NTK.shape
        y_NTK = torch.empty_like(q_NTK)
        later_LL = q_NTK.new_full((BLOCK, BLOCK), -math.inf).tril(-1)  # key behind query
        weights = []
        for queries, keys in _blocks(time, past):
            length = queries.stop - queries.start
            scores_NSL = q_NTK.new_empty(count, keys.stop, length)
            scores_NSL.baddbmm_(k_NSK[:, keys], q_NTK[:, queries].mT, beta=0, alpha=size**-0.5)
            scores_NSL[:, -length:] += later_LL[:length, :length]
            weights_NSL = scores_NSL.softmax(dim=1)
            y_NTK[:, queries].baddbmm_(weights_NSL.mT, v_NSK[:, keys], beta=0)
            weights.append(weights_NSL)
        ctx.past = past
        ctx.save_for_backward(q_NTK, k_NSK, v_NSK, y_NTK, *weights)
        return y_NTK

    @staticmethod
    def backward(ctx, dy_NTK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_NTK, k_NSK, v_NSK, y_NTK, *weights = ctx.saved_tensors
        scale = q_NTK.shape[-1] ** -0.5
        dq_NTK, dk_NSK, dv_NSK = (torch.empty_like(x) for x in (q_NTK, k_NSK, v_NSK))
        sum_N1T = (dy_NTK * y_NTK).sum(dim=-1)[:, None]
        blocks = _blocks(q_NTK.shape[1], ctx.past)
        for at, ((queries, keys), weights_NSL) in enumerate(zip(blocks, weights, strict=True)):
            dscores_NSL = v_NSK[:, keys] @ dy_NTK[:, queries].mT
            dscores_NSL.sub_(sum_N1T[:, :, queries]).mul_(weights_NSL)
            dq_NTK[:, queries].baddbmm_(dscores_NSL.mT, k_NSK[:, keys], beta=0, alpha=scale)
            # the first block sees all keys and overwrites what memory held; the others add
            add = float(at > 0)
            dk_NSK[:, keys].baddbmm_(dscores_NSL, q_NTK[:, queries], beta=add, alpha=scale)
            dv_NSK[:, keys].baddbmm_(weights_NSL, dy_NTK[:, queries], beta=add)
        return dq_NTK, dk_NSK, dv_NSK, None
