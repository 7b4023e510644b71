"""Numbers of a GPU that are read later, without waiting for all that was asked of it since.

Why: the host asks a GPU for work ahead of time, and stays ahead as long as it never waits. ``item``
and ``tolist`` wait for everything in the queue, also for what was asked after the number was. Here
a copy is put into the queue right behind the number, and reading waits for that copy alone. Cost:
some ten microseconds; nothing on other devices, where there is no queue or no way around it.
"""

import torch
from torch import Tensor


class Late:
    """A small tensor on its way to the CPU. It must not be written to from here on."""

    def __init__(self, there: Tensor) -> None:
        self.here, self.copied = there, None
        if there.device.type == "cuda":
            # into pinned memory, because any other copy would wait for what was asked before
            self.here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self.here.copy_(there, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record(torch.cuda.current_stream(there.device))

    def item(self) -> float:
        """The one number that it holds, as soon as it is there."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.here.item()
