"""How much memory does a checkpoint need beside the model and the optimizer's state, and how long?

    python bench/checkpoint_memory.py [--sizes tiny small medium] [--repeats 3]

Each case runs in a process of its own: it makes the trainer's state (without gradients: they are
there at a checkpoint too, but nothing is made of them), forgets the peak of memory and does its
work; extra is the peak beside what the process held before. Beside the train stage's checkpoint
stand what it replaced, plain writers, and a copy made first, as the library makes one from a
graphics card. Times are medians of writes to the page cache: nothing is flushed. Needs Linux.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import save
from safetensors.torch import load_file, save_file

from model.batches import Batches
from model.config import SIZES
from model.gpt import GPT
from model.trainer import Trainer
from pipeline import recipe
from pipeline.checkpoint import Stored, write
from pipeline.machine import Machine
from pipeline.stage import Context
from pipeline.stages.train import Loop


def make_trainer(size: str) -> Trainer:
    """A trainer in whose memory every number has been written once."""
    chosen = recipe.load(size, data="none")
    tokens = np.zeros(2 * chosen.model.context, dtype=np.uint16)
    trainer = Trainer(
        GPT(chosen.model, chosen.tokenizer.vocab_size),
        chosen.train,
        Batches(tokens, chosen.model.context, chosen.train.batch, 0),
        micro_batch=1,
        device=torch.device("cpu"),
    )
    for name, value in trainer.state().items():
        if value.is_floating_point() and not name.startswith("model."):
            value.fill_(1.0)
    return trainer


class Cases:
    """What is measured: each writes or reads the whole state."""

    def __init__(self, size: str, out: Path) -> None:
        self.trainer, self.out = make_trainer(size), out
        context = Context(recipe.load(size, data="none"), Machine(), {}, out)
        tokens = {"validation_bytes": 1, "validation_tokens": 1}
        self.loop = Loop(context, self.trainer, np.zeros(0), tokens)
        self.loop.looks.append({"step": 1, "loss": 1.0})
        self.state = self.trainer.state()
        self.written, self.stored = out / "written", out / "stored"
        write(self.state, self.stored)
        self.new_best()

    def new_best(self) -> None:
        """What the train stage does where validation has improved."""
        self.loop._write_weights(self.loop.best)

    def checkpoint(self) -> None:
        """What it does at a checkpoint, until the store takes over."""
        self.loop._checkpoint()

    def best_in_memory(self) -> None:
        """What it did at both before: a copy of the weights, the library's writer."""
        best = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}
        save_file(self.state, self.written)
        save_file(best, self.out / "best")

    def write(self) -> None:
        write(self.state, self.written)

    def save_file(self) -> None:
        save_file(self.state, self.written)

    def save_file_of_a_copy(self) -> None:
        save_file({name: value.clone() for name, value in self.state.items()}, self.written)

    def torch_save(self) -> None:
        torch.save(self.state, self.written)

    def resume(self) -> None:
        self.trainer.load(Stored(self.stored))

    def resume_with_load_file(self) -> None:
        self.trainer.load(load_file(self.stored))


CASES = [name for name in vars(Cases) if not name.startswith("_")]


def memory() -> dict[str, int]:
    """Bytes of this process in main memory: now, the most since the peak was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":") for line in lines)
    return {name: int(found[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")}


def measure(size: str, case: str, repeats: int) -> dict[str, float]:
    extra, seconds = [], []
    with tempfile.TemporaryDirectory() as out:
        cases = Cases(size, Path(out))
        work = getattr(cases, case)
        for _ in range(repeats):
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak
            before = memory()["VmRSS"]
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
            extra.append(memory()["VmHWM"] - before)
    model = sum(p.nbytes for p in cases.trainer.model.parameters())
    state = sum(value.nbytes for value in cases.state.values())
    return {
        "model_bytes": model,
        "optimizer_bytes": state - model,
        "extra_bytes": max(extra),
        "extra_share": round(max(extra) / state, 4),
        "seconds": round(statistics.median(seconds), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small", "medium"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help="measure this one here and print it")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.sizes[0], arguments.case, arguments.repeats)))
        return
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for size in arguments.sizes:
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--sizes", size]
            command += ["--repeats", str(arguments.repeats)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(done.stdout)
            measured.setdefault(size, {})[case] = figures
            print(
                f"{size:7} {case:21} extra {figures['extra_bytes'] / 2**20:7.1f} MiB "
                f"({figures['extra_share']:7.2%}), {figures['seconds'] * 1000:7.1f} ms"
            )
    save("checkpoint_memory", {"sizes": measured, "repeats": arguments.repeats})


if __name__ == "__main__":
    main()
