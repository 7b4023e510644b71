"""Masks that are data beside torch's own dropout: what one training step spends on either.

    python bench/dropout.py

Nothing but dropout and the additions to the stream, forward and backward, for all parts of a model
(one for the embedding, two a layer), at 4,096 tokens; both in turn, medians.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from common import save
from torch import Tensor

from model.config import SIZES, ModelConfig
from model.dropout import Masks

TOKENS, P, REPEATS = 4096, 0.1, 15
CPU = torch.device("cpu")


def with_masks(config: ModelConfig, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
    """As model/ does it, drawing included."""
    parts = 2 * config.layers + 1
    shape = (parts, config.context, config.width)
    masks = Masks.draw(range(len(x_BTD)), shape, P, branch_BTD.dtype, CPU)
    x_BTD = masks.drop(0, x_BTD)
    for part in range(1, parts):
        x_BTD = masks.add(part, x_BTD, branch_BTD)
    return x_BTD


def with_torch(config: ModelConfig, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
    """As everybody does it."""
    x_BTD = F.dropout(x_BTD, P)
    for _ in range(2 * config.layers):
        x_BTD = x_BTD + F.dropout(branch_BTD, P)
    return x_BTD


def milliseconds(step, config: ModelConfig, x_BTD: Tensor, branch_BTD: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(step(config, x_BTD, branch_BTD).sum(), (x_BTD, branch_BTD))
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    rows = []
    for size in ("tiny", "small"):
        config = SIZES[size]
        shape = (TOKENS // config.context, config.context, config.width)
        for dtype in (torch.float32, torch.bfloat16):
            x_BTD = torch.randn(shape, requires_grad=True)
            branch_BTD = torch.randn(shape, dtype=dtype, requires_grad=True)
            taken: dict[str, list[float]] = {"masks": [], "torch": []}
            for _ in range(REPEATS):
                for name, step in (("masks", with_masks), ("torch", with_torch)):
                    taken[name].append(milliseconds(step, config, x_BTD, branch_BTD))
            medians = {name: statistics.median(values) for name, values in taken.items()}
            ratio = medians["torch"] / medians["masks"]
            rows.append({"size": size, "type": str(dtype), "milliseconds": medians, "ratio": ratio})
            print(rows[-1])
    save("dropout", {"rows": rows, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
