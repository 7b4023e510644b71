"""The assembly: embedding, blocks, final norm, head; its loss, its start, its parameter groups.

What: token ids in, for every position a score (logit) for each possible next token out. The head
is the embedding transposed unless ``tied = false``: the same vectors that say what a token means
also say how to recognise it (Press and Wolf 2017, arXiv:1608.05859). Cost per trained token: about
6 floating-point operations per parameter, plus 12 x layers x width x T for attention.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import KVCache
from model.block import Block
from model.compile import compiled
from model.config import ModelConfig
from model.dropout import Masks
from model.embeddings import Embedding, rotary_table
from model.layers import Linear, Norm
from model.loss import head_loss, token_losses

# blocks that are compiled as one: passes are also joined between neighbours, and each block more
# takes its seconds to compile
_TOGETHER = 4


class GPT(nn.Module):
    """A decoder-only transformer.

    ``compute_dtype`` is the type that branches compute in; weights stay float32. ``recompute`` says
    whether the backward pass computes a block's activations again instead of keeping them (Chen et
    al. 2016, arXiv:1604.06174): of each block stays its input alone, for a third more work.
    ``compiled`` says whether training runs through torch.compile: the same formulas in fewer passes
    over memory, for half a minute before the first step. What is compiled are a few blocks, which
    serve for all, because blocks differ in their weights alone. In bfloat16 the stream between them
    is then bfloat16, too: it is most of what a pass over memory reads. All three are settings of
    the machine, not of the model: the same weights run in any. So is ``attend_in_one``.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.compute_dtype = torch.float32
        self.recompute = self.compiled = False
        self.embedding = Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = Norm(config.width, config.norm, config.bias)
        self.head = None if config.tied else Linear(config.width, vocab_size, bias=False)
        cos_TK, sin_TK = rotary_table(config.context, config.head_size, config.rope_base)
        # recomputed from the config, so not part of what is saved
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """GPT-2's start (Radford et al. 2019, section 2.3), drawn on the CPU on every device.

        Normal with deviation 0.02; the two projections that write to the residual stream are
        scaled by 1/sqrt(2 x layers), so that the sum of all branches starts at one scale whatever
        the depth. Norms start at one, biases at zero.
        """
        generator = torch.Generator().manual_seed(seed)
        scaled = ("attention.out.weight", "feed_forward.down.weight")
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            deviation = 0.02
            if name.endswith(scaled):
                deviation /= math.sqrt(2 * self.config.layers)
                deviation *= not self.config.zero_init
            with torch.no_grad():
                parameter.normal_(0.0, 1.0, generator=generator).mul_(deviation)

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] in float32 for the token after each of ``ids_BT``.

        With a cache, ``ids_BT`` continues the tokens that the cache has seen.
        """
        return self._logits(self._hidden(ids_BT, cache))

    def next_logits(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, V] for the token after the last of ``ids_BT``; the head reads no other."""
        return self._logits(self._hidden(ids_BT, cache)[:, -1])

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, masks: Masks | None = None) -> Tensor:
        """The sum over all tokens of -ln p(target), in nats; with dropout if there are ``masks``.

        A sum, not a mean: whoever slices a batch divides by the tokens of the whole of it.
        """
        x_BTD = self._hidden(ids_BT, masks=masks)
        return head_loss(x_BTD.flatten(0, 1), self.head_weight, targets_BT.flatten(), self.compiled)

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """-ln p(target) of each token, [B, T] in nats, without gradients."""
        x_BTD = self._hidden(ids_BT)
        losses_N = token_losses(x_BTD.flatten(0, 1), self.head_weight, targets_BT.flatten())
        return losses_N.view_as(targets_BT)

    def masks(self, keys: Sequence[int], time: int) -> Masks | None:
        """Dropout's masks for samples of ``time`` tokens, if the configuration has dropout."""
        if not self.config.dropout:
            return None
        shape = (2 * self.config.layers + 1, time, self.config.width)
        device = self.embedding.weight.device
        return Masks.draw(keys, shape, self.config.dropout, self.compute_dtype, device)

    def _hidden(
        self, ids_BT: Tensor, cache: KVCache | None = None, masks: Masks | None = None
    ) -> Tensor:
        past = cache.length if cache is not None else 0
        time = ids_BT.shape[1]
        if past + time > self.config.context:
            raise ValueError(
                f"{past + time} tokens exceed the context of {self.config.context}: "
                "pass at most the last ones that fit"
            )
        dtype = self.compute_dtype
        rotary = tuple(table[past : past + time].to(dtype) for table in (self.cos_TK, self.sin_TK))
        x_BTD = self.embedding(ids_BT)
        if masks:
            x_BTD = masks.drop(0, x_BTD)
        if cache is None:
            x_BTD = self._run_blocks(x_BTD, rotary, masks)
        else:
            for layer, block in enumerate(self.blocks):
                x_BTD = block(x_BTD, rotary, dtype, cache, layer)
            cache.length = past + time
        return self.final_norm(x_BTD, dtype)

    def _logits(self, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self.head_weight.to(x_BTD.dtype)).float()

    def freeze(self) -> "GPT":
        """Keep what products read in ``compute_dtype``, for a model that is only read from now on.

        The numbers stay the same bit for bit: a product converts its weights before it computes
        anyway. But it would do so for every token, which reads three times as many bytes as the
        product itself. Norms stay float32, and so does the embedding, where the residual stream
        starts: a head tied to it gets a copy of its own. So do not save or train a frozen model.
        """
        if self.compute_dtype != torch.float32:
            if self.head is None:
                self.head = Linear(self.config.width, self.vocab_size, bias=False)
                self.head.weight = nn.Parameter(self.embedding.weight.detach())
            for module in self.modules():
                if isinstance(module, Linear):
                    module.to(self.compute_dtype)
        return self.requires_grad_(False)

    def attend_in_one(self, attend: Callable[[Tensor, int, Tensor, Tensor], Tensor]) -> None:
        """Let layers rotate and attend by one function of [q | k | v], where they are alone in it.

        Alone: without a cache, without norms of queries and keys, without dropout of weights.
        """
        for block in self.blocks:
            block.attention.in_one = attend

    @property
    def attends_in_one(self) -> bool:
        return self.blocks[0].attention.in_one is not None

    def _run_blocks(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], masks: Masks | None
    ) -> Tensor:
        train = torch.is_grad_enabled()
        recompute = self.recompute and train
        run = compiled(_run_some) if self.compiled and train else _run_some
        some = _TOGETHER if self.compiled and not recompute else 1
        if self.compiled and train and self.compute_dtype == torch.bfloat16:
            x_BTD = x_BTD.to(self.compute_dtype)
        for first in range(0, len(self.blocks), some):
            blocks = tuple(self.blocks[first : first + some])
            theirs = [masks.of_block(first + i) if masks else None for i in range(len(blocks))]
            inputs = (blocks, x_BTD, rotary, self.compute_dtype, theirs)
            if recompute:
                # dropout's masks are inputs; only attention's dropout asks torch's generator
                preserve = self.config.attention_dropout > 0
                x_BTD = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=preserve)
            else:
                x_BTD = run(*inputs)
        return x_BTD

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the embedding itself if tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Named parameters by role: the blocks' ``matrices``, the ``tables``, the ``vectors``.

        Matrices and tables (embedding, untied head) are decayed, vectors (norms, biases) are not:
        pulling a norm's scale towards zero fights the norm itself.
        """
        groups: dict[str, dict[str, nn.Parameter]] = {"matrices": {}, "tables": {}, "vectors": {}}
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                groups["vectors"][name] = parameter
            elif name.startswith("blocks."):
                groups["matrices"][name] = parameter
            else:
                groups["tables"][name] = parameter
        return groups


def _run_some(
    blocks: tuple[Block, ...],
    x_BTD: Tensor,
    rotary: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    masks: list[Masks | None],
) -> Tensor:
    for block, theirs in zip(blocks, masks, strict=True):
        x_BTD = block(x_BTD, rotary, dtype, masks=theirs)
    return x_BTD
