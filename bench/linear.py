"""Float32 products by MKL beside convolutions by oneDNN: forward and backward on this processor.

    python bench/linear.py

The four products of a block, 4,096 tokens, 128 and 256 wide; both in turn, medians, in GFLOP/s.
model/layers.py takes convolutions on AMD. Told apart are all threads and one.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from common import save

from model.layers import convolved

TOKENS, REPEATS = 4096, 25
WAYS = {"linear": F.linear, "convolved": convolved}


def row(inputs: int, outputs: int) -> dict[str, float]:
    """GFLOP/s of either way."""
    x_ND = torch.randn(TOKENS, inputs, requires_grad=True)
    weight_OD = torch.randn(outputs, inputs, requires_grad=True)
    bias_O = torch.zeros(outputs, requires_grad=True)
    dy_NO = torch.randn(TOKENS, outputs)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(REPEATS):
        for name, product in WAYS.items():
            start = time.perf_counter()
            y_NO = product(x_ND, weight_OD, bias_O)
            torch.autograd.grad(y_NO, (x_ND, weight_OD, bias_O), dy_NO)
            taken[name].append(time.perf_counter() - start)
    work = 6e-9 * TOKENS * inputs * outputs
    return {name: work / statistics.median(values) for name, values in taken.items()}


def main() -> None:
    rows = []
    threads = torch.get_num_threads()
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        for width in (128, 256):
            for inputs, outputs in ((1, 3), (1, 1), (1, 4), (4, 1)):
                shape = (inputs * width, outputs * width)
                rows.append({"threads": count, "shape": shape, "GFLOP/s": row(*shape)})
                print(rows[-1])
    save("linear", {"rows": rows, "threads": threads})


if __name__ == "__main__":
    main()
