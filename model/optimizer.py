"""The optimizers, and how the learning rate moves.

``AdamW`` steps every parameter by its gradient's running mean over the root of its running mean
square (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), with weight decay applied to the weights
themselves instead of the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).
Cost: two float32 numbers per parameter.

``Muon`` is the other choice for the blocks' matrices: it replaces the momentum matrix by the
nearest orthogonal one, so that every direction moves equally far (Jordan et al. 2024,
kellerjordan.github.io/posts/muon). Cost: one float32 number per parameter and a few small matrix
products a step.

Both keep their state as named tensors, so that a checkpoint is a flat file that anyone can read.
"""

import math

import torch
from torch import Tensor
from torch.nn import Parameter

from model.config import TrainConfig
from model.parallel import local, local_part, whole

_TOGETHER = 1 << 23  # numbers; more at once would cost memory and gain nothing
_ITERATIONS = 5  # of Muon's polynomial


def lr_share(step: int, train: TrainConfig) -> float:
    """The share of the peak rate that step ``step`` (from 0) uses, in [0, 1].

    A linear warm-up, then either a cosine down to ``final_lr`` (Loshchilov and Hutter 2017,
    arXiv:1608.03983, equation 5) or a plateau and a straight line down to it.
    """
    if step < train.warmup:
        return (step + 1) / train.warmup
    done = (step - train.warmup) / max(1, train.steps - train.warmup)
    if train.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        share = min(1.0, (1 - done) / train.decay) if train.decay else 1.0
    return train.final_lr + (1 - train.final_lr) * share


class AdamW:
    """Adam with decoupled weight decay on named parameters.

    ``step`` follows ``torch.optim.AdamW`` operation by operation; a test holds them together.
    The ``_foreach`` calls are the formula of the line above them on whole lists of tensors.
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        lr: float,
        *,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.betas, self.eps, self.steps = betas, eps, 0
        self.mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.square = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One update at learning rate ``lr * scale`` from the gradients in ``.grad``."""
        self.steps += 1
        beta1, beta2 = self.betas
        lr = self.lr * scale
        weights = list(self.parameters.values())
        gradients = [weight.grad for weight in weights]
        means, squares = list(self.mean.values()), list(self.square.values())
        # w -= lr * decay * w
        torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        # mean += (1 - beta1) * (gradient - mean)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        # square = beta2 * square + (1 - beta2) * gradient^2
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        # both start at zero and are too small at first: divide by 1 - beta^t
        root = torch._foreach_sqrt(squares)
        torch._foreach_div_(root, math.sqrt(1 - beta2**self.steps))
        torch._foreach_add_(root, self.eps)
        # w -= lr * mean / (root + eps)
        torch._foreach_addcdiv_(weights, means, root, -lr / (1 - beta1**self.steps))

    def state(self) -> dict[str, Tensor]:
        """Every number needed to go on: ``mean.<name>``, ``square.<name>`` and ``steps``."""
        return {
            "steps": torch.tensor(self.steps),
            **{f"mean.{name}": value for name, value in self.mean.items()},
            **{f"square.{name}": value for name, value in self.square.items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for name in self.parameters:
            self.mean[name].copy_(state[f"mean.{name}"])
            self.square[name].copy_(state[f"square.{name}"])


class Muon:
    """Momentum, orthogonalised, for matrices [outputs, inputs].

    A fused query-key-value matrix is treated as its three parts: orthogonalising them as one
    would tie their scales together. ``dtype`` is what orthogonalising multiplies in: bfloat16 is
    exact enough for it, and faster where the processor has it.
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        lr: float,
        *,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.momentum, self.dtype = momentum, dtype
        self.mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.groups = self._alike()

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One update at learning rate ``lr * scale`` from the gradients in ``.grad``."""
        lr = self.lr * scale
        weights = list(self.parameters.values())
        gradients = [weight.grad for weight in weights]
        means = list(self.mean.values())
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        # Nesterov: look one momentum step ahead
        ahead = torch._foreach_lerp(gradients, means, self.momentum)
        torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        updates = dict(zip(self.parameters, ahead))
        for names in self.groups:
            # [parts of all of them, outputs, inputs]; the parts of one are neighbours in memory
            update_NOI = torch.cat([self._parts(name, whole(updates.pop(name))) for name in names])
            rows, columns = update_NOI.shape[-2:]
            # a tall matrix has more rows to move: keep the size of each one's output change
            size = max(1.0, rows / columns) ** 0.5
            moves = orthogonalise(update_NOI, self.dtype).float().chunk(len(names))
            group = [self.parameters[name] for name in names]
            moves = [local_part(move.flatten(0, 1), like) for move, like in zip(moves, group)]
            torch._foreach_add_([local(weight) for weight in group], moves, alpha=-lr * size)

    @staticmethod
    def _parts(name: str, matrix_OI: Tensor) -> Tensor:
        parts = 3 if name.endswith("qkv.weight") else 1
        return matrix_OI.view(parts, -1, matrix_OI.shape[-1])

    def _alike(self) -> list[list[str]]:
        """Names of matrices of one shape, up to ``_TOGETHER`` numbers: worked on in one go."""
        groups: dict[tuple[int, ...], list[list[str]]] = {}
        for name, weight in self.parameters.items():
            same = groups.setdefault((*weight.shape, name.endswith("qkv.weight")), [[]])
            if (len(same[-1]) + 1) * weight.numel() > _TOGETHER and same[-1]:
                same.append([])
            same[-1].append(name)
        return [names for same in groups.values() for names in same]

    def state(self) -> dict[str, Tensor]:
        return {f"mean.{name}": value for name, value in self.mean.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in self.mean.items():
            value.copy_(state[f"mean.{name}"])


def orthogonalise(x_NOI: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The orthogonal matrix nearest to each of N matrices, roughly, in ``dtype``.

    For X = U S V^T this returns about U V^T, by iterating an odd polynomial that drives every
    singular value towards 1 (Newton-Schulz; coefficients from Jordan et al. 2024, chosen for speed
    over accuracy: values end in about [0.7, 1.2], which training does not notice).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x_NOI.shape[-2] <= x_NOI.shape[-1]
    x = x_NOI if wide else x_NOI.mT  # the Gram matrix below is then the smaller one
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        # x = a x + (b gram + c gram gram) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
