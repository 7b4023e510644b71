"""Head and cross-entropy in one, a slice of tokens at a time.

What: the loss of a batch and its gradients for the final vectors and the head, without ever holding
the logits of the whole batch. Why: logits are the largest tensor of a small model (B x T x V; with
32k tokens 64 times as large as vectors 512 wide), they are needed once forwards and once backwards,
and both need the same softmax; so the gradient is taken at once, while a slice is in the cache.
``reference_loss`` is the same in two lines and the oracle of this one. Cost: the same three matrix
products and a slice's logits of memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SLICE = 512  # tokens; its logits should fit a core's cache


def reference_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The sum of -ln softmax(x W^T)[target], in nats, as one would write it down."""
    logits_NV = F.linear(x_ND, weight_VD.to(x_ND.dtype)).float()
    return F.cross_entropy(logits_NV, targets_N, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    """The gradient of -ln softmax(z)[target] for the logits z is softmax(z) - onehot(target)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor
    ) -> Tensor:
        head_VD = weight_VD.to(x_ND.dtype)
        x_gradient_ND = torch.empty_like(x_ND)
        weight_gradient_VD = torch.zeros_like(weight_VD)
        total = torch.zeros((), device=x_ND.device)
        for first in range(0, len(x_ND), SLICE):
            part = slice(first, first + SLICE)
            x_SD, targets_S1 = x_ND[part], targets_N[part, None]
            logits_SV = F.linear(x_SD, head_VD).float()
            logs_SV = logits_SV.log_softmax(dim=-1)
            total -= logs_SV.gather(1, targets_S1).sum()
            gradient_SV = logs_SV.exp_()
            gradient_SV.scatter_add_(1, targets_S1, gradient_SV.new_full(targets_S1.shape, -1.0))
            gradient_SV = gradient_SV.to(x_ND.dtype)
            x_gradient_ND[part] = gradient_SV @ head_VD
            weight_gradient_VD += gradient_SV.mT @ x_SD
        ctx.save_for_backward(x_gradient_ND, weight_gradient_VD)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        return x_gradient_ND * gradient, weight_gradient_VD * gradient, None


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The same as ``reference_loss``: vectors [N, D], head [V, D], target ids [N] -> scalar."""
    if torch.is_grad_enabled():
        return _HeadLoss.apply(x_ND, weight_VD, targets_N)
    return token_losses(x_ND, weight_VD, targets_N).sum()


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """-ln softmax(x W^T)[target] of each token on its own: [N], in nats, for measuring."""
    head_VD = weight_VD.to(x_ND.dtype)
    slices = zip(x_ND.split(SLICE), targets_N.split(SLICE))
    return torch.cat(
        [F.cross_entropy(F.linear(x, head_VD).float(), y, reduction="none") for x, y in slices]
    )
