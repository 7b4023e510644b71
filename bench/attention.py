"""Three ways to attend, forward and backward on this processor: which is fastest where?

    python bench/attention.py

Same 4,096 tokens, 4 heads of 32 channels, in windows of 128, 256 and 512; all in turn, medians.
Written out, torch's fused kernel (both in model/attention.py, which chooses) and a block of queries
at a time (model/blockwise.py). ``ratio`` is how often the last fits into each of the others.
"""

import statistics
import time

import torch
from common import save

from model.attention import attention, fused_attention
from model.blockwise import blockwise_attention

TOKENS, HEADS, SIZE, REPEATS = 4096, 4, 32, 15
WAYS = {"written out": attention, "fused": fused_attention, "blockwise": blockwise_attention}


def seconds(attend, qkv_BHTK, gradient_BHTK) -> float:
    start = time.perf_counter()
    torch.autograd.grad(attend(*qkv_BHTK.split(HEADS, dim=1)), qkv_BHTK, gradient_BHTK)
    return time.perf_counter() - start


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for window in (128, 256, 512):
            shape = (TOKENS // window, window, 3 * HEADS, SIZE)
            qkv_BHTK = torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_()
            gradient_BHTK = torch.randn_like(qkv_BHTK[:, :HEADS])
            taken: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(REPEATS):
                for name, attend in WAYS.items():
                    taken[name].append(seconds(attend, qkv_BHTK, gradient_BHTK))
            medians = {name: 1000 * statistics.median(values) for name, values in taken.items()}
            ratio = {name: value / medians["blockwise"] for name, value in medians.items()}
            row = {"type": str(dtype), "window": window, "milliseconds": medians, "ratio": ratio}
            rows.append(row)
            print(row)
    save("attention", {"rows": rows, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
