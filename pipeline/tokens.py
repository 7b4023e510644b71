"""Token files: flat little-endian arrays of the smallest type that holds every id."""

from pathlib import Path

import numpy as np


def token_type(vocab_size: int) -> np.dtype:
    """uint16, or uint32 where a vocabulary has more than 65,536 tokens."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def open_tokens(path: Path, vocab_size: int) -> np.ndarray:
    """A token file as a read-only memory map: training reads windows of it, never the whole."""
    return np.memmap(path, dtype=token_type(vocab_size), mode="r")
