"""How to know that memory was short: the same trouble comes under several names.

Torch's allocator has an exception of its own. But libraries, kernels that are loaded late and the
compiler take memory beside it, and where that is not there, an error says so in words alone.
"""

import re

_SAID = re.compile(
    "out of memory|can't allocate memory|not enough memory: you tried to allocate"
    "|STATUS_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED"
)


def short_of_memory(error: BaseException) -> bool:
    """Would less at once have done? Needs no torch to tell."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)))
