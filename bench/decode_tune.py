"""Where the time of a fused step goes, and which sizes of programs are best on this GPU.

    python bench/decode_tune.py --size large

Sweeps over the constants of model/fused.py: milliseconds of a step near the start of the context
and near its end. With --profile the mean time of every kernel as well.
"""

import argparse
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from decode import bytes_read, copy_bandwidth, wait

from model import fused, kernels
from model.config import SIZES
from model.decode import Fast
from model.gpt import GPT
from pipeline.machine import resolve_device, resolve_precision


@torch.no_grad()
def step_ms(reader: Fast, place: int, steps: int) -> float:
    id_11 = torch.ones(1, 1, dtype=torch.long, device=reader.device)
    best = float("inf")
    for _ in range(3):
        start = wait(reader.device)
        for _ in range(steps):
            reader.cache.length = place
            reader(id_11)
        best = min(best, 1000 * (wait(reader.device) - start) / steps)
    return best


def sweep(model: GPT, limit_ms: float, steps: int) -> list[dict[str, Any]]:
    rows = []
    sizes = [(16_384, 8, 16), (16_384, 8, 8), (16_384, 16, 16), (32_768, 16, 16), (8192, 4, 16)]
    tried = [(*sizes[0], False), *((*size, True) for size in sizes)]
    last = model.config.context - 2
    for tile, warps, splits, early in tried:
        changed = {"_TILE": tile, "_WARPS": warps, "_SPLITS": splits}
        with patch.multiple(fused, **changed), patch.object(kernels, "CAN_START_EARLY", early):
            reader = Fast(model, "fused")
            near, far = step_ms(reader, 30, steps), step_ms(reader, last, steps)
        row = {"tile": tile, "warps": warps, "splits": splits, "early": early}
        rows.append(row | {"step_ms": round(near, 4), "full_context_ms": round(far, 4)})
        print(
            f"tile {tile:5} warps {warps:2} splits {splits:2} early {early!s:5}  "
            f"{near:.4f} ms ({limit_ms / near:.1%} of the limit), full context {far:.4f} ms",
            flush=True,
        )
    return rows


@torch.no_grad()
def profile(model: GPT) -> None:
    for early in (True, False):
        with patch.object(kernels, "CAN_START_EARLY", early):
            reader = Fast(model, "fused")
            step_ms(reader, 100, 5)
            with torch.profiler.profile() as profiler:
                step_ms(reader, 100, 5)
        print(f"early {early}")
        print(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=14))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="large", choices=SIZES)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device = resolve_device("cuda")
    model = GPT(SIZES[options.size], options.vocab)
    model.compute_dtype = resolve_precision("auto", device)
    model = model.freeze().to(device).eval()
    limit_ms = 1000 * bytes_read(model) / copy_bandwidth(device)
    print(f"{torch.cuda.get_device_name(device)}: the limit is {limit_ms:.4f} ms")
    rows = sweep(model, limit_ms, options.steps)
    told = {"device": torch.cuda.get_device_name(device), "size": options.size}
    save("decode-tune", told | {"limit_ms": round(limit_ms, 4), "rows": rows})
    if options.profile:
        profile(model)


if __name__ == "__main__":
    main()
