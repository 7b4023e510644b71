"""A small model and a small text that tests share, and one thread to run them in.

A second thread gains nothing at these sizes, and on a busy machine costs a hundredfold: every
small operation then waits for a thread that is not running.
"""

import numpy as np
import torch

from model.config import ModelConfig
from model.gpt import GPT

torch.set_num_threads(1)


def lively_model(
    config: ModelConfig, vocab_size: int, deviation: float = 0.2, seed: int = 0
) -> GPT:
    """A model with every number drawn anew, norms and biases too, in evaluation mode.

    At its true start a model has zero biases and next to no opinion: a mix-up of two of its parts
    would hide in that.
    """
    model = GPT(config, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm.weight" in name else 0.0
            parameter.normal_(mean, deviation, generator=generator)
    return model.eval()


def noisy_text(length: int, vocab_size: int) -> np.ndarray:
    """A text with a rule: the next token is three times this one, plus one bit of noise."""
    noise = np.random.default_rng(0).integers(2, size=length)
    text = np.zeros(length, np.uint16)
    for i in range(1, length):
        text[i] = (3 * text[i - 1] + noise[i]) % vocab_size
    return text
