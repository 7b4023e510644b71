"""Which tokens does step n train on? A pure function of the seed and n.

What: every epoch cuts the token stream into windows of T + 1 tokens (neighbours share one token:
the target of one is the first input of the next), from a random offset, and visits them in a random
order. Sample i of a run is window ``order(i mod W)`` of epoch ``i div W``. Why pure: a checkpoint
stores the step and nothing else about the data, and any machine, slicing or number of processes
draws the same samples. Cost: O(1) memory and some microseconds a sample; nothing is shuffled ahead.
"""

import numpy as np

_MASK64 = (1 << 64) - 1


def random_bits(*keys: int) -> int:
    """64 well-mixed bits from integer keys (SplitMix64: Steele et al. 2014, OOPSLA, figure 17).

    Our own mixing and no library's generator, because libraries improve their streams and a
    run must draw the same numbers in ten years.
    """
    state = 0
    for key in keys:
        state = (state + (key & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permuted(index: int, size: int, key: int) -> int:
    """Where ``index`` goes in a random permutation of ``range(size)`` chosen by ``key``.

    A four-round Feistel network permutes the next even number of bits; results outside the range
    are sent through again until they fall inside (cycle walking: Black and Rogaway 2002, "Ciphers
    with Arbitrary Finite Domains", section 3). Fewer than four walks on average.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (random_bits(key, turn, right) & mask)
        index = (left << half) | right
        if index < size:
            return index


class Batches:
    """Windows of a token stream, addressed by step and slot.

    ``tokens`` is one-dimensional (a memory map will do) and needs ``context + 1`` tokens at least;
    otherwise ValueError.
    """

    def __init__(self, tokens: np.ndarray, context: int, batch: int, seed: int) -> None:
        if len(tokens) < context + 1:
            raise ValueError(
                f"the training split has {len(tokens):,} tokens, and one window needs "
                f"{context + 1:,}: give more text, or a shorter context "
                f"(--set model.context={max(1, len(tokens) // 4)})"
            )
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        # every epoch has as many windows as fit behind the largest offset
        self.windows = max(1, (len(tokens) - context) // context)
        self.offsets = min(context, len(tokens) - self.windows * context)

    def start(self, sample: int) -> int:
        """The position of the first token of sample number ``sample`` of the run."""
        epoch, position = divmod(sample, self.windows)
        offset = random_bits(self.seed, epoch, 0) % self.offsets
        key = random_bits(self.seed, epoch, 1)
        return offset + self.context * permuted(position, self.windows, key)

    def slice(self, step: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each int64 [last - first, T], of slots first..last of a step."""
        starts = [self.start(step * self.batch + slot) for slot in range(first, last)]
        rows = np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]
