"""Which program learns, encodes and decodes: the compiled one, or the one to be read.

Both give the same results, whatever the text; the readable one says what they are.
"""

import functools
import os
import sys
from types import ModuleType

from model import bpe_plain


def program() -> ModuleType:
    """`bpe_fast`, unless IGNITE_TOKENIZER=reference asks for `bpe_plain`. ValueError: else.

    Where it cannot be compiled, a line on stderr says why, and it is `bpe_plain` as well.
    """
    asked = os.environ.get("IGNITE_TOKENIZER", "fast")
    if asked == "reference":
        return bpe_plain
    if asked != "fast":
        raise ValueError(f"IGNITE_TOKENIZER={asked!r}: it must be 'fast' or 'reference'")
    return _fast()


@functools.cache
def _fast() -> ModuleType:
    try:
        from model import bpe_fast

        bpe_fast.kernels()
    except Exception as error:  # numba and LLVM have many, and none is worth a run
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"the tokenizer cannot be compiled ({why}).", end=" ", file=sys.stderr)
        print(
            "The readable one does the same, thirty times as slowly.", file=sys.stderr, flush=True
        )
        return bpe_plain
    return bpe_fast
