"""From a file of weights to a model that is ready to be read from."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from model.gpt import GPT
from pipeline.machine import Machine, resolve_device, resolve_precision
from pipeline.recipe import Recipe


def load_model(recipe: Recipe, vocab_size: int, weights: Path, machine: Machine) -> GPT:
    """The recipe's model with trained weights on the machine's device, in evaluation mode."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = resolve_device(machine.device)
    model = GPT(recipe.model, vocab_size)
    model.load_state_dict(load_file(weights))
    model.compute_dtype = resolve_precision(machine.precision, device)
    return model.to(device).eval()
