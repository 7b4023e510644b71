"""Training on a CPU beside nanoGPT and Hugging Face: tokens a second, and memory.

    python bench/train_cpu.py --nanogpt DIR       DIR: a clone of github.com/karpathy/nanoGPT

The same shape (6 layers of 256, 8 heads, context 256, vocabulary 1,024), the same batches (16 x 256
tokens), no dropout, AdamW, clipping at 1. Each as its own documentation trains it: nanoGPT as its
train.py does, with autocast in bfloat16 and with torch.compile; transformers' GPT-NeoX with
autocast; ours as the trainer does. Every contender runs in a process of its own, which tells its
peak of resident memory as well; all take turns, round after round. A figure is the median over
rounds of the steps after the warm-up.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import save

LAYERS, WIDTH, HEADS, CONTEXT, VOCAB, BATCH = 6, 256, 8, 256, 1024, 16
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


def tokens() -> np.ndarray:
    """A stream in which there is something to learn: each token is near the one before."""
    draw = np.random.default_rng(0)
    return (np.cumsum(draw.integers(-3, 4, 1 << 20)) % VOCAB).astype(np.uint16)


def windows(stream: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    starts = draw.integers(0, len(stream) - CONTEXT - 1, BATCH)
    rows = np.stack([stream[at : at + CONTEXT + 1] for at in starts]).astype(np.int64)
    return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())


def ours(dtype: str) -> Callable[[], float]:
    from model.batches import Batches
    from model.config import ModelConfig, TrainConfig
    from model.gpt import GPT
    from model.trainer import Trainer

    config = ModelConfig(LAYERS, WIDTH, HEADS, 4 * WIDTH, CONTEXT)
    train = TrainConfig(steps=1000, batch=BATCH, lr=1e-3)
    model = GPT(config, VOCAB)
    model.compute_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    batches = Batches(tokens(), CONTEXT, BATCH, 0)
    device = torch.device("cpu")
    trainer = Trainer(model, train, batches, micro_batch=BATCH, device=device)
    return lambda: float(trainer.run_step().loss)


def _others(
    model: torch.nn.Module, loss_of: Callable, optimizer: torch.optim.Optimizer, dtype: str
) -> Callable[[], float]:
    stream, draw = tokens(), np.random.default_rng(0)

    def step() -> float:
        inputs, targets = windows(stream, draw)
        casts = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else None
        with casts or contextlib.nullcontext():
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def nanogpt(dtype: str, folder: str, compiled: bool) -> Callable[[], float]:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # nanoGPT's model.py

    config = GPTConfig(CONTEXT, VOCAB, LAYERS, HEADS, WIDTH, dropout=0.0, bias=False)
    model = GPT(config)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    called = torch.compile(model) if compiled else model
    return _others(model, lambda x, y: called(x, y)[1], optimizer, dtype)


def transformers(dtype: str) -> Callable[[], float]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    head = torch.nn.functional.cross_entropy

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return head(model(inputs).logits.flatten(0, 1).float(), targets.flatten())

    return _others(model, loss_of, optimizer, dtype)


def worker(name: str, dtype: str, folder: str, steps: int) -> None:
    """Train, and print what it took as JSON."""
    if name == "ours":
        step = ours(dtype)
    elif name == "transformers":
        step = transformers(dtype)
    else:
        step = nanogpt(dtype, folder, name.endswith("compiled"))
    losses = [step() for _ in range(WARM_UP)]
    start = time.perf_counter()
    losses += [step() for _ in range(steps)]
    seconds = time.perf_counter() - start
    told = {
        "tokens_per_second": steps * BATCH * CONTEXT / seconds,
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "losses": [losses[0], losses[-1]],
    }
    print(json.dumps(told))


def main() -> None:
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
            done = subprocess.run(command, check=True, capture_output=True, text=True)
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
