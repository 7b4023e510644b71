"""What is said before the first step: on what it computes, and what that leaves unused.

A run that quietly takes the CPU beside a GPU, or one GPU of two, costs its owner days, and one that
reads its text a thousand times hours; so each has a line. Cost: where a run takes the CPU, a look
for signs of a GPU, which may ask nvidia-smi.
"""

from collections.abc import Iterator

import torch

from model.trainer import Trainer
from pipeline.hardware import ask_gpu, ask_torch
from pipeline.machine import Machine, type_name
from pipeline.peaks import device_name
from pipeline.preflight import judge_driver
from pipeline.recipe import MANY
from pipeline.team import together

FEW = 1000  # tokens; what each costs differs by some nats, so the mean of so many by a tenth


def opening(trainer: Trainer, asked: Machine, tokens: int, validation: int) -> Iterator[str]:
    """Lines for people; ``asked``: what they said of the machine, ``tokens``: of the text that is
    trained on, ``validation``: of the text that is held out."""
    yield _computing(trainer)
    if asked.micro_batch > trainer.most_slots:
        yield (
            f"--micro-batch {asked.micro_batch:,} is more than there is to do at once: "
            f"{trainer.most_slots:,} sequences"
        )
    if unused := _unused(trainer, asked):
        yield unused
    train, context = trainer.train, trainer.model.config.context
    if train.batch < trainer.team.size:
        yield f"a step has {train.batch} sequences: so many processes train, and the others wait"
    if train.warmup > train.steps:
        yield (
            f"train.warmup is {train.warmup:,} steps, and the run has {train.steps:,}: the rate "
            "never reaches its peak"
        )
    if validation < FEW:
        yield (
            f"the validation split has {validation:,} tokens: too few for its figures to mean much "
            "(more text, or a larger data.validation)"
        )
    passes = train.steps * train.batch * context / tokens
    if passes > MANY:
        yield (
            f"the {tokens:,} tokens of the text are read {passes:,.0f} times: they are few for "
            "this recipe, which may learn them by heart"
        )


def _computing(trainer: Trainer) -> str:
    model, team = trainer.model, trainer.team
    where = device_name(trainer.device)
    if trainer.device.type == "cpu":
        threads = torch.get_num_threads()
        where = f"the CPU, {threads} thread{'s' * (threads > 1)}"
    words = [
        f"computing on {f'{team.size} x ' if team.size > 1 else ''}{where}",
        type_name(model.compute_dtype),
        *["compiled"] * (model.compiled or model.attends_in_one),
        f"micro-batch {trainer.micro_batch}",
        *["activation checkpointing"] * model.recompute,
        *["weights shared out"] * team.sharded,
        *["deterministic"] * torch.are_deterministic_algorithms_enabled(),
    ]
    return ", ".join(words)


def _unused(trainer: Trainer, asked: Machine) -> str:
    """The GPUs that nobody has ruled out and that are not used all the same, and what to do."""
    if trainer.device.type == "cpu" and asked.device == "auto":
        gpu = ask_gpu()
        return judge_driver(ask_torch("auto"), gpu, False).words if gpu.given else ""
    if trainer.device.type == "cuda" and asked.device in ("auto", "cuda"):
        there, used = together(), trainer.team.size
        if there > used:
            trains = "train" if used > 1 else "trains"
            return f"torch sees {there} GPUs, and {used} {trains}: --processes auto takes all"
    return ""
