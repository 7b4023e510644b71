"""How fast could this device multiply? The measure that training speed is held against.

For known cards it is the makers' dense peak (cards.py). On anything else, CPUs included, large
matrices are multiplied once a process and the best rate counts; such a peak is marked as measured,
and is lower than a maker's figure would be. Cost: two seconds at most.

The model FLOP utilisation (MFU, Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is then

    tokens per second x (6 N + 12 L D T) / peak

N are the parameters without the embedding's lookup and with the head (tied or not), L layers, D
width, T context. Attention is counted as if it were not causal, and nothing that is computed twice
to save memory is counted twice: both are the usual convention.
"""

import functools
import time

import torch

from pipeline.cards import Peak, listed
from pipeline.machine import type_name

_ENOUGH = 0.1  # seconds that one product must take to tell the rate
_LARGEST = 4096  # rows of the largest product


def device_name(device: torch.device) -> str:
    """``Tesla T4``; ``cpu`` and ``mps`` have no other name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def known(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """The peak of a device if it need not be measured."""
    precision = type_name(dtype)
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        precision = "tf32"
    return listed(device_name(device), precision)


@functools.cache
def measured(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best rate of a few products, each eight times the work of the one before."""
    best, size = 0.0, 256
    while True:
        # random, because products of ones are faster than those that training makes
        some = torch.randn(size, size, device=device, dtype=dtype)
        for _ in range(2):  # the first of its size may have to load or choose a kernel
            start = time.perf_counter()
            (some @ some)[0, 0].item()  # which waits for the device, and all it was asked before
            took = time.perf_counter() - start
        best = max(best, 2 * size**3 / took)
        if took > _ENOUGH or size == _LARGEST:
            return Peak(best, True)
        size *= 2
