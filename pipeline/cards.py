"""What is known of graphics cards by their names, before one is there, and without torch.

Peaks are the makers' dense ones (no sparsity, sums in float32). A card is found by its exact name,
as torch and nvidia-smi tell it or as Vast.ai does: a 3060 Ti is no 3060, part of a card is not the
card, and of a card that is not here nothing is said rather than something near.
"""

import re
from dataclasses import dataclass

from model.config import ModelConfig

_TERA = 1e12


@dataclass(frozen=True)
class Peak:
    """Operations a second; ``measured`` here, or else as the maker says."""

    flops: float
    measured: bool


@dataclass(frozen=True)
class Card:
    """A kind of GPU. ``memory`` is what it usually has, the less of two usual sizes."""

    name: str  # as Vast.ai calls it
    others: str  # what else it is called, as a pattern for the whole name
    capability: tuple[int, int]
    memory: float  # GiB
    rates: dict[str, float]  # TFLOP/s by the type of numbers

    def peak(self, precision: str) -> Peak | None:
        """``precision`` is bfloat16, float16, float32, or tf32 for float32 in tensor cores."""
        if precision == "tf32" and "tf32" not in self.rates:  # a card without it takes float32
            precision = "float32"
        rate = self.rates.get(precision)
        return None if rate is None else Peak(rate * _TERA, False)


def _rates(half: float, tf32: float, float32: float) -> dict[str, float]:
    return {"bfloat16": half, "float16": half, "tf32": tf32, "float32": float32}


_A100, _H100 = _rates(312.0, 156.0, 19.5), _rates(989.0, 495.0, 67.0)
_PCIE = _rates(756.0, 378.0, 51.0)
_NV, _RTX = "(NVIDIA )?", "(NVIDIA )?(GeForce )?RTX"

CARDS = (
    Card("Tesla P100", "Tesla P100-PCIE-1[26]GB", (6, 0), 12, {"float16": 18.7, "float32": 9.3}),
    Card("P100 SXM2", "Tesla P100-SXM2-16GB", (6, 0), 16, {"float16": 21.2, "float32": 10.6}),
    # of its 16 GiB error correction takes one
    Card("Tesla T4", "(NVIDIA |Tesla )?T4", (7, 5), 15, {"float16": 65.1, "float32": 8.1}),
    Card("RTX 3060", f"{_RTX} 3060", (8, 6), 12, _rates(25.5, 12.7, 12.7)),
    Card("RTX 3090", f"{_RTX} 3090", (8, 6), 24, _rates(71.0, 35.6, 35.6)),
    Card("RTX 4070", f"{_RTX} 4070", (8, 9), 12, _rates(58.0, 29.0, 29.0)),
    Card("RTX 4090", f"{_RTX} 4090", (8, 9), 24, _rates(165.2, 82.6, 82.6)),
    Card("RTX 5090", f"{_RTX} 5090", (12, 0), 32, _rates(209.5, 104.8, 104.8)),
    Card("L4", f"{_NV}L4", (8, 9), 22.5, _rates(121.0, 60.0, 30.3)),
    Card("A100 SXM4", f"{_NV}A100-SXM4?-(40|80)GB", (8, 0), 40, _A100),
    Card("A100 PCIE", f"{_NV}A100(-PCIE)?[- ](40|80)GB( PCIe)?", (8, 0), 40, _A100),
    Card("H100 SXM", "NVIDIA H100( SXM5)? 80GB HBM3", (9, 0), 79.6, _H100),
    Card("H100 PCIE", "NVIDIA H100 PCIe", (9, 0), 79.6, _PCIE),
    Card("H200", "NVIDIA H200", (9, 0), 140, _H100),
)


def find(name: str) -> Card | None:
    """The card of that name; ``RTX_4090`` is Vast.ai's way to write one in a query."""
    name = name.replace("_", " ").strip()
    for card in CARDS:
        if name == card.name or re.fullmatch(card.others, name):
            return card
    return None


def listed(name: str, precision: str) -> Peak | None:
    """What the maker says of a device by its name; None if it is not among those we know."""
    card = find(name)
    return card.peak(precision) if card else None


def flops_per_token(config: ModelConfig, vocab_size: int) -> int:
    """Operations of one trained token: see the docstring of peaks.py."""
    parameters = config.trunk_parameters() + vocab_size * config.width
    return 6 * parameters + 12 * config.layers * config.width * config.context
