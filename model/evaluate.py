"""How good is the model? One protocol, always the same, on a whole split.

What: the tokens are read in windows of the model's context T that start T/2 apart; the first window
scores all its tokens, every later one its last T/2, so that **every token is scored exactly once**
and (but for the first window) with at least T/2 tokens before it. The last window is moved back to
end with the text. The stream begins with an end-of-text token, which is context and not scored.
The *disjoint* variant steps by T: cheaper, and harsher, because tokens at a window's start are
predicted from almost nothing. Published numbers are often of that kind, so both are reported.

Three units. *Nats per token* is the mean of -ln p. *Perplexity* is e to that power: among how many
equally likely tokens the model hesitates; it depends on the tokenizer and says nothing across
vocabularies. *Bits per byte* is total nats / ln 2 / bytes of the raw text: it compares any two
models on the same text. Cost: two forward passes per token (one when disjoint).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.gpt import GPT
from model.parallel import local
from model.shortage import short_of_memory


@dataclass(frozen=True)
class Score:
    """The sum of -ln p over ``tokens`` predicted tokens."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def bits_per_byte(self, text_bytes: int) -> float:
        """``text_bytes`` counts the raw bytes of the text that the tokens came from."""
        return self.nats / math.log(2) / text_bytes


def windows(tokens: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, end, first scored) of each window over ``tokens`` inputs, in order.

    Scored positions of all windows together are range(tokens), each once.
    """
    assert 1 <= stride <= context, "a longer stride would leave tokens out"
    if tokens <= context:
        return [(0, tokens, 0)]
    spans = [(0, context, 0)]
    while spans[-1][1] < tokens:
        scored_from = spans[-1][1]
        end = min(scored_from + stride, tokens)
        spans.append((end - context, end, scored_from))
    return spans


@torch.no_grad()
def score(
    model: GPT,
    tokens: np.ndarray,
    *,
    stride: int,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score every token of a one-dimensional stream but its first; see the module docstring.

    ``batch`` windows are read at once, or as many as there is memory for. ``progress`` is told
    (tokens scored, tokens to score). The model is left in the mode it was in. Raises ValueError if
    the stream has fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"nothing to score: the split has {len(tokens)} token(s), needs 2")
    was_training = model.training
    model.eval()
    total = len(tokens) - 1
    spans = windows(total, model.config.context, stride)
    nats, done, first = 0.0, 0, 0
    try:
        while first < len(spans):
            group = spans[first : first + batch]
            losses_BT = _losses(model, tokens, group)
            if losses_BT is None:
                batch = (len(group) + 1) // 2
                torch.cuda.empty_cache()
                continue
            for row, (start, end, scored_from) in enumerate(group):
                # float64: a sum over millions of tokens must not depend on how they were grouped
                nats += losses_BT[row, scored_from - start :].double().sum().item()
                done += end - scored_from
            first += len(group)
            if progress is not None:
                progress(done, total)
    finally:
        model.train(was_training)
    return Score(nats, done)


def _losses(model: GPT, tokens: np.ndarray, group: list[tuple[int, int, int]]) -> Tensor | None:
    """[windows, T] on the CPU; nothing if there is no memory for so many, but for fewer perhaps."""
    weight = model.embedding.weight
    rows = np.stack([tokens[start : end + 1] for start, end, _ in group]).astype(np.int64)
    try:
        rows_BT = torch.from_numpy(rows).to(weight.device)
        # all at once to the CPU: a GPU would be waited for row by row, and Apple's have no float64
        return model.token_losses(rows_BT[:, :-1], rows_BT[:, 1:]).cpu()
    except RuntimeError as error:
        # processes that share the weights out read the same windows together
        if len(group) == 1 or local(weight) is not weight or not short_of_memory(error):
            raise
        return None
