"""Functions compiled by torch.compile, each when it is first called, and once for all models.

What: the compiler traces a function, joins neighbouring operations into few kernels and writes them
for the device. Why here: importing the compiler takes a second or two, which nobody should pay who
does not train on a GPU. Shapes are fixed when it is called: another shape is compiled anew.
"""

import functools
from collections.abc import Callable

import torch


@functools.cache
def compiled(function: Callable) -> Callable:
    """The same function, compiled."""
    return torch.compile(function, dynamic=False)
