"""From a file of weights to a model that is ready to be read from."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.gpt import GPT
from pipeline.machine import Machine, allow_tf32, resolve_device, resolve_precision
from pipeline.preflight import require_code
from pipeline.recipe import Recipe

_SMALL = 20_000_000  # parameters; below it the work of one token is too little to share


def load_model(recipe: Recipe, vocab_size: int, weights: Path, machine: Machine) -> GPT:
    """The recipe's model with trained weights on the machine's device, in evaluation mode."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = resolve_device(machine.device)
    require_code(str(device))
    allow_tf32(device)
    model = GPT(recipe.model, vocab_size)
    model.load_state_dict(load_file(weights))
    model.compute_dtype = resolve_precision(machine.precision, device)
    return model.freeze().to(device).eval()


def for_writing(machine: Machine, recipe: Recipe, vocab_size: int) -> Machine:
    """The machine as it writes one text fastest, where it was told nothing else.

    On a CPU a token is one vector a layer. In a small model that is less work than turning it into
    bfloat16 and back is worth, and threads would wait for each other most of the time; a large one
    is read from memory once a token, and in bfloat16 there is half of it
    (bench/results/decode-cpu.json).
    """
    small = recipe.model.parameters(vocab_size) < _SMALL
    if not small or resolve_device(machine.device).type != "cpu":
        return machine
    precision = "fp32" if machine.precision == "auto" else machine.precision
    return replace(machine, precision=precision, threads=machine.threads or 1)
