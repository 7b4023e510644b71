"""Which program learns, encodes and decodes: the compiled one, or the one to be read.

Both give the same results, whatever the text; the readable one says what they are.
"""

import os
from types import ModuleType


def program() -> ModuleType:
    """`bpe_fast`, unless IGNITE_TOKENIZER=reference asks for `bpe_plain`. ValueError: else."""
    asked = os.environ.get("IGNITE_TOKENIZER", "fast")
    if asked == "reference":
        from model import bpe_plain

        return bpe_plain
    if asked != "fast":
        raise ValueError(f"IGNITE_TOKENIZER={asked!r}: it must be 'fast' or 'reference'")
    from model import bpe_fast

    return bpe_fast
