"""Causal multi-head self-attention, and the key-value cache that makes generation linear.

What: every token asks (query), offers (key) and hands over (value); a softmax over the offers of
all earlier tokens mixes their values (Vaswani et al. 2017, arXiv:1706.03762, section 3.2). Heads do
this side by side on slices of the width. Why causal: a token must not see what it is asked to
predict. Cost: 4 D^2 parameters; time grows with T^2, memory with T, because the scores are never
stored as a whole (``scaled_dot_product_attention`` works block by block).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.embeddings import rotate
from model.layers import Linear, Norm


@dataclass
class KVCache:
    """Keys and values of the tokens seen so far, one pair of [B, H, context, K] per layer.

    Generation reads one new token a step; without the cache each step would recompute the keys
    and values of the whole past, which never change.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    @classmethod
    def empty(
        cls, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype
    ) -> "KVCache":
        shape = (batch, config.heads, config.context, config.head_size)

        def one_per_layer() -> list[Tensor]:
            return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]

        return cls(one_per_layer(), one_per_layer())

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; return those of past and new tokens."""
        end = self.length + k_BHTK.shape[2]
        self.keys[layer][:, :, self.length : end] = k_BHTK
        self.values[layer][:, :, self.length : end] = v_BHTK
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Attention(nn.Module):
    """x [B, T, D] -> [B, T, D]; each position reads itself and what came before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        # one product for queries, keys and values: [q heads | k heads | v heads]
        self.qkv = Linear(config.width, 3 * config.width, config.bias)
        self.out = Linear(config.width, config.width, config.bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            # keeps the scores bounded, so that 16-bit training cannot blow up
            # (Dehghani et al. 2023, arXiv:2302.05442, section 2.1)
            self.q_norm = Norm(config.head_size, config.norm, config.bias)
            self.k_norm = Norm(config.head_size, config.norm, config.bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        batch, time, width = x_BTD.shape
        qkv_BHTK = self.qkv(x_BTD).view(batch, time, 3 * self.heads, -1).transpose(1, 2)
        q_BHTK, k_BHTK, v_BHTK = qkv_BHTK.split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK = self.q_norm(q_BHTK, x_BTD.dtype)
            k_BHTK = self.k_norm(k_BHTK, x_BTD.dtype)
        q_BHTK, k_BHTK = rotate(q_BHTK, *rotary), rotate(k_BHTK, *rotary)
        past = 0
        if cache is not None:
            past = cache.length
            k_BHTK, v_BHTK = cache.append(layer, k_BHTK, v_BHTK)
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BHTK,
            v_BHTK,
            attn_mask=_causal_mask(time, past, x_BTD.device) if past and time > 1 else None,
            dropout_p=self.dropout if self.training else 0.0,
            # one new token may read everything: it needs no mask
            is_causal=past == 0 and time > 1,
        )
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width))


def _causal_mask(time: int, past: int, device: torch.device) -> Tensor:
    """True where new token i may read position j: j <= past + i."""
    ones = torch.ones(time, past + time, dtype=torch.bool, device=device)
    return ones.tril(diagonal=past)
