"""A token's step through the network as five kernels a layer.

What: ``fused_step`` computes what ``Block.forward`` does for one token of one text:

1. norm, queries, keys and values
2. positions, the new key and value into the cache, attention in ``_SPLITS`` parts of the past
3. the parts put together, out-projection, added to the stream
4. norm, up-projection, GELU
5. down-projection, added to the stream

Why by hand: an H100 reads a layer of 25 MB in eight microseconds and takes one or two to go from
one kernel to the next, so that kernels must be few, and each must ask for all its weights at once.
Cost: seconds for Triton to compile six kernels the first time; it keeps them on disk.
"""

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from model import kernels
from model.attention import Attention, KVCache
from model.gpt import GPT
from model.layers import Linear, Norm

_TILE, _WARPS = 8192, 4  # weights that a program asks for at once (16 KB in 16 bits), and by whom
_WIDEST = 4096  # columns of them; a program that normalises the stream needs the whole of it
_SPLITS = 16  # parts of the past
_PLACES = 64  # of the past, that a program looks at together


class _Work:
    """What kernels hand to each other; and how to start them."""

    def __init__(self, model: GPT, device: torch.device) -> None:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        config, dtype = model.config, model.compute_dtype
        self.stream_1D = empty(1, config.width)
        self.qkv_3D = empty(3 * config.width, dtype=dtype)
        self.hidden_F = empty(config.feed_forward, dtype=dtype)
        self.parts = (
            empty(config.heads, _SPLITS, config.head_size),
            empty(config.heads, _SPLITS),
            empty(config.heads, _SPLITS),
        )
        self.logits_1V = empty(1, model.vocab_size)
        self.size = config.head_size
        hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        self.early = {"EARLY": hopper and kernels.CAN_START_EARLY}
        if self.early["EARLY"]:
            self.early["launch_pdl"] = True

    def product(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        *,
        norm: Norm | None = None,
        parts: tuple[Tensor, Tensor] | None = None,
        gelu: bool = False,
        add: bool = False,
    ) -> None:
        """y = W x + b, or y += W x + b: see ``kernels.product``."""
        outputs, inputs = weight.shape
        block = min(triton.next_power_of_2(inputs), _WIDEST)
        assert inputs <= block or not (norm or parts)
        rows = max(1, _TILE // block)
        norm_bias = None if norm is None else norm.bias
        kernels.product[(triton.cdiv(outputs, rows),)](
            x,
            *(parts or (x, x)),
            weight if norm is None else norm.weight,
            weight if norm_bias is None else norm_bias,
            weight,
            weight if bias is None else bias,
            y,
            outputs,
            INPUTS=inputs,
            ROWS=rows,
            BLOCK=block,
            NORM="none" if norm is None else norm.kind,
            NORM_BIAS=norm_bias is not None,
            SPLITS=_SPLITS if parts else 0,
            SIZE=self.size,
            BIAS=bias is not None,
            GELU=gelu,
            ADD=add,
            num_warps=_WARPS,
            **self.early,
        )

    def linear(self, x: Tensor, layer: Linear, y: Tensor, **how) -> None:
        self.product(x, layer.weight, layer.bias, y, **how)

    def attend(
        self,
        attention: Attention,
        tables: tuple[Tensor, Tensor],
        keys_BHTK: Tensor,
        values_BHTK: Tensor,
        position_1: Tensor,
    ) -> None:
        """``parts`` of what attention gives for the new token, and its key and value cached."""
        norms = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
        biased = bool(norms) and norms[0].bias is not None
        vectors = [v for norm in norms for v in (norm.weight, norm.bias if biased else norm.weight)]
        heads, context, size = keys_BHTK.shape[1:]
        kernels.attend[(heads, _SPLITS)](
            self.qkv_3D,
            *(vectors or 4 * [tables[0]]),
            *tables,
            keys_BHTK,
            values_BHTK,
            position_1,
            *self.parts,
            context,
            size**-0.5,
            HEADS=heads,
            SIZE=size,
            HALF=triton.next_power_of_2(size // 2),
            SPLITS=_SPLITS,
            PLACES=_PLACES,
            NORM=norms[0].kind if norms else "none",
            NORM_BIAS=biased,
            num_warps=4,
            **self.early,
        )


def fused_step(model: GPT, cache: KVCache) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A step of ``decode.Fast`` for one text: ids [1, 1], their position [1] -> logits [1, V].

    Raises ValueError for a model that is too wide.
    """
    if model.config.width > _WIDEST:
        raise ValueError(f"width {model.config.width}: the kernels go up to {_WIDEST}")
    work = _Work(model, cache.keys[0].device)
    stream, qkv, hidden = work.stream_1D, work.qkv_3D, work.hidden_F
    tables = model.cos_TK, model.sin_TK

    def step(ids_B1: Tensor, position_1: Tensor, length: int) -> Tensor:
        torch.index_select(model.embedding.weight, 0, ids_B1.view(-1), out=stream)
        for block, keys_BHTK, values_BHTK in zip(model.blocks, cache.keys, cache.values):
            attention, feed_forward = block.attention, block.feed_forward
            work.linear(stream, attention.qkv, qkv, norm=block.attention_norm)
            work.attend(attention, tables, keys_BHTK, values_BHTK, position_1)
            shares, *parts = work.parts
            work.linear(shares, attention.out, stream, parts=tuple(parts), add=True)
            work.linear(stream, feed_forward.up, hidden, norm=block.feed_forward_norm, gelu=True)
            work.linear(hidden, feed_forward.down, stream, add=True)
        work.product(stream, model.head_weight, None, work.logits_1V, norm=model.final_norm)
        return work.logits_1V

    return step
