"""Dropout, with masks that are data: a pure function of the seed, the step and the sample.

What: training drops each number of a branch with probability p and scales the others up, so that
no unit can rely on one other being there (Srivastava et al. 2014, JMLR 15, section 4). Why masks
as an input of the model: drawn inside it they depend on how a batch is sliced, on what was drawn
before, and on whether activations are kept or computed again. Here a sample has the same masks in
whatever micro-batch, process or pass it is read, so none of these changes what is trained (on one
model of GPU: torch's generator goes by how many numbers a GPU draws at once). Cost: two random
bytes a number, on a CPU half of what torch's own dropout takes (bench/dropout.py), and the masks in
memory, in the type of the branches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LEVELS = 1 << 16  # p is rounded to one of so many


class Masks:
    """What every part of the model keeps of a batch: ``keep_PBTD`` of ones and zeros."""

    def __init__(self, keep_PBTD: Tensor, scale: float) -> None:
        self.keep_PBTD, self.scale = keep_PBTD, scale

    @classmethod
    def draw(
        cls,
        keys: Sequence[int],
        shape: tuple[int, int, int],
        p: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Masks":
        """For the samples that ``keys`` stand for, 64 bits each; ``shape`` is (parts, T, D)."""
        size = shape[0] * shape[1] * shape[2]
        # four numbers of 16 bits in each of 64, and as many more as it takes to fill the last
        # Apple's GPUs cannot draw all 64 bits
        drawn_on = torch.device("cpu") if device.type == "mps" else device
        raw_BN = torch.empty(len(keys), -(-size // 4), dtype=torch.int64, device=drawn_on)
        generator = torch.Generator(drawn_on)
        for key, raw_N in zip(keys, raw_BN, strict=True):
            generator.manual_seed(key)
            raw_N.random_(-(1 << 63), None, generator=generator)
        dropped = min(round(p * _LEVELS), _LEVELS - 1)  # p is below 1, if only just
        keep_BN = raw_BN.view(torch.int16)[:, :size] >= dropped - _LEVELS // 2
        keep_BPTD = keep_BN.to(device, dtype).view(len(keys), *shape)
        return cls(keep_BPTD.transpose(0, 1), _LEVELS / (_LEVELS - dropped))

    def of_block(self, layer: int) -> "Masks":
        """The two parts of one block: what its attention adds, and its feed-forward network."""
        return Masks(self.keep_PBTD[2 * layer + 1 : 2 * layer + 3], self.scale)

    def drop(self, part: int, x_BTD: Tensor) -> Tensor:
        """What is left of x."""
        return x_BTD * self.keep_PBTD[part] * self.scale

    def add(self, part: int, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
        """x and what is left of the branch, in one pass over both."""
        return torch.addcmul(x_BTD, branch_BTD, self.keep_PBTD[part], value=self.scale)
