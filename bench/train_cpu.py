"""Training on a CPU beside nanoGPT and Hugging Face: tokens a second, and memory.

    python bench/train_cpu.py --nanogpt DIR       DIR: a clone of github.com/karpathy/nanoGPT

The same shape (6 layers of 256, 8 heads, context 256, vocabulary 1,024), the same batches (16 x 256
tokens), no dropout, AdamW, clipping at 1; see contenders.py. Every contender runs in a process of
its own, which tells its peak of resident memory as well; all take turns, round after round. A
figure is the median over rounds of the steps after the warm-up.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import save
from contenders import Shape, Step, nanogpt, ours, transformers

SHAPE = Shape(layers=6, width=256, heads=8, context=256, vocab=1024, batch=16, micro_batch=16)
CPU = torch.device("cpu")
WARM_UP = 3
CONTENDERS = (
    ("ours", "fp32"),
    ("nanogpt", "fp32"),
    ("nanogpt-compiled", "fp32"),
    ("transformers", "fp32"),
    ("ours", "bf16"),
    ("nanogpt", "bf16"),
    ("nanogpt-compiled", "bf16"),
    ("transformers", "bf16"),
)


def build(name: str, dtype: str, folder: str) -> Step:
    if name == "ours":
        return ours(SHAPE, dtype, CPU)
    if name == "transformers":
        return transformers(SHAPE, dtype, CPU)
    return nanogpt(SHAPE, dtype, CPU, folder, name.endswith("compiled"))


def worker(name: str, dtype: str, folder: str, steps: int) -> None:
    """Train, and print what it took as JSON."""
    step = build(name, dtype, folder)
    losses = [step().item() for _ in range(WARM_UP)]
    start = time.perf_counter()
    losses += [step().item() for _ in range(steps)]
    seconds = time.perf_counter() - start
    told = {
        "tokens_per_second": steps * SHAPE.tokens / seconds,
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "losses": [losses[0], losses[-1]],
    }
    print(json.dumps(told))


def main() -> None:
    from pipeline.machine import REST  # of this folder's parent, which is found by now

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", default="nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--worker", nargs=2)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker, options.nanogpt, options.steps)
        return
    found: dict[str, list[dict]] = {}
    for _ in range(options.rounds):
        for name, dtype in CONTENDERS:
            command = [sys.executable, __file__, "--worker", name, dtype]
            command += ["--nanogpt", options.nanogpt, "--steps", str(options.steps)]
            # as our command line sets it; it is none of the others'
            own = REST if name == "ours" else {}
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **own}
            )
            told = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(f"{name} {dtype}", []).append(told)
            print(f"{name} {dtype}: {told}", flush=True)
    rows = {
        name: {
            "tokens_per_second": statistics.median(each["tokens_per_second"] for each in told),
            "peak_MB": statistics.median(each["peak_MB"] for each in told),
            "rounds": told,
        }
        for name, told in found.items()
    }
    ratios = {}
    for dtype in ("fp32", "bf16"):
        others = {name: row for name, row in rows.items() if name.endswith(dtype)}
        mine = others.pop(f"ours {dtype}")
        best = max(others, key=lambda name: others[name]["tokens_per_second"])
        ratios[dtype] = {
            "beside": best,
            "speed": mine["tokens_per_second"] / others[best]["tokens_per_second"],
            "memory": mine["peak_MB"] / min(row["peak_MB"] for row in others.values()),
        }
    print(json.dumps(ratios, indent=2))
    save("train_cpu", {"ratios": ratios, "rows": rows, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parents[1]))
    main()
