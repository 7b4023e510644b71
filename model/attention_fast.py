"""Rotation and attention in one, compiled, for training on a CPU.

What: `rotate` and `attention` of a whole layer and their gradient, by the kernels of
model/fast/attend.py. Why: torch's own kernel takes twice as long in float32, and about three times
in bfloat16 (bench/attention.py). Each head is worked on by one thread, in an order that does not
depend on how many there are, and so the bits that come out do not either.
"""

import contextlib
import functools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.fast.build import attention_kernels

_HEADS = 4  # that a thread takes at a time: some tenths of a millisecond of work


def rotated_attention(qkv_BTNK: Tensor, heads: int, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """What each head gives, [B, T, H, K], of [q | k | v] heads in float32 or bfloat16.

    ValueError: numbers or shapes that the kernels would misread.
    """
    time, parts, size = qkv_BTNK.shape[1:]
    if not qkv_BTNK.is_cpu or qkv_BTNK.dtype not in (torch.float32, torch.bfloat16):
        where = f"{qkv_BTNK.dtype} on {qkv_BTNK.device}"
        raise ValueError(f"{where}: it must be float32 or bfloat16 on the CPU")
    if parts != 3 * heads or size % 2 or not cos_TK.shape == sin_TK.shape == (time, size):
        given = [tuple(tensor.shape) for tensor in (qkv_BTNK, cos_TK, sin_TK)]
        raise ValueError(
            f"{given} for {heads} heads: [B, T, 3 heads, K], [T, K], [T, K] with even K"
        )
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
        qkv_BTNK = _plain(qkv_BTNK)
        y_BTHK = qkv_BTNK.new_empty(batch, time, heads, size)
        logs_BHT = qkv_BTNK.new_empty(batch, heads, time, dtype=torch.float32)
        _all_heads("attend", heads, [qkv_BTNK, y_BTHK, logs_BHT, turning_2TK], [])
        ctx.heads = heads
        ctx.save_for_backward(qkv_BTNK, y_BTHK, logs_BHT, turning_2TK)
        return y_BTHK

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BTHK: Tensor) -> tuple[Tensor, None, None]:
        qkv_BTNK, y_BTHK, logs_BHT, turning_2TK = ctx.saved_tensors
        dqkv_BTNK = torch.empty_like(qkv_BTNK)
        given = [qkv_BTNK, y_BTHK, _plain(dy_BTHK), logs_BHT, turning_2TK]
        _all_heads("attend_back", ctx.heads, given, [dqkv_BTNK])
        return dqkv_BTNK, None, None


def _plain(x: Tensor) -> Tensor:
    """The same numbers one after the other in memory, as their shape says."""
    return x.resolve_neg().contiguous()


def _all_heads(name: str, heads: int, before: list[Tensor], behind: list[Tensor]) -> None:
    """Call a kernel for all heads, a few at a time, by as many threads as torch has."""
    kernels = attention_kernels()
    kernel = getattr(kernels, name)
    qkv_BTNK = before[0]
    batch, time, _, size = qkv_BTNK.shape
    count, threads = batch * heads, torch.get_num_threads()
    share = max(1, min(_HEADS, count // threads))
    begins = deque(range(0, count, share))
    narrow = qkv_BTNK.dtype == torch.bfloat16
    given = [*(tensor.data_ptr() for tensor in before), narrow, time, heads, size]
    taken = [tensor.data_ptr() for tensor in behind]

    def work(keep: list[Tensor] = before + behind) -> None:
        """What is written to lives as long as anybody may write, whatever interrupts us."""
        room = torch.empty(kernels.room(time, size), dtype=torch.float32, device="cpu")
        with contextlib.suppress(IndexError):  # until there is none
            while True:
                first = begins.popleft()
                kernel(*given, first, min(first + share, count), *taken, room.data_ptr())

    others = []
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: those that are there do it
            for _ in range(1, min(threads, len(begins))):
                others.append(_threads(os.getpid()).submit(work))
        work()
    finally:
        for other in others:
            other.result()


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="attention")
