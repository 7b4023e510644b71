"""A model that fits into no single device: each process keeps a part of every tensor.

What: parameters, gradients and the optimizers' numbers are cut into as many parts as there are
processes (ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054, stage 3; torch's FSDP2 does the work).
A block's parameters are brought together when it computes and let go behind it; its gradients are
added up and cut the moment they are complete, slice by slice. Everything else is as in parallel.py:
the same slots, sums and norm, and a state of whole tensors, so that checkpoints do not tell how
they came to be. Cost: 16 bytes a parameter are divided by the number of processes, and every slice
sends all parameters twice and all gradients once. AdamW works on parts alone; Muon needs whole
matrices, which every process puts together one by one, computing the same.

Why a step that runs out of memory ends the run here: the others are in the midst of bringing a
block together and cannot be told.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from model.gpt import GPT
from model.parallel import Replicas, Spread, local, local_part
from model.shortage import short_of_memory


class Shards(Replicas):
    """A team whose processes each hold a part of everything."""

    sharded = True

    def share(self, slots: int) -> tuple[int, int]:
        """All need as many slices, or they would wait for parameters that nobody brings."""
        assert slots % self.size == 0
        return super().share(slots)

    def place(self, model: GPT, device: torch.device) -> GPT:
        """Cut it before it is brought to the device, which need not hold it whole."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(device.type, (self.size,))
        for part in (*model.blocks, model):
            # the outermost too: between two steps all parameters are in parts
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for entry in ("loss", "token_losses"):
            register_fsdp_forward_method(model, entry)
        self.model = model.to(device)
        return self.model

    @contextlib.contextmanager
    def agreed(self, step: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not short_of_memory(error):
                raise
            said = str(error).partition("\n")[0]
            raise ValueError(
                f"step {step + 1:,} does not fit into the memory of process {self.rank + 1} of "
                f"{self.size}, and with --sharding on it cannot be tried again smaller: take a "
                "smaller --micro-batch, --activation-checkpointing on, more --processes or a "
                f"shorter model.context ({said})"
            ) from None

    def add_up(self, loss: Tensor, model: GPT) -> None:
        """The gradients are means over the processes by now, and should be sums."""
        dist.all_reduce(loss)
        gradients = [local(parameter.grad) for parameter in model.parameters()]
        torch._foreach_mul_(gradients, self.size)

    def joint_norm(self, norm: Tensor) -> Tensor:
        squares = norm.square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def spread(self, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        return _Parts(state, dict(self.model.named_parameters()))


class _Parts(Spread):
    """The same, each tensor cut as the parameter is that its name ends with."""

    def __init__(
        self, state: Mapping[str, Tensor] | None, parameters: Mapping[str, Tensor]
    ) -> None:
        super().__init__(state)
        self.parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        from torch.distributed.tensor import DTensor

        full = super().__getitem__(name)
        parts = name.split(".")
        ends = (".".join(parts[at:]) for at in range(len(parts)))
        like = next((self.parameters[end] for end in ends if end in self.parameters), None)
        if like is None:
            return full
        mine = local_part(full, like).to(like.device)
        return DTensor.from_local(
            *(mine, like.device_mesh, like.placements),
            shape=full.shape,
            stride=full.stride(),
        )
