"""Three ways to rotate and attend, forward and backward on this processor: which is fastest where?

    GOMP_SPINCOUNT=10000 python bench/attention.py

Of the product of queries, keys and values what a layer's last product reads. Same 4,096 tokens, 4
heads of 32 channels, in windows of 128, 256 and 512; all in turn, medians. Attention written out,
torch's fused kernel (both in model/attention.py, with the rotation of model/embeddings.py) and all
in one, compiled (model/attention_fast.py). ``ratio`` is how often the last fits into each.
"""

import statistics
import time
from collections.abc import Callable

import torch
from common import save
from torch import Tensor

from model.attention import attention, fused_attention
from model.attention_fast import rotated_attention
from model.embeddings import rotary_table, rotate
from pipeline.machine import keep_freed_memory

TOKENS, HEADS, SIZE, REPEATS = 4096, 4, 32, 15


def in_steps(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As model/attention.py does it where nothing is compiled."""

    def way(qkv_BTNK: Tensor, heads: int, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        qk_BTNK, v_BTHK = qkv_BTNK.split((2 * heads, heads), dim=2)
        turned_BTNK = rotate(qk_BTNK, cos_TK[:, None], sin_TK[:, None])
        parts = (*turned_BTNK.split(heads, dim=2), v_BTHK)
        return attend(*(part.transpose(1, 2) for part in parts)).transpose(1, 2).contiguous()

    return way


WAYS = {
    "written out": in_steps(attention),
    "fused": in_steps(fused_attention),
    "compiled": rotated_attention,
}


def seconds(way: Callable[..., Tensor], qkv: Tensor, given: Tensor, tables: list[Tensor]) -> float:
    start = time.perf_counter()
    torch.autograd.grad(way(qkv, HEADS, *tables), qkv, given)
    return time.perf_counter() - start


def main() -> None:
    keep_freed_memory()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for window in (128, 256, 512):
            shape = (TOKENS // window, window, 3 * HEADS, SIZE)
            qkv_BTNK = torch.randn(shape, dtype=dtype).requires_grad_()
            given_BTHK = torch.randn_like(qkv_BTNK[:, :, :HEADS])
            tables = [table.to(dtype) for table in rotary_table(window, SIZE, 10_000.0)]
            taken: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(REPEATS):
                for name, way in WAYS.items():
                    taken[name].append(seconds(way, qkv_BTNK, given_BTHK, tables))
            medians = {name: 1000 * statistics.median(values) for name, values in taken.items()}
            ratio = {name: value / medians["compiled"] for name, value in medians.items()}
            row = {"type": str(dtype), "window": window, "milliseconds": medians, "ratio": ratio}
            rows.append(row)
            print(row)
    save("attention", {"rows": rows, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
