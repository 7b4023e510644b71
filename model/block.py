"""One transformer block: read from the residual stream, think, write back, twice.

What: ``x += attention(norm(x))``, then ``x += feed_forward(norm(x))``. Why pre-norm: the residual
stream itself is never normalised, so gradients reach the first layer unscaled and deep stacks train
without tricks (Xiong et al. 2020, arXiv:2002.04745). The feed-forward layer works on each token
alone; GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) lets a unit fade out smoothly instead of
cutting it off at zero. Cost: 4 D^2 + 2 D F parameters, 12 D^2 where F = 4 D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention, KVCache
from model.config import ModelConfig
from model.dropout import Masks
from model.layers import Linear, Norm


class FeedForward(nn.Module):
    """Two layers with GELU between: x [B, T, D] -> [B, T, F] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.feed_forward, config.bias)
        self.down = Linear(config.feed_forward, config.width, config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD)))


class Block(nn.Module):
    """Attention and feed-forward, each behind its own norm, each added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width, config.norm, config.bias)
        self.attention = Attention(config)
        self.feed_forward_norm = Norm(config.width, config.norm, config.bias)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        cache: KVCache | None = None,
        layer: int = 0,
        masks: Masks | None = None,
    ) -> Tensor:
        """The stream x keeps its type; each branch computes in ``dtype``.

        ``masks`` are those of this block.
        """
        branch_BTD = self.attention(self.attention_norm(x_BTD, dtype), rotary, cache, layer)
        x_BTD = masks.add(0, x_BTD, branch_BTD) if masks else x_BTD + branch_BTD
        branch_BTD = self.feed_forward(self.feed_forward_norm(x_BTD, dtype))
        return masks.add(1, x_BTD, branch_BTD) if masks else x_BTD + branch_BTD
