"""Make training fit the machine: how many sequences at once, and what to keep of them.

Neither changes what is trained, beyond the rounding of sums, so both may be chosen by what there
is. On a GPU they are found by trying: halves of the batch from the smallest up, each forwards and
backwards, until one does not fit. Two rules:

* A tenth of the memory is left alone while trying. Looks at the validation split, memory in pieces
  and the user's own screen want some; what comes short all the same costs a step done twice.
* Activation checkpointing costs a third more work, so ``auto`` does without where 4,096 tokens fit,
  which should keep a GPU busy (a choice, not measured), or the whole batch. Else it is used if more
  sequences fit with it.

What was found is remembered in this machine's cache; not if something else holds memory of the GPU,
which is no property of it. A lost or damaged memory costs a search. On a CPU there is nothing to
search: 16,384 tokens are few enough for its caches and enough for its cores. Cost: about two steps.
"""

import contextlib
import gc
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from model.shortage import short_of_memory
from model.trainer import Trainer
from pipeline.errors import StoreError
from pipeline.hardware import first_line
from pipeline.hashing import canonical, digest
from pipeline.machine import Machine
from pipeline.memory import BUSY, SPARE, Fits, choose, halves
from pipeline.store.disk import Disk
from pipeline.store.places import caches
from pipeline.ui import human_bytes

ALONE = 0.8  # of it must be ours or free; the rest is what CUDA and a desktop take
ON_CPU = 1 << 14  # tokens
_FORMAT = 3  # of what is remembered; raise it when the model takes other amounts of memory


def fit(trainer: Trainer, machine: Machine) -> None:
    """Set the trainer's micro-batch and its model's ``recompute``, as told or as fits.

    Of several processes each looks for itself, and all take what the one with the least found.
    Raises ValueError if not one sequence fits. To be called before the first step.
    """
    asked, context = machine.activation_checkpointing, trainer.model.config.context
    trainer.model.recompute = asked == "on"
    if machine.micro_batch:
        trainer.micro_batch = min(machine.micro_batch, trainer.most_slots)
    elif trainer.device.type != "cuda":
        trainer.micro_batch = min(max(1, ON_CPU // context), trainer.most_slots)
    elif trainer.team.sharded:  # trying would leave the others waiting for what did not fit
        trainer.micro_batch = min(max(1, BUSY // context), trainer.most_slots)
        trainer.model.recompute = asked != "off"
    else:
        size, recompute = _find(trainer, machine)
        size = trainer.team.least(size)
        recompute = not trainer.team.least(not recompute)
        trainer.micro_batch, trainer.model.recompute = size, recompute
        torch.cuda.reset_peak_memory_stats(trainer.device)  # trying is not training


def _find(trainer: Trainer, machine: Machine) -> tuple[int, bool]:
    """What was remembered of this device and model, or what is found now."""
    asked = machine.activation_checkpointing
    device, config = trainer.device, trainer.model.config
    properties = torch.cuda.get_device_properties(device)
    name = _name(trainer, machine, properties.name, properties.total_memory)
    disk = _disk()
    found = _recall(disk, name)
    if found is None:
        with _spared(device) as ours:
            said: list[str] = []
            fits = _trial(trainer, said)
            found = choose(halves(trainer.most_slots), config.context, asked, fits)
        if not found[0]:
            raise ValueError(f"{_too_small(config.context, asked, properties, ours)} ({said[-1]})")
        if ours > ALONE:
            _remember(disk, name, found)
    return found


def _too_small(context: int, asked: str, card: Any, ours: float) -> str:
    """What to do where not one sequence fits into the share of the card that is ours."""
    room, first = f"the {human_bytes(card.total_memory)} of {card.name}", "take "
    if ours <= ALONE:
        room = f"{human_bytes(int(ours * card.total_memory))} of {room}"
        first = "something else holds the rest (nvidia-smi says what): end that, or take "
    if asked == "off":
        first += "--activation-checkpointing auto, "
    return (
        f"not one sequence of {context:,} tokens fits into {room}: {first}a shorter "
        "model.context, a smaller --size or tokenizer.vocab_size, or another --device"
    )


def _trial(trainer: Trainer, said: list[str]) -> Fits:
    """Tries a size; what was said when it did not fit is added to ``said``."""

    def fits(size: int, recompute: bool) -> bool:
        trainer.model.recompute, held = recompute, True
        try:
            trainer.rehearse(size)
        except RuntimeError as error:
            if not short_of_memory(error):
                raise
            said.append(first_line(error))
            held = False
        gc.collect()
        torch.cuda.empty_cache()
        return held

    return fits


@contextlib.contextmanager
def _spared(device: torch.device) -> Iterator[float]:
    """Leave a part of the device's memory alone; tells what share of it is ours or free.

    torch itself then refuses what is beyond, so no other process runs out because of a trial, and
    Windows does not move it to main memory, which fits everything and is slow.
    """
    free, total = torch.cuda.mem_get_info(device)
    ours = (free + torch.cuda.memory_reserved(device)) / total
    torch.cuda.set_per_process_memory_fraction(max(0.0, ours - SPARE), device.index)
    try:
        yield ours
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


def _name(trainer: Trainer, machine: Machine, chip: str, memory: int) -> str:
    """Of all that decides what fits."""
    facts = {
        "format": _FORMAT,
        "chip": chip,
        "memory": memory,
        "torch": torch.__version__,
        "model": asdict(trainer.model.config),
        "vocabulary": trainer.model.vocab_size,
        "precision": str(trainer.model.compute_dtype),
        "activation checkpointing": machine.activation_checkpointing,
        "deterministic": machine.deterministic,
        "optimizer": trainer.train.optimizer,
        "average": trainer.average is not None,
        "batch": trainer.most_slots,
    }
    return f"{digest(canonical(facts))}.json"


def _disk() -> Disk:
    return Disk(caches() / "fits")


def _recall(disk: Disk, name: str) -> tuple[int, bool] | None:
    with contextlib.suppress(StoreError, OSError, ValueError, KeyError, TypeError):
        known: dict[str, Any] = json.loads(disk.read(name) or b"")
        size, recompute = known["micro_batch"], known["recompute"]
        if isinstance(size, int) and size >= 1 and isinstance(recompute, bool):
            return size, recompute
    return None


def _remember(disk: Disk, name: str, found: tuple[int, bool]) -> None:
    with contextlib.suppress(StoreError, OSError):
        disk.replace(name, canonical({"micro_batch": found[0], "recompute": found[1]}))
