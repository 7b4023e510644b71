"""How soon is tiny as good as nanoGPT's recipe for a CPU in the end? Both in turn, on one machine.

    python bench/time_to_quality.py tinyshakespeare.txt --nanogpt DIR

nanoGPT's README has the recipe: 4 layers of 128, characters, a context of 64, 12 sequences a step,
2,000 steps. Its time is that of its training loop without its looks at the validation split, its
quality the mean loss of its own last look (random windows), in bits per character, which is a byte
here. Ours is `pipeline run --size tiny` with a look every 20 steps (disjoint windows, the start of
the split); the time is that of the steps up to the first look that is as good.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, result_file, save

from pipeline.recipe import load

RECIPE = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0 --eval_interval=2000"
)


def nanogpt(folder: Path, corpus: Path) -> dict[str, Any]:
    """Bits per byte at the end, and seconds of the steps alone."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        data = Path(copy) / "data" / "shakespeare_char"
        shutil.copy(corpus, data / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
        command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py"]
        process = subprocess.Popen(
            [*command, *RECIPE.split()], cwd=copy, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        looks, marks = [], []
        for line in process.stdout:
            if found := re.match(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", line):
                looks.append((int(found[1]), float(found[2])))
            if found := re.match(r"iter (\d+):", line):
                marks.append((int(found[1]), time.monotonic()))
        assert process.wait() == 0
    # from mark to mark there is no look; the first steps are as fast as the others
    first, last = marks[1], next(mark for mark in reversed(marks) if mark[0] < 2000)
    seconds = (last[1] - first[1]) / (last[0] - first[0]) * looks[-1][0]
    bits = looks[-1][1] / math.log(2)
    return {"bits_per_byte": bits, "steps": looks[-1][0], "seconds": seconds}


def ours(corpus: Path, goal: float) -> dict[str, Any]:
    """Seconds of steps until a look is as good as the goal."""
    with tempfile.TemporaryDirectory() as store:
        command = [Path(sys.executable).with_name("pipeline"), "run", "train", "--size", "tiny"]
        command += ["--data", corpus, "--store", store, "--set", "train.eval_every=20"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        lines = result_file(store, "train", "metrics.jsonl").read_text(encoding="utf-8")
    seconds = 0.0
    tiny = load("tiny")
    tokens = tiny.train.batch * tiny.model.context  # a step
    for line in map(json.loads, lines.splitlines()):
        if "bits_per_byte" in line and line["bits_per_byte"] <= goal:
            return {**line, "seconds": seconds}
        if "tokens_per_second" in line and "loss" in line:
            seconds += tokens / line["tokens_per_second"]
    raise SystemExit(f"tiny never came to {goal:.4f} bits per byte")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True)
    options = parser.parse_args()
    theirs = nanogpt(options.nanogpt, options.corpus.resolve())
    print(theirs, flush=True)
    mine = ours(options.corpus.resolve(), theirs["bits_per_byte"])
    print(mine)
    share = mine["seconds"] / theirs["seconds"]
    save("time_to_quality", {"nanogpt": theirs, "ours": mine, "ours_over_nanogpt": share})


if __name__ == "__main__":
    main()
