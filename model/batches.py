"""Which tokens does step n train on? A pure function of the seed and n.

What: every epoch cuts the token stream into windows of T + 1 tokens (neighbours share one token:
the target of one is the first input of the next), from a random offset, and visits them in a random
order. Sample i of a run is window ``order(i mod W)`` of epoch ``i div W``. Why pure: a checkpoint
stores the step and nothing else about the data, and any machine, slicing or number of processes
draws the same samples. Cost: O(1) memory and some microseconds a sample; nothing is shuffled ahead.

What a model reads of a window may be noisy: some input tokens give way to others of the text, the
targets stay (*unigram noising*: Xie et al. 2017, arXiv:1703.02573). A text that is read many times
is learned by heart from the last few tokens; who cannot rely on any single one of them has to learn
what else points to the next.
"""

import numpy as np

_MASK64 = (1 << 64) - 1
# SplitMix64: what a state grows by, and what its mixing multiplies by
_GROWTH, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def random_bits(*keys: int) -> int:
    """64 well-mixed bits from integer keys (SplitMix64: Steele et al. 2014, OOPSLA, figure 17).

    Our own mixing and no library's generator, because libraries improve their streams and a
    run must draw the same numbers in ten years.
    """
    state = 0
    for key in keys:
        state = (state + (key & _MASK64) + _GROWTH) & _MASK64
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK64
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK64
        state ^= state >> 31
    return state


def random_stream(key: int, count: int) -> np.ndarray:
    """The first ``count`` numbers of SplitMix64 from the seed ``key``, uint64."""
    states = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GROWTH)
    states += np.uint64(key)
    states = (states ^ (states >> np.uint64(30))) * np.uint64(_FIRST)
    states = (states ^ (states >> np.uint64(27))) * np.uint64(_SECOND)
    return states ^ (states >> np.uint64(31))


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
    otherwise ValueError. ``noise`` is the share of input tokens that give way to others.
    """

    def __init__(
        self, tokens: np.ndarray, context: int, batch: int, seed: int, noise: float = 0.0
    ) -> None:
        if len(tokens) < context + 1:
            raise ValueError(
                f"the training split has {len(tokens):,} tokens, and one window needs "
                f"{context + 1:,}: give more text, or a shorter context "
                f"(--set model.context={max(1, len(tokens) // 4)})"
            )
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        self.noise = noise
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
        samples = range(step * self.batch + first, step * self.batch + last)
        starts = [self.start(sample) for sample in samples]
        rows = np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        inputs, targets = rows[:, :-1], rows[:, 1:]
        if self.noise:
            inputs = np.stack([self._noisy(*pair) for pair in zip(inputs, samples, strict=True)])
        return inputs, targets

    def _noisy(self, inputs_T: np.ndarray, sample: int) -> np.ndarray:
        """The inputs of a sample, some of them replaced by tokens from anywhere in the text."""
        key = random_bits(self.seed, sample, 3)
        chance_T, place_T = random_stream(key, 2 * len(inputs_T)).reshape(2, -1)
        replaced_T = chance_T < int(self.noise * 2**64)
        noisy_T = inputs_T.copy()
        noisy_T[replaced_T] = self.tokens[place_T[replaced_T] % len(self.tokens)]
        return noisy_T
