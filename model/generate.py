"""The autoregressive loop: read the text so far, choose the next token, append it, again.

What: ``generate`` yields new ids one by one, so that whoever calls it can print while the model
still thinks. Why the cache: see ``KVCache``; the prompt is read in one pass, then every new token
costs one pass over itself alone. Cost: about 2 x parameters operations a token, read or written;
for one text at a time it is the reading of all weights, for every token, that takes the time. The
cache takes 2 x layers x T x D numbers.
"""

from collections.abc import Iterator

import torch

from model.attention import KVCache
from model.gpt import GPT
from model.sampling import SamplerConfig, sample


def generate(
    model: GPT,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    sampler: SamplerConfig,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Up to ``max_tokens`` new ids after ``prompt_ids``, one at a time.

    Ends early at ``stop_id`` (end-of-text), which is not yielded. To start from nothing, let the
    prompt be the end-of-text token: that is what texts begin after in training. Of a prompt
    longer than the context T the last T tokens are read.

    **A full context** is emptied, and the last half of it read again. It cannot just drop its
    oldest token: the cached keys have been turned by their absolute positions, which end at T, and
    above the first layer they have already absorbed what would be dropped. Half, because reading
    again costs T/2 tokens once in T/2 tokens: each new token is paid for twice at most, and always
    has at least T/2 tokens before it (once so many exist).

    The model is in evaluation mode until the iterator ends or is closed, then in the mode it was
    in. Raises ValueError if the prompt is empty.
    """
    if not prompt_ids:
        raise ValueError(
            "the prompt has no tokens, and the model needs one to go on from: "
            "pass the id of the end-of-text token to start a new text"
        )
    # a function of its own, so that the error above is raised by the call, not by the first next()
    return _stream(model, prompt_ids, max_tokens, sampler, stop_id)


@torch.no_grad()
def _stream(
    model: GPT, prompt_ids: list[int], max_tokens: int, sampler: SamplerConfig, stop_id: int | None
) -> Iterator[int]:
    context, device = model.config.context, model.embedding.weight.device
    generator = torch.Generator().manual_seed(sampler.seed)
    cache = KVCache.empty(model.config, 1, device, model.compute_dtype)
    text = list(prompt_ids)
    unread = text[-context:]
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_tokens):
            if cache.length + len(unread) > context:
                cache.length = 0
                unread = text[-((context + 1) // 2) :]
            logits_BTV = model(torch.tensor([unread], device=device), cache)
            new_id = int(sample(logits_BTV[:, -1], sampler, generator))
            if new_id == stop_id:
                return
            yield new_id
            text.append(new_id)
            unread = [new_id]
    finally:
        model.train(was_training)
