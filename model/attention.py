"""Causal multi-head self-attention, and the key-value cache that makes generation linear.

What: every token asks (query), offers (key) and hands over (value); a softmax over the offers of
all earlier tokens mixes their values (Vaswani et al. 2017, arXiv:1706.03762, section 3.2). Heads do
this side by side on slices of the width. Why causal: a token must not see what it is asked to
predict. Cost: 4 D^2 parameters; time grows with T^2. Written out (``attention``) memory does, too;
fused into one kernel that works block by block (``fused_attention``) it grows with T alone.
"""

import math
from collections.abc import Callable
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
        self.heads, self.dropout = config.heads, config.attention_dropout
        # one product for queries, keys and values: [q heads | k heads | v heads]
        self.qkv = Linear(config.width, 3 * config.width, config.bias)
        self.out = Linear(config.width, config.width, config.bias)
        # rotation and attention in one, of q, k and v together, where that is compiled
        self.in_one: Callable[[Tensor, int, Tensor, Tensor], Tensor] | None = None
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
        qkv_BTNK = self.qkv(x_BTD).view(batch, time, 3 * self.heads, -1)
        dropout = self.dropout if self.training else 0.0
        if self.in_one and cache is None and self.q_norm is None and not dropout:
            y_BTHK = self.in_one(qkv_BTNK, self.heads, *rotary)
            return self.out(y_BTHK.flatten(2))
        qk_BTNK, v_BTHK = qkv_BTNK.split((2 * self.heads, self.heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTHK = qk_BTNK.split(self.heads, dim=2)
            normed = self.q_norm(q_BTHK, x_BTD.dtype), self.k_norm(k_BTHK, x_BTD.dtype)
            qk_BTNK = torch.cat(normed, dim=2)
        # together, because a small model's time on a GPU goes by the number of kernels
        turned_BTNK = rotate(qk_BTNK, *(table_TK[:, None] for table_TK in rotary))
        parts = (*turned_BTNK.split(self.heads, dim=2), v_BTHK)
        q_BHTK, k_BHTK, v_BHTK = (part.transpose(1, 2) for part in parts)
        past = 0
        if cache is not None:
            past = cache.length
            k_BHTK, v_BHTK = cache.append(layer, k_BHTK, v_BHTK)
        y_BHTK = fused_attention(q_BHTK, k_BHTK, v_BHTK, past, dropout)
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width))


def attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, past: int = 0, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v, written out: [B, H, T, K], the lesson and the oracle.

    New token i (of T) may read position j (of S = past + T) if j <= past + i; all else gets minus
    infinity, of which softmax makes zero. sqrt(K) keeps the scores of random vectors at deviation
    one whatever the size of a head, so that softmax starts neither flat nor saturated.
    """
    batch, heads, time, size = q_BHTK.shape
    q_NTK, k_NSK, v_NSK = (x.flatten(0, 1) for x in (q_BHTK, k_BHSK, v_BHSK))
    mask_TS = q_NTK.new_full((time, past + time), -math.inf).triu(past + 1)
    scores_NTS = torch.baddbmm(mask_TS, q_NTK, k_NSK.mT, alpha=size**-0.5)
    weights_NTS = F.dropout(scores_NTS.softmax(dim=-1), dropout)
    return (weights_NTS @ v_NSK).view(batch, heads, time, size)


def fused_attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, past: int = 0, dropout: float = 0.0
) -> Tensor:
    """The same in one kernel that never holds all scores (Dao et al. 2022, arXiv:2205.14135)."""
    time = q_BHTK.shape[2]
    mask_TS = None
    if past and time > 1:
        ones_TS = torch.ones(time, past + time, dtype=torch.bool, device=q_BHTK.device)
        mask_TS = ones_TS.tril(diagonal=past)
    # the kernel's own causal mask is for past = 0; one token alone may read everything
    causal = past == 0 and time > 1
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_TS, dropout_p=dropout, is_causal=causal
    )
