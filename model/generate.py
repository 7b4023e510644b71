"""The autoregressive loop: read the text so far, choose the next token, append it, again.

What: ``generate`` yields new ids one by one, so that whoever calls it can print while the model
still thinks. Why the cache: see ``KVCache``; the prompt is read in one pass, then every new token
costs one pass over itself alone. Cost: about 2 x parameters operations a token, read or written;
for one text at a time it is the reading of all weights, for every token, that takes the time
(``decode`` is about getting there on a GPU). The cache takes 2 x layers x T x D numbers.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from model.attention import KVCache
from model.gpt import GPT
from model.late import Late
from model.sampling import SamplerConfig, sample


class Reader:
    """Reads tokens behind those that it has read, and tells the logits of the one to follow.

    This is the plain way, and what every faster one has to agree with.
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.device = model, model.embedding.weight.device
        self.cache = KVCache.empty(model.config, 1, self.device, model.compute_dtype)

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, V], good until the next call."""
        return self.model.next_logits(ids_BT, self.cache)


def generate(
    model: GPT,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    sampler: SamplerConfig,
    stop_id: int | None = None,
    reader: Reader | None = None,
) -> Iterator[int]:
    """Up to ``max_tokens`` new ids after ``prompt_ids``, one at a time.

    Ends early at ``stop_id`` (end-of-text), which is not yielded. To start from nothing, let the
    prompt be the end-of-text token: that is what texts begin after in training. Of a prompt
    longer than the context T the last T tokens are read. ``reader`` may be a faster one of the
    same model (see ``decode``), for one text at a time.

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
    return _stream(reader or Reader(model), prompt_ids, max_tokens, sampler, stop_id)


@torch.no_grad()
def _stream(
    reader: Reader,
    prompt_ids: list[int],
    max_tokens: int,
    sampler: SamplerConfig,
    stop_id: int | None,
) -> Iterator[int]:
    was_training = reader.model.training
    reader.model.eval()
    try:
        chosen = _chosen(reader, prompt_ids, max_tokens, sampler)
        for id_11 in _one_late(chosen) if reader.device.type == "cuda" else chosen:
            new_id = int(id_11.item())
            if new_id == stop_id:
                return
            yield new_id
    finally:
        reader.model.train(was_training)


def _chosen(
    reader: Reader, prompt_ids: list[int], max_tokens: int, sampler: SamplerConfig
) -> Iterator[Tensor]:
    """The new ids, each [1, 1], still on the device: nothing here asks for their values."""
    context, cache = reader.model.config.context, reader.cache
    generator = torch.Generator().manual_seed(sampler.seed)
    unread_1T = torch.tensor([prompt_ids[-context:]], device=reader.device)
    recent = deque(unread_1T.split(1, dim=1), maxlen=(context + 1) // 2)
    cache.length = 0
    for _ in range(max_tokens):
        if cache.length + unread_1T.shape[1] > context:
            cache.length = 0
            unread_1T = torch.cat(tuple(recent), dim=1)
        unread_1T = sample(reader(unread_1T), sampler, generator)[:, None]
        recent.append(unread_1T)
        yield unread_1T


def _one_late(ids: Iterable[Tensor]) -> Iterator[Late]:
    """Each of a GPU's ids on the CPU, once the GPU has its next token to work on.

    Asking for a value waits until the GPU has it, and then the GPU waits until the CPU has given
    it something to do. Here the next token is under way before anybody waits for this one.
    """
    waiting: list[Late] = []
    for id_11 in ids:
        waiting.append(Late(id_11))
        if len(waiting) == 2:
            yield waiting.pop(0)
    yield from waiting
