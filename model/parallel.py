"""Several processes, one step: who works on which part of a batch, and how the parts become one.

What: data parallelism. Every process of a team holds the whole model. Of the slots of a step each
takes a run of neighbours; gradients and losses are added up over all (all-reduce) once a step,
behind the last slice, and from there on every process computes the same. So the mathematics are
those of one process: samples and dropout's masks are functions of the slot, and the loss is divided
by the tokens of the whole batch before anything is added. A plain ``Team`` is that of one process,
and costs nothing.

Why not DistributedDataParallel: it sends gradients while the backward pass still runs. A process
that then runs out of memory has left the others in the middle of a sum that never ends. Here all
agree that everybody's gradients are there before the first is sent, so the step that one of them
has no memory for is done again, smaller, by all. The price is that nothing is sent while something
computes: once a step, 4 bytes a parameter, there and back. With sharding (sharding.py) it is
different: there the parameters themselves travel.

Short messages go over main memory (gloo), the device need not be waited for; gradients go from
device to device (NCCL), or over main memory between CPUs.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.gpt import GPT
from model.shortage import short_of_memory

_SMALL = 1 << 18  # numbers; below it a message of its own costs more than a copy


class Team:
    """Of one process. Its methods are what a trainer asks of any team."""

    rank, size, sharded = 0, 1, False

    def share(self, slots: int) -> tuple[int, int]:
        """The first of this process's slots, and the one behind its last."""
        return slots * self.rank // self.size, slots * (self.rank + 1) // self.size

    def largest_share(self, slots: int) -> int:
        return -(-slots // self.size)

    def meet(self, device: torch.device) -> None:
        """Begin to talk from device to device, which takes memory of it, and finds what hinders."""

    def place(self, model: GPT, device: torch.device) -> GPT:
        """The model on the device, as much of it as this process holds."""
        return model.to(device)

    def agreed(self, step: int) -> contextlib.AbstractContextManager[None]:
        """What is done within, each for itself, is done by all, or it is out of memory for all."""
        return contextlib.nullcontext()

    def add_up(self, loss: Tensor, model: GPT) -> None:
        """Add up, in place, what the processes have found out about the loss and its gradients."""

    def joint_norm(self, norm: Tensor) -> Tensor:
        """The norm of all gradients, of the norm of those that ``local`` gives here."""
        return norm

    def least(self, number: int) -> int:
        """The smallest of the numbers that the processes name."""
        return number

    def spread(self, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """The state that the first process has, for all; the others give None."""
        assert state is not None
        return state


class Replicas(Team):
    """A team whose processes each hold everything; torch.distributed must have been started."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def meet(self, device: torch.device) -> None:
        found = torch.ones((), device=device)
        dist.all_reduce(found)
        assert found.item() == self.size

    @contextlib.contextmanager
    def agreed(self, step: int) -> Iterator[None]:
        """Raises torch.OutOfMemoryError everywhere if it was raised anywhere.

        It is raised anew: the first one holds all that its frames do, while others still compute.
        """
        said = None
        try:
            yield
        except RuntimeError as error:
            if not short_of_memory(error):
                raise
            said = str(error)
        found = torch.tensor([said is not None, step, -step])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        short, latest, earliest = found.tolist()
        assert latest == -earliest == step, f"processes at steps {-earliest} and {latest}"
        if short:
            raise torch.OutOfMemoryError(said or "on the device of another process")

    def add_up(self, loss: Tensor, model: GPT) -> None:
        """Large gradients as they lie, needing no memory; the small ones together, with the loss.

        Sums come out the same to the last bit everywhere, so all that follows does as well.
        """
        gradients = []
        for parameter in model.parameters():
            if parameter.grad is None:  # a batch smaller than the team leaves some without a slot
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        small = [loss, *(each for each in gradients if each.numel() < _SMALL)]
        together = torch.cat([each.reshape(-1) for each in small])
        large = [each for each in gradients if each.numel() >= _SMALL]
        sums = [dist.all_reduce(each, async_op=True) for each in (together, *large)]
        for each in sums:
            each.wait()
        parts = together.split([each.numel() for each in small])
        views = [part.view_as(each) for part, each in zip(parts, small, strict=True)]
        torch._foreach_copy_(small, views)

    def least(self, number: int) -> int:
        found = torch.tensor(int(number))
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def spread(self, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        return Spread(state)


def tell(*words: Any) -> None:
    """Tell the others, who ``hear``, what JSON can say; torch's own way to send objects is pickle.

    Two messages, since they have to know how much there is.
    """
    line = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor(len(line)), src=0)
    dist.broadcast(line, src=0)


def hear() -> list[Any]:
    """What the first process tells, when it does."""
    length = torch.tensor(0)
    dist.broadcast(length, src=0)
    line = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(line, src=0)
    return json.loads(line.numpy().tobytes())


class Spread(Mapping[str, Tensor]):
    """The state of the first process, a tensor at a time, when all ask for it in one order.

    So none but the first needs its file, all have the same bits, and no process ever holds more of
    a state than its own and one tensor. Cost: the way of 16 bytes a parameter over main memory.
    """

    def __init__(self, state: Mapping[str, Tensor] | None) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        if self.state is not None:
            tensor = self.state[name].detach().cpu().contiguous()
            tell([*tensor.shape], str(tensor.dtype).removeprefix("torch."))
        else:
            shape, dtype = hear()
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(tensor, src=0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        raise TypeError("only the first process knows what there is")

    def __len__(self) -> int:
        raise TypeError("only the first process knows what there is")


# where processes share a tensor out (sharding.py); any other is whole and local


def local(tensor: Tensor) -> Tensor:
    """What of the tensor lies in this process."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of the tensor; if it is shared out, all processes must ask at the same time."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_part(full: Tensor, like: Tensor) -> Tensor:
    """What of ``full`` would lie in this process if it were shared out as ``like`` is."""
    if not hasattr(like, "device_mesh"):
        return full
    rank, parts = like.device_mesh.get_local_rank(), full.chunk(like.device_mesh.size())
    return parts[rank] if rank < len(parts) else full[:0]
