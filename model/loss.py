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

from model.compile import compiled

SLICE = 512  # tokens on a CPU; its logits should fit a core's cache
_SHARE = 32  # the part of a GPU's memory that a slice may take
# tokens whose gradients for the head may be added up in float16, which ends at 65,504: in a text of
# bytes the largest sum was seen at a third of the tokens
_NARROW = 1 << 15


def reference_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The sum of -ln softmax(x W^T)[target], in nats, as one would write it down."""
    logits_NV = F.linear(x_ND, weight_VD.to(x_ND.dtype)).float()
    return F.cross_entropy(logits_NV, targets_N, reduction="sum")


def slice_loss(x_SD: Tensor, head_VD: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a slice, and its gradients for the vectors [S, D] and the head [V, D].

    The gradient of -ln softmax(z)[target] for the logits z is softmax(z) - onehot(target).
    """
    logs_SV = F.linear(x_SD, head_VD).float().log_softmax(dim=-1)
    targets_S1 = targets_S[:, None]
    loss = -logs_SV.gather(1, targets_S1).sum()
    # a comparison instead of a write to one place a row: compiled, it is part of the same pass
    onehot_SV = torch.arange(len(head_VD), device=x_SD.device) == targets_S1
    gradient_SV = logs_SV.exp_().sub_(onehot_SV.float()).to(x_SD.dtype)
    return loss, gradient_SV @ head_VD, gradient_SV.mT @ x_SD


def slice_size(vocab_size: int, device: torch.device, dtype: torch.dtype) -> int:
    """Tokens whose logits are there at once: on a GPU as many as make its products large."""
    if device.type != "cuda":
        return SLICE
    room = torch.cuda.get_device_properties(device).total_memory // _SHARE
    numbers = room // 10  # in float32 twice and in 16 bits once
    tokens = numbers // vocab_size // SLICE * SLICE
    if dtype == torch.float16:
        tokens = min(tokens, _NARROW)
    return max(SLICE, tokens)


class _HeadLoss(torch.autograd.Function):
    """Both gradients are ready when the loss is; the way back only scales them."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        compile: bool,
    ) -> Tensor:
        one_slice = compiled(slice_loss) if compile else slice_loss
        size = slice_size(len(weight_VD), x_ND.device, x_ND.dtype)
        head_VD = weight_VD.to(x_ND.dtype)
        x_gradient_ND = torch.empty_like(x_ND)
        weight_gradient_VD = torch.zeros_like(weight_VD)
        total = torch.zeros((), device=x_ND.device)
        for first in range(0, len(x_ND), size):
            part = slice(first, first + size)
            loss, x_gradient_ND[part], part_VD = one_slice(x_ND[part], head_VD, targets_N[part])
            weight_gradient_VD += part_VD
            total += loss
        ctx.save_for_backward(x_gradient_ND, weight_gradient_VD)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        return x_gradient_ND * gradient, weight_gradient_VD * gradient, None, None


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, compile: bool = False) -> Tensor:
    """The same as ``reference_loss``: vectors [N, D], head [V, D], target ids [N] -> scalar."""
    if torch.is_grad_enabled():
        return _HeadLoss.apply(x_ND, weight_VD, targets_N, compile)
    return token_losses(x_ND, weight_VD, targets_N).sum()


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """-ln softmax(x W^T)[target] of each token on its own: [N], in nats, for measuring."""
    head_VD = weight_VD.to(x_ND.dtype)
    slices = zip(x_ND.split(SLICE), targets_N.split(SLICE))
    return torch.cat(
        [F.cross_entropy(F.linear(x, head_VD).float(), y, reduction="none") for x, y in slices]
    )
