"""Functions compiled by torch.compile, each when it is first called, and once for all models.

What: the compiler traces a function, joins neighbouring operations into few kernels and writes them
for the device. Why here: importing the compiler takes a second or two, which nobody should pay who
does not train on a GPU. Shapes are fixed when it is called: another shape is compiled anew, as
is a step in smaller slices after one that ran out of memory.
"""

import functools
from collections.abc import Callable

import torch


@functools.cache
def compiled(function: Callable) -> Callable:
    """The same function, compiled."""
    # torch gives up compiling, and says so in a log only, after eight shapes; we have two for each
    # size of a micro-batch, two more for the rest of a step, and may halve it several times
    torch._dynamo.config.cache_size_limit = 64  # its newer name is not known to torch 2.6
    return torch.compile(function, dynamic=False)
