"""A running mean of the weights: what a run ends with is the middle of its last steps.

What: after every step each averaged weight moves a little towards the trained one, so that it is an
exponential moving average over about 1 / (1 - decay) steps (Polyak and Juditsky 1992, SIAM J.
Control Optim. 30, for the idea; the exponential form as in Kingma and Ba 2015, arXiv:1412.6980,
section 7.2). Why: each step jumps about the valley that training follows; the mean lies nearer to
its floor, and where a text is read many times it also overfits less. The average never steers the
training, so switching it on changes nothing but what is kept. Cost: four bytes a parameter, and one
pass over the weights a step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """The mean of a model's weights by name; ``follow`` is called after every step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = dict(model.named_parameters())
        self.decay, self.steps = decay, 0
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """One step towards the weights as they are now.

        At first the mean is of all steps so far: a long memory of the random start helps nobody.
        """
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(list(self.mean.values()), list(self.parameters.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the mean into the model and the weights here; once more puts both back."""
        for name, parameter in self.parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """``average.steps`` and ``average.mean.<name>``."""
        named = {f"average.mean.{name}": value for name, value in self.mean.items()}
        return {"average.steps": torch.tensor(self.steps), **named}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``, its names without ``average.``."""
        self.steps = int(state["steps"])
        for name, value in self.mean.items():
            value.copy_(state[f"mean.{name}"])
