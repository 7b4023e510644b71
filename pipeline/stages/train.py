"""Find the weights.

Out: ``weights.safetensors`` (the last step's), ``best.safetensors`` (those with the lowest
validation loss seen, kept apart and never reported without saying so) and ``history.json`` (the
loss of every step and every look at the validation split). How that survives: see loop.py.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.batches import Batches
from model.gpt import GPT
from model.parallel import Team
from model.trainer import Trainer
from pipeline.compiling import refuse, resolve_compile, work
from pipeline.fit import ALONE, fit
from pipeline.loop import Loop
from pipeline.machine import (
    Machine,
    allow_tf32,
    be_deterministic,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
)
from pipeline.opening import opening
from pipeline.preflight import require_code
from pipeline.recipe import Recipe, from_tree
from pipeline.stage import Context
from pipeline.team import BYTES, led, processes, settled
from pipeline.tokens import open_tokens
from pipeline.ui import human_bytes


@dataclass(frozen=True)
class Job:
    """All that a process needs to know to build its trainer, as the leader tells it."""

    recipe: Recipe
    machine: Machine
    inputs: dict[str, Path]
    vocab_size: int

    def tree(self) -> dict[str, Any]:
        """All of it as plain JSON values; ``from_tree`` reads it back."""
        return {
            "recipe": self.recipe.tree(),
            "machine": asdict(self.machine),
            "inputs": {name: str(path) for name, path in self.inputs.items()},
            "vocab_size": self.vocab_size,
        }

    @staticmethod
    def from_tree(tree: dict[str, Any]) -> "Job":
        inputs = {name: Path(path) for name, path in tree["inputs"].items()}
        recipe, machine = from_tree(tree["recipe"]), Machine(**tree["machine"])
        return Job(recipe, machine, inputs, tree["vocab_size"])

    def tokens(self, split: str) -> np.ndarray:
        return open_tokens(self.inputs[f"encode/{split}.tokens"], self.vocab_size)


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    tokens = json.loads(context.inputs["encode/tokens.json"].read_text(encoding="utf-8"))
    vocab_size, size = tokens["vocab_size"], processes(context.machine)
    machine = settled(context.machine, size, context.recipe, vocab_size)
    compiled = chosen_compile(machine, context, vocab_size)
    machine = replace(machine, compile="on" if compiled else "off")
    job = Job(context.recipe, machine, context.inputs, vocab_size)
    with led(size) as leader:
        with leader.all("build", job.tree()):
            trainer = prepared(job, leader.team)
        held = [len(job.tokens(split)) for split in ("train", "validation")]
        for line in opening(trainer, context.machine, *held):
            context.note(line)

        def again() -> Trainer:
            fresh = build(job, torch.device("cpu"), Team())
            with leader.all("load"):
                return restart(trainer, fresh)

        return Loop(context, trainer, job.tokens("validation"), tokens, again, leader).run()


def check(machine: Machine, recipe: Recipe) -> None:
    """Raises ValueError for what was asked of this machine and it cannot do.

    For a look before earlier stages take their time; the stage itself finds out again.
    """
    device, size = resolve_device(machine.device), processes(machine)
    resolve_precision(machine.precision, device)
    machine = settled(machine, size, recipe, recipe.tokenizer.vocab_size)
    refuse(machine.compile, _ruled_out(machine, device, recipe))


def chosen_compile(machine: Machine, context: Context, vocab_size: int) -> bool:
    device, recipe = resolve_device(machine.device), context.recipe
    whole = work(recipe.model, recipe.train, vocab_size)
    why = _ruled_out(machine, device, recipe)
    return resolve_compile(machine.compile, device, whole, context.note, why)


def _ruled_out(machine: Machine, device: torch.device, recipe: Recipe) -> str:
    """Why compiling is out of the question, whatever this machine has; nothing if it is not."""
    without = [name for name in ("qk_norm", "attention_dropout") if getattr(recipe.model, name)]
    if machine.sharding == "on":
        return "not where weights are shared out (--sharding)"
    if device.type == "cpu" and without:
        return f"attention compiled for a CPU is without model.{without[0]}"
    return ""


def prepared(job: Job, team: Team) -> Trainer:
    """The trainer of one of a team's processes, fit for its device."""
    machine = job.machine
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = resolve_device(machine.device)
    if team.size > 1 and device.type == "cuda":
        device = torch.device("cuda", team.rank)
        torch.cuda.set_device(device)
    require_code(str(device))
    allow_tf32(device)
    if device.type == "cpu":
        keep_freed_memory()
    if machine.deterministic:
        be_deterministic()
    if machine.sharding == "on":
        from model.sharding import Shards

        team = Shards()
    team.meet(device)
    dtype = resolve_precision(machine.precision, device)
    try:
        trainer = build(job, device, team, dtype)
    except torch.OutOfMemoryError as error:
        raise ValueError(_no_room(job, device)) from error
    fit(trainer, machine)
    if machine.compile == "on":
        compile_for(device, trainer.model)
    return trainer


def _no_room(job: Job, device: torch.device) -> str:
    needed = human_bytes(BYTES * job.recipe.model.parameters(job.vocab_size))
    free, total = torch.cuda.mem_get_info(device)
    theirs = total - free - torch.cuda.memory_reserved(device)
    others = f" ({human_bytes(theirs)} are in use by others: nvidia-smi says by whom)"
    return (
        f"weights, gradients and what the optimizer keeps take {needed}, too much for the "
        f"{human_bytes(total)} of {torch.cuda.get_device_name(device)}"
        f"{others if theirs > (1 - ALONE) * total else ''}: take a smaller --size, another "
        "--device, or several with --processes and --sharding on"
    )


def compile_for(device: torch.device, model: GPT) -> None:
    """Compile what is worth it there: on a CPU our attention, elsewhere what torch makes of us."""
    if device.type == "cpu":
        from model.attention_fast import rotated_attention

        model.attend_in_one(rotated_attention)
    else:
        model.compiled = True


def build(
    job: Job, device: torch.device, team: Team, dtype: torch.dtype = torch.float32
) -> Trainer:
    """The recipe's trainer as it is before the first step."""
    shape, train = job.recipe.model, job.recipe.train
    model = GPT(shape, job.vocab_size, seed=train.seed)
    model.compute_dtype = dtype
    return Trainer(
        model,
        train,
        Batches(job.tokens("train"), shape.context, train.batch, train.seed),
        micro_batch=train.batch,
        device=device,
        may_recompute=job.machine.activation_checkpointing != "off",
        team=team,
    )


def restart(trainer: Trainer, fresh: Trainer) -> Trainer:
    """The trainer as it was before its first step; its device need not hold a second one."""
    trainer.load(trainer.team.spread(fresh.state()))
    trainer.events.clear()
    return trainer
