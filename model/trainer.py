"""The loop: draw a batch, slice it, add up gradients, clip, step the optimizer, measure.

What: ``Trainer.run_step`` does one optimizer step on the whole effective batch. Why slices: a batch
that does not fit in memory is worked off in micro-batches, whose gradients add up to the same sum;
the loss is averaged over the tokens of the *whole* batch, so slicing changes speed and never the
result (beyond float rounding). A step that runs out of memory all the same is done again in smaller
slices: everything drawn for it is a function of the seed, the step and the sample, and nothing is
changed before all its gradients are there. The trainer knows no files: ``state`` and ``load`` hand
everything that a run needs to go on, to the last bit, to whoever stores it. Cost: about 6 x
parameters operations a token, 16 bytes of memory a parameter with AdamW, and the activations of one
micro-batch. The host waits for the device only in float16, and where a report's floats are read.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from model.average import Average
from model.batches import Batches, random_bits
from model.config import TrainConfig
from model.gpt import GPT
from model.late import Late
from model.optimizer import AdamW, Muon, lr_share
from model.parallel import Team, local
from model.scaler import Scaler
from model.shortage import short_of_memory


@dataclass(frozen=True)
class StepReport:
    """What one step showed: mean loss in nats per token, gradient norm before clipping, rate.

    Whoever reads what was measured waits until the device has done this step, and not for what it
    was asked to do since: so whoever reads one step late keeps it busy.
    """

    step: int
    loss_there: Late
    norm_there: Late
    lr: float
    loss_scale: float = 1.0  # a norm that is no number may only mean that it was too high

    @cached_property
    def loss(self) -> float:
        return self.loss_there.item()

    @cached_property
    def gradient_norm(self) -> float:
        return self.norm_there.item()


class Trainer:
    """One run of one model on one device; ``step`` counts optimizer steps done.

    ``events`` says what had to be changed on the way, each with the step that it was done for.
    ``may_recompute``: may activation checkpointing be switched on if nothing else helps?
    ``team``: the processes that share the work; each of them has a trainer and calls the same.
    """

    def __init__(
        self,
        model: GPT,
        train: TrainConfig,
        batches: Batches,
        *,
        micro_batch: int,
        device: torch.device,
        may_recompute: bool = True,
        team: Team | None = None,
    ) -> None:
        self.team = team or Team()
        self.model, self.train, self.batches = self.team.place(model, device), train, batches
        self.micro_batch, self.device = min(micro_batch, self.most_slots), device
        self.may_recompute = may_recompute
        self.events: list[tuple[int, str]] = []
        self.optimizers = build_optimizers(model, train)
        self.average = Average(model, train.ema) if train.ema else None
        self.scaler = Scaler()  # at work in float16 alone; kept for a machine that needs it again
        self.step = 0
        self.lr_factor = 1.0  # share of the recipe's learning rate, for a run that diverged

    @property
    def most_slots(self) -> int:
        """Slots of a step that a process works on, at most."""
        return self.team.largest_share(self.train.batch)

    def run_step(self) -> StepReport:
        """One optimizer step on ``train.batch`` windows."""
        self.model.train()
        loss, norm = self._gradients()
        loss_scale = self.scaler.factor if self.scaled else 1.0  # before it changes
        share = self.lr_factor * lr_share(self.step, self.train)
        if not self.scaled or self.scaler.finite(norm):
            for optimizer in self.optimizers.values():
                optimizer.step(share)
            if self.average:
                self.average.follow()
        self.step += 1
        return StepReport(self.step, Late(loss), Late(norm), self.train.lr * share, loss_scale)

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """Loss and norm of the step; what memory does not hold is tried again in smaller slices.

        Raises torch.OutOfMemoryError where a process of several is short of it behind the vote: the
        others are adding up, and would wait for one that turns back alone.
        """
        while True:
            voted = False
            try:
                with self.team.agreed(self.step):
                    loss = self._slices()
                voted = self.team.size > 1
                self.team.add_up(loss, self.model)
                return loss, self._clip()
            except RuntimeError as error:
                if voted or not short_of_memory(error):
                    raise
                said = str(error).partition("\n")[0]
            # not above: there the error still holds all that its frames do
            self._make_room(said)

    def _slices(self) -> Tensor:
        """The loss of this process's slots, and its gradients in the model."""
        self.model.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        begin, end = self.team.share(self.train.batch)
        for first in range(begin, end, self.micro_batch):
            loss += self._backward(first, min(first + self.micro_batch, end))
        return loss

    def _make_room(self, said: str) -> None:
        """Take less memory from here on. Raises ValueError if there is nothing left to do."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        if self.micro_batch > 1:
            self.micro_batch = (self.micro_batch + 1) // 2
            done = f"micro-batch {self.micro_batch}"
        elif self.may_recompute and not self.model.recompute:
            self.model.recompute = True
            done = "activation checkpointing"
        else:
            allow = "" if self.model.recompute else "--activation-checkpointing auto, "
            raise ValueError(
                f"step {self.step + 1:,} does not fit into the memory of {self.device}, one "
                f"sequence at a time: take {allow}a shorter model.context, a smaller --size or "
                f"a device with more memory ({said})"
            )
        self.events.append((self.step + 1, f"out of memory: {done} from here on"))

    def rehearse(self, size: int) -> None:
        """Take all the memory that a step in slices of ``size`` takes, and leave no trace of it.

        Raises torch.OutOfMemoryError, or an error of the kinds of shortage.py, if it is not there.
        """
        here = [self.device] if self.device.type == "cuda" else []
        self.model.train()
        try:
            with torch.random.fork_rng(devices=here):
                for parameter in self.model.parameters():  # the sum of the slices before
                    parameter.grad = torch.zeros_like(parameter)
                self._backward(0, size)
            # the optimizers' steps need another number a parameter for a while
            _ = [torch.empty_like(parameter) for parameter in self.model.parameters()]
        finally:
            self.model.zero_grad(set_to_none=True)

    @property
    def scaled(self) -> bool:
        """Does it compute in float16, whose gradients must be scaled?"""
        return self.model.compute_dtype == torch.float16

    def _backward(self, first: int, last: int) -> Tensor:
        """Add the gradient of slots first..last; returns their share of the mean loss."""
        inputs, targets = map(self._moved, self.batches.slice(self.step, first, last))
        keys = [random_bits(self.train.seed, 2, self.step, slot) for slot in range(first, last)]
        if self.model.config.attention_dropout:  # drawn inside torch's kernel, as it slices
            torch.manual_seed(keys[0])
        masks = self.model.masks(keys, inputs.shape[1])
        tokens = self.train.batch * self.model.config.context
        loss = self.model.loss(inputs, targets, masks) / tokens
        (loss * self.scaler.factor if self.scaled else loss).backward()
        return loss.detach()

    def _moved(self, rows: np.ndarray) -> Tensor:
        """On the device; from pinned memory, because the host waits for copies from any other."""
        # as it lies on the device: of rows with gaps another copy would be made, that is not pinned
        tensor = torch.from_numpy(np.ascontiguousarray(rows))
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _clip(self) -> Tensor:
        """Scale all gradients so that their joint norm is at most ``train.clip``."""
        gradients = [local(p.grad) for p in self.model.parameters()]
        if self.scaled:
            torch._foreach_div_(gradients, self.scaler.factor)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        norm = self.team.joint_norm(norm)
        if self.train.clip:
            # Pascanu et al. 2013, arXiv:1211.5063, algorithm 1
            torch._foreach_mul_(gradients, (self.train.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The result so far: the running mean of the weights if the recipe wants one, else they."""
        return self.average.mean if self.average else dict(self.model.named_parameters())

    @contextlib.contextmanager
    def result(self) -> Iterator[GPT]:
        """The model with ``weights()``, for as long as it is looked at."""
        if self.average is None:
            yield self.model
            return
        self.average.swap()
        try:
            yield self.model
        finally:
            self.average.swap()

    def state(self) -> dict[str, Tensor]:
        """Weights, optimizer state and step as named tensors (views: copy before the next step)."""
        return {
            "step": torch.tensor(self.step),
            **{f"model.{name}": p.detach() for name, p in self.model.named_parameters()},
            **self.scaler.state(),
            **(self.average.state() if self.average else {}),
            **{
                f"{kind}.{name}": value
                for kind, optimizer in self.optimizers.items()
                for name, value in optimizer.state().items()
            },
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state()`` of a trainer of the same configuration.

        Each tensor is asked for once and let go, so ``state`` may read them one by one.
        """
        self.step = int(state["step"])
        self.scaler.load(state["scaler"])
        if self.average:
            self.average.load(_Part(state, "average."))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[f"model.{name}"])
        for kind, optimizer in self.optimizers.items():
            optimizer.load(_Part(state, f"{kind}."))


class _Part(dict[str, Tensor]):
    """What of a state is named ``prefix...``, by the rest of the name; looked up when needed."""

    def __init__(self, whole: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.whole, self.prefix = whole, prefix

    def __missing__(self, name: str) -> Tensor:
        return self.whole[self.prefix + name]


def build_optimizers(model: GPT, train: TrainConfig) -> dict[str, AdamW | Muon]:
    """The optimizers of a run by name; each owns some of the model's parameters.

    Muon multiplies in bfloat16 if the model computes in it by now.
    """
    groups = model.parameter_groups()
    betas = (train.beta1, train.beta2)
    decayed = dict(groups["tables"])
    optimizers: dict[str, AdamW | Muon] = {}
    if train.optimizer == "muon":
        # not in float16, whose range is too small for Muon
        dtype = torch.bfloat16 if model.compute_dtype == torch.bfloat16 else torch.float32
        optimizers["muon"] = Muon(
            groups["matrices"], train.muon_lr, weight_decay=train.weight_decay, dtype=dtype
        )
    else:
        decayed |= groups["matrices"]
    optimizers["decayed"] = AdamW(decayed, train.lr, weight_decay=train.weight_decay, betas=betas)
    optimizers["free"] = AdamW(groups["vectors"], train.lr, weight_decay=0.0, betas=betas)
    return optimizers
