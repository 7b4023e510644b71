"""Loss scaling: what float16 needs, because its numbers end at 65,504 and vanish below 6e-8.

What: the loss is multiplied by a large power of two, so that small gradients survive the way back,
and the gradients are divided by it before they are used (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). The largest factor that does not overflow is found by trying: an
overflow costs its step and halves the factor, and after two thousand steps without one it doubles.
bfloat16 has the range of float32 and needs none of it. Cost: the host waits for every step, to see
whether it overflowed.
"""

import torch
from torch import Tensor

START, LARGEST = 2.0**16, 2.0**24
PATIENCE = 2000  # steps without an overflow after which a larger factor is tried


class Scaler:
    """The factor, and how many steps it has cost so far."""

    def __init__(self) -> None:
        self.factor, self.quiet, self.skipped = START, 0, 0

    def finite(self, norm: Tensor) -> bool:
        """May the gradients of this norm be used? Adapts the factor; waits for the device."""
        if bool(norm.isfinite()):
            self.quiet += 1
            if self.quiet == PATIENCE:
                self.factor, self.quiet = min(2 * self.factor, LARGEST), 0
            return True
        self.factor, self.quiet = max(self.factor / 2, 1.0), 0
        self.skipped += 1
        return False

    def state(self) -> dict[str, Tensor]:
        """What a run needs to go on with the same factor."""
        numbers = (self.factor, float(self.quiet), float(self.skipped))
        return {"scaler": torch.tensor(numbers, dtype=torch.float32)}

    def load(self, state: Tensor) -> None:
        self.factor, quiet, skipped = state.tolist()
        self.quiet, self.skipped = int(quiet), int(skipped)
