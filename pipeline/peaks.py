"""How fast could this device multiply? The measure that training speed is held against.

For known cards it is the makers' dense peak (no sparsity, sums in float32), found by the exact name
that torch reports: a 3060 Ti is no 3060, and part of a card is not the card. On anything else, CPUs
included, large matrices are multiplied once a process and the best rate counts; such a peak is
marked as measured, and is lower than a maker's figure would be. Cost: a second at most.

The model FLOP utilisation (MFU, Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is then

    tokens per second x (6 N + 12 L D T) / peak

N are the parameters without the embedding's lookup and with the head (tied or not), L layers, D
width, T context. Attention is counted as if it were not causal, and nothing that is computed twice
to save memory is counted twice: both are the usual convention.
"""

import functools
import re
import time
from dataclasses import dataclass

import torch

from model.config import ModelConfig

_TERA = 1e12
_ENOUGH = 0.1  # seconds that one product must take to tell the rate
_LARGEST = 4096  # rows of the largest product

# name as torch tells it (a whole match) -> TFLOP/s in bfloat16, float16, TF32 and float32
_LISTED: tuple[tuple[str, dict[str, float]], ...] = (
    (r"Tesla P100-PCIE-1[26]GB", {"float16": 18.7, "float32": 9.3}),
    (r"Tesla P100-SXM2-16GB", {"float16": 21.2, "float32": 10.6}),
    (r"(NVIDIA |Tesla )?T4", {"float16": 65.1, "float32": 8.1}),
    (
        r"(NVIDIA )?GeForce RTX 3060",
        {"bfloat16": 25.5, "float16": 25.5, "tf32": 12.7, "float32": 12.7},
    ),
    (
        r"(NVIDIA )?GeForce RTX 3090",
        {"bfloat16": 71.0, "float16": 71.0, "tf32": 35.6, "float32": 35.6},
    ),
    (
        r"(NVIDIA )?GeForce RTX 4070",
        {"bfloat16": 58.0, "float16": 58.0, "tf32": 29.0, "float32": 29.0},
    ),
    (
        r"(NVIDIA )?GeForce RTX 4090",
        {"bfloat16": 165.2, "float16": 165.2, "tf32": 82.6, "float32": 82.6},
    ),
    (r"NVIDIA L4", {"bfloat16": 121.0, "float16": 121.0, "tf32": 60.0, "float32": 30.3}),
    (
        r"(NVIDIA )?A100(-SXM4|-SXM|-PCIE)?[- ](40|80)GB( PCIe)?",
        {"bfloat16": 312.0, "float16": 312.0, "tf32": 156.0, "float32": 19.5},
    ),
    (
        r"NVIDIA H100( SXM5)? 80GB HBM3",
        {"bfloat16": 989.0, "float16": 989.0, "tf32": 495.0, "float32": 67.0},
    ),
    (
        r"NVIDIA H100 PCIe",
        {"bfloat16": 756.0, "float16": 756.0, "tf32": 378.0, "float32": 51.0},
    ),
    (
        r"NVIDIA H200",
        {"bfloat16": 989.0, "float16": 989.0, "tf32": 495.0, "float32": 67.0},
    ),
)


@dataclass(frozen=True)
class Peak:
    """Operations a second; ``measured`` here, or else as the maker says."""

    flops: float
    measured: bool


def device_name(device: torch.device) -> str:
    """``Tesla T4``; ``cpu`` and ``mps`` have no other name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def flops_per_token(config: ModelConfig, vocab_size: int) -> int:
    """Operations of one trained token: see the module docstring."""
    parameters = config.trunk_parameters() + vocab_size * config.width
    return 6 * parameters + 12 * config.layers * config.width * config.context


def listed(name: str, precision: str) -> Peak | None:
    """What the maker says of a device by its name; None if it is not among those we know.

    ``precision`` is bfloat16, float16, float32, or tf32 for float32 in tensor cores.
    """
    for pattern, rates in _LISTED:
        if re.fullmatch(pattern, name):
            if precision == "tf32":  # a card without it computes in float32
                precision = "tf32" if "tf32" in rates else "float32"
            return Peak(rates[precision] * _TERA, False) if precision in rates else None
    return None


def known(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """The peak of a device if it need not be measured."""
    precision = str(dtype).removeprefix("torch.")
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
            (some @ some)[0, 0].item()  # which waits for the device
            took = time.perf_counter() - start
            best = max(best, 2 * size**3 / took)
            if took > _ENOUGH:
                return Peak(best, True)
        if size == _LARGEST:
            return Peak(best, True)
        size *= 2
