"""Find the weights.

Out: ``weights.safetensors`` (the last step's), ``best.safetensors`` (those with the lowest
validation loss seen, kept apart and never reported without saying so) and ``history.json`` (the
loss of every step and every look at the validation split). How that survives: see loop.py.
"""

import json

import torch

from model.batches import Batches
from model.gpt import GPT
from model.trainer import Trainer
from pipeline.loop import Loop
from pipeline.machine import resolve_device, resolve_precision
from pipeline.stage import Context
from pipeline.tokens import open_tokens


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    tokens = json.loads(context.inputs["encode/tokens.json"].read_text(encoding="utf-8"))
    machine = context.machine
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = resolve_device(machine.device)
    model = GPT(context.recipe.model, tokens["vocab_size"], seed=context.recipe.train.seed)
    model.compute_dtype = resolve_precision(machine.precision, device)
    train = context.recipe.train
    stream = open_tokens(context.inputs["encode/train.tokens"], tokens["vocab_size"])
    trainer = Trainer(
        model,
        train,
        Batches(stream, model.config.context, train.batch, train.seed),
        micro_batch=machine.micro_batch or default_micro_batch(model.config.context),
        device=device,
    )
    validation = open_tokens(context.inputs["encode/validation.tokens"], tokens["vocab_size"])
    return Loop(context, trainer, validation, tokens).run()


def default_micro_batch(context: int) -> int:
    """Sequences that are 16,384 tokens together: fits small cards, and keeps big ones busy."""
    return max(1, (1 << 14) // context)
