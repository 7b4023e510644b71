"""Find the weights.

Out: ``weights.safetensors`` (the last step's), ``best.safetensors`` (those with the lowest
validation loss seen, kept apart and never reported without saying so) and ``history.json`` (the
loss of every step and every look at the validation split). How that survives: see loop.py.
"""

import json

import numpy as np
import torch

from model.batches import Batches
from model.gpt import GPT
from model.trainer import Trainer
from pipeline.compiling import resolve_compile, work
from pipeline.fit import fit
from pipeline.loop import Loop
from pipeline.machine import allow_tf32, be_deterministic, resolve_device, resolve_precision
from pipeline.preflight import require_code
from pipeline.stage import Context
from pipeline.tokens import open_tokens


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    tokens = json.loads(context.inputs["encode/tokens.json"].read_text(encoding="utf-8"))
    machine, vocab_size = context.machine, tokens["vocab_size"]
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = resolve_device(machine.device)
    require_code(str(device))
    allow_tf32(device)
    if machine.deterministic:
        be_deterministic()
    stream = open_tokens(context.inputs["encode/train.tokens"], vocab_size)
    trainer = build(context, stream, vocab_size, device)
    trainer.model.compute_dtype = resolve_precision(machine.precision, device)
    fit(trainer, machine)
    whole = work(context.recipe.model, context.recipe.train, vocab_size)
    trainer.model.compiled = resolve_compile(machine.compile, device, whole, context.note)
    validation = open_tokens(context.inputs["encode/validation.tokens"], vocab_size)

    def again() -> Trainer:
        return restart(trainer, build(context, stream, vocab_size, torch.device("cpu")))

    return Loop(context, trainer, validation, tokens, again).run()


def build(context: Context, stream: np.ndarray, vocab_size: int, device: torch.device) -> Trainer:
    """The recipe's trainer as it is before the first step."""
    shape, train = context.recipe.model, context.recipe.train
    return Trainer(
        GPT(shape, vocab_size, seed=train.seed),
        train,
        Batches(stream, shape.context, train.batch, train.seed),
        micro_batch=train.batch,
        device=device,
        may_recompute=context.machine.activation_checkpointing != "off",
    )


def restart(trainer: Trainer, fresh: Trainer) -> Trainer:
    """The trainer as it was before its first step; its device need not hold a second one."""
    trainer.load(fresh.state())
    trainer.events.clear()
    return trainer
