"""What training takes of a GPU's memory by formula, and the micro-batch that is chosen for what.

fit.py finds on a GPU that is there what fits; the formulas say it of one that is not, and without
torch. They are for bfloat16 or float16, without torch.compile, which takes a sixth less (seen on an
H100). docs/training.md writes them out; tests hold them against what torch keeps.
"""

from collections.abc import Callable

from model.config import ModelConfig

SPARE = 0.1  # of the device's memory is left alone
CUDA = 1 << 29  # bytes that CUDA itself takes, roughly
BUSY = 1 << 12  # tokens that should be enough for a GPU: a choice, not measured
SLICE = 512  # tokens whose logits the loss holds at a time, at least: model/loss.py

Fits = Callable[[int, bool], bool]  # (sequences, recompute) -> do they fit?


def block_bytes(shape: ModelConfig) -> int:
    """What a block keeps of a token for the way back."""
    return 24 * shape.width + 4 * shape.feed_forward + 4 * shape.heads + 16


def token_bytes(shape: ModelConfig, recompute: bool) -> int:
    """What all blocks keep of a token. One of them is computed again at a time."""
    if recompute:
        blocks = 4 * shape.width * shape.layers + block_bytes(shape)
    else:
        blocks = block_bytes(shape) * shape.layers
    return blocks + 6 * shape.width + 16


def mask_bytes(shape: ModelConfig) -> int:
    """What dropout's masks take of a token."""
    return 2 * shape.width * (2 * shape.layers + 1) if shape.dropout else 0


def fixed_bytes(shape: ModelConfig, vocab: int, recompute: bool, memory: float = 0) -> int:
    """What does not grow with the micro-batch, on a card with so many bytes."""
    logits = max(10 * SLICE * vocab, int(memory) // 32)
    head = 6 * vocab * shape.width + logits
    cast = 2 * shape.trunk_parameters() // (shape.layers if recompute else 1)
    return 16 * shape.parameters(vocab) + cast + head


def choose(sizes: list[int], context: int, asked: str, fits: Fits) -> tuple[int, bool]:
    """The size, from ``sizes`` in rising order, and whether to recompute; size 0 if none fits.

    Activation checkpointing costs a third more work: see fit.py.
    """
    plain = 0 if asked == "on" else _largest(sizes, lambda size: fits(size, False))
    if asked == "off" or plain * context >= BUSY or plain == sizes[-1]:
        return plain, False
    sparing = _largest(sizes, lambda size: fits(size, True))
    return (sparing, True) if sparing > plain else (plain, False)


def _largest(sizes: list[int], fits: Callable[[int], bool]) -> int:
    best = 0
    for size in sizes:
        if not fits(size):
            break
        best = size
    return best


def halves(batch: int) -> list[int]:
    """The batch, half of it, and so on to one, in rising order: all slices are of like size."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes[::-1]
