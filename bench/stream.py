"""Does a residual stream in bfloat16 train as well as one in float32? Many blocks, several seeds.

    python bench/stream.py tinyshakespeare.txt        on two cores, half an hour

Compiled training on a GPU keeps the stream between the blocks in bfloat16 if the branches compute
in it (``GPT.compiled``). Here 24 narrow blocks train on a CPU, whose branches are bfloat16 in both
cases: with the stream in float32, and rounded as there. Bytes are the tokens. Models train on the
first 900,000 of them and predict the 51,200 behind those, in windows side by side: the bytes that
results are reported on lie further on.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save, spread

from model.attention_fast import rotated_attention
from model.batches import Batches
from model.config import ModelConfig, TrainConfig
from model.evaluate import score
from model.gpt import GPT
from model.trainer import Trainer

LAYERS, WIDTH, CONTEXT, BATCH = 24, 128, 128, 8
TRAINED, HELD_OUT = 900_000, 51_200


class Narrow(GPT):
    """A model whose stream is bfloat16 where gradients are wanted."""

    def _run_blocks(self, x_BTD, rotary, masks):
        return super()._run_blocks(
            x_BTD.bfloat16() if torch.is_grad_enabled() else x_BTD, rotary, masks
        )


def one(corpus: Path, kind: type[GPT], seed: int, steps: int) -> dict[str, float]:
    """Train one model: mean loss of the last tenth of its steps, and of the text held out."""
    torch.set_num_threads(1)
    text = np.frombuffer(corpus.read_bytes(), dtype=np.uint8).astype(np.uint16)
    shape = ModelConfig(LAYERS, WIDTH, 4, 4 * WIDTH, CONTEXT, bias=False)
    train = TrainConfig(steps=steps, batch=BATCH, lr=1e-3, warmup=50, seed=seed, beta2=0.99)
    model = kind(shape, 256, seed=seed)
    model.compute_dtype = torch.bfloat16
    model.attend_in_one(rotated_attention)
    batches = Batches(text[:TRAINED], CONTEXT, BATCH, seed)
    device = torch.device("cpu")
    trainer = Trainer(model, train, batches, micro_batch=BATCH, device=device)
    losses = [trainer.run_step().loss for _ in range(steps)]
    last = losses[-max(1, steps // 10) :]
    held_out = score(model, text[TRAINED : TRAINED + HELD_OUT + 1], stride=CONTEXT).loss
    return {"trained": sum(last) / len(last), "held_out": held_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    kinds = {"float32": GPT, "bfloat16": Narrow}
    if options.one:
        kind, seed = options.one
        print(json.dumps(one(options.corpus, kinds[kind], int(seed), options.steps)))
        return

    def run(what: tuple[str, int]) -> dict[str, Any]:
        command = [sys.executable, __file__, str(options.corpus), "--steps", str(options.steps)]
        command += ["--one", *map(str, what)]
        return json.loads(subprocess.check_output(command, text=True))

    wanted = [(kind, seed) for seed in range(options.seeds) for kind in kinds]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(wanted, pool.map(run, wanted)))
    told: dict[str, Any] = {"layers": LAYERS, "width": WIDTH, "steps": options.steps}
    for kind in kinds:
        rows = [found[kind, seed] for seed in range(options.seeds)]
        told[kind] = {"runs": rows}
        for name in rows[0]:
            told[kind][name] = spread([row[name] for row in rows])
    save("stream", told)


if __name__ == "__main__":
    main()
