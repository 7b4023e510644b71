"""From logits to the next token: greedy, temperature, top-k, top-p.

What: a model ends in one score (logit) per token of the vocabulary; softmax turns them into
probabilities, and somebody has to choose. Always the likeliest is *greedy*, and text of that kind
soon goes round in circles; drawing from the probabilities as they are lets in, every few words, one
of the thousands of tokens that are each nearly impossible. The methods here lie between the two:
they reshape the distribution or cut off its tail, then draw. Each is a pure function on
logits [B, V], float32, and gives logits back, so that they read as a chain. Cost: O(V) a row,
O(V log V) with top-p, which has to sort.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SamplerConfig:
    """How to choose, applied in the order of the fields. The defaults draw from the model as is."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (
                self.temperature == 0 or 1e-45 <= self.temperature < math.inf,
                "0 (greedy), or finite and at least 1e-45",
            ),
            "top_k": (self.top_k >= 0, "at least 0 (0 keeps every token)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 keeps every token)"),
            "seed": (0 <= self.seed < 2**63, "at least 0 and below 2^63"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                value = getattr(self, name)
                raise ValueError(f"{name} = {value!r} is out of range: it must be {allowed}")


def apply_temperature(logits_BV: Tensor, temperature: float) -> Tensor:
    """Divide by a temperature above 0: below 1 sharpens the distribution, above 1 flattens it.

    The name is physics': these are the Boltzmann probabilities of states with energy -logit
    (Ackley et al. 1985, "A Learning Algorithm for Boltzmann Machines"). The largest logit is moved
    to 0 first, which softmax does not see, so that a small temperature does not divide its
    way to infinity.
    """
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Forbid (set to minus infinity) all but the k likeliest tokens of each row.

    Fan et al. 2018, "Hierarchical Neural Story Generation", arXiv:1805.04833, section 5.4. Among
    equals at the k-th place the lower ids stay: exactly k do, and the same ones on every device.
    """
    if k >= logits_BV.shape[-1]:
        return logits_BV
    last_B1 = torch.topk(logits_BV, k).values[..., -1:]
    above_BV, equal_BV = logits_BV > last_B1, logits_BV == last_B1
    room_B1 = k - above_BV.sum(dim=-1, keepdim=True)
    kept_BV = above_BV | (equal_BV & (equal_BV.cumsum(dim=-1) <= room_B1))
    return logits_BV.masked_fill(~kept_BV, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Forbid all but the *nucleus* of each row: the fewest tokens with probability >= p together.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", arXiv:1904.09751,
    section 3.1. Where the model is sure the nucleus is one token, where it is not it is hundreds;
    top-k takes the same number in both cases. Equals are taken in the order of their ids.
    """
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    mass_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1)
    # a token stays while those before it fall short of p; the first has none before it
    before_BV = F.pad(mass_BV[..., :-1], (1, 0))
    cut_BV = torch.empty_like(before_BV, dtype=torch.bool).scatter_(-1, order_BV, before_BV >= p)
    return logits_BV.masked_fill(cut_BV, -math.inf)


def warp(logits_BV: Tensor, config: SamplerConfig) -> Tensor:
    """Temperature, then top-k, then top-p, as in Hugging Face ``transformers``.

    The order matters: top-p measures what the temperature has made of the probabilities of those
    tokens that top-k has left. Needs ``temperature > 0``.
    """
    logits_BV = apply_temperature(logits_BV, config.temperature)
    if config.top_k:
        logits_BV = keep_top_k(logits_BV, config.top_k)
    if config.top_p < 1:
        logits_BV = keep_top_p(logits_BV, config.top_p)
    return logits_BV


def draw(logits_BV: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row with probability softmax(logits): ids [B], on the device of the logits.

    A random number u in [0, 1) falls into one token's stretch of the cumulative probabilities
    (the inversion method: Devroye 1986, "Non-Uniform Random Variate Generation", section III.2).
    ``generator`` lives on the CPU, so that a seed means the same draws on every device; float64,
    because float32 has too few values of u to tell tokens rarer than 6e-8 apart. Nothing here waits
    for a GPU: the number goes there, the probabilities stay.
    """
    cumulative_BV = logits_BV.softmax(dim=-1).double().cumsum(dim=-1)
    u_B1 = torch.rand(len(logits_BV), 1, generator=generator, dtype=torch.float64)
    u_B1 = u_B1.to(logits_BV.device, non_blocking=True)
    # right=True: the first token whose cumulative probability is above u, so never one with p = 0
    ids_B1 = torch.searchsorted(cumulative_BV, u_B1 * cumulative_BV[:, -1:], right=True)
    return ids_B1.squeeze(-1)


def sample(logits_BV: Tensor, config: SamplerConfig, generator: torch.Generator) -> Tensor:
    """The next token of each row: logits [B, V] -> ids [B].

    Greedy draws nothing and leaves ``generator`` as it was; all else takes one number a row.
    """
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    device = logits_BV.device
    if device.type == "mps" or torch.are_deterministic_algorithms_enabled():
        # Apple's GPUs have no float64, and no GPU promises the same running sums every time
        logits_BV = logits_BV.cpu()
    return draw(warp(logits_BV.float(), config), generator).to(device)
