"""Rotation and attention in one, compiled, for training on a CPU.

What: `rotate` and `attention` of a whole layer and their gradient, by the kernels of
model/fast/attend.py. Why: torch's own take twice as long in float32, and a third longer in bfloat16
(bench/attention.py), most of it in passes over memory between them. Each head is worked on by one
thread, in an order that does not depend on how many there are, and so are the bits that come out.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from model.fast.build import attention_kernels

_HEADS = 4  # that a thread takes at a time: some tenths of a millisecond of work


def rotated_attention(qkv_BTNK: Tensor, heads: int, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """What each head gives, [B, T, H, K], of [q | k | v] heads in float32 or bfloat16."""
    return _Attended.apply(qkv_BTNK, heads, torch.stack((cos_TK, sin_TK)).float())


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        qkv_BTNK: Tensor,
        heads: int,
        turning_2TK: Tensor,
    ) -> Tensor:
        batch, time, _, size = qkv_BTNK.shape
        qkv_BTNK = qkv_BTNK.contiguous()
        y_BTHK = qkv_BTNK.new_empty(batch, time, heads, size)
        logs_BHT = qkv_BTNK.new_empty(batch, heads, time, dtype=torch.float32)
        kernel = attention_kernels().attend
        _all_heads(kernel, heads, [qkv_BTNK, y_BTHK, logs_BHT, turning_2TK], [])
        ctx.heads = heads
        ctx.save_for_backward(qkv_BTNK, y_BTHK, logs_BHT, turning_2TK)
        return y_BTHK

    @staticmethod
    def backward(ctx, dy_BTHK: Tensor) -> tuple[Tensor, None, None]:
        qkv_BTNK, y_BTHK, logs_BHT, turning_2TK = ctx.saved_tensors
        dqkv_BTNK = torch.empty_like(qkv_BTNK)
        given = [qkv_BTNK, y_BTHK, dy_BTHK.contiguous(), logs_BHT, turning_2TK]
        _all_heads(attention_kernels().attend_back, ctx.heads, given, [dqkv_BTNK])
        return dqkv_BTNK, None, None


def _all_heads(
    kernel: Callable[..., int], heads: int, before: list[Tensor], behind: list[Tensor]
) -> None:
    """Call a kernel for all heads, a few at a time, by as many threads as torch has."""
    qkv_BTNK = before[0]
    batch, time, _, size = qkv_BTNK.shape
    count, narrow = batch * heads, qkv_BTNK.dtype == torch.bfloat16
    begins = iter(range(0, count, _HEADS))
    given = [*(tensor.data_ptr() for tensor in before), narrow, time, heads, size]
    taken = [tensor.data_ptr() for tensor in behind]

    def work(keep: list[Tensor] = before + behind) -> None:
        """What is written to lives as long as anybody may write, whatever interrupts us."""
        room = torch.empty(attention_kernels().room(time, size))
        for first in begins:
            kernel(*given, first, min(first + _HEADS, count), *taken, room.data_ptr())

    threads = min(torch.get_num_threads(), -(-count // _HEADS))
    others = [_threads(os.getpid()).submit(work) for _ in range(1, threads)]
    try:
        work()
    finally:
        for other in others:
            other.result()


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="attention")
