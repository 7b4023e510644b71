"""Writing one text on a CPU: tokens a second of each size, in each precision, on one core and all.

    python bench/decode_cpu.py

Weights are random. Each row is the median of five times so many tokens, one at a time, as
bench/decode.py reads them; the rows of a size take turns. What pipeline/weights.py chooses rests on
this.
"""

import statistics

import torch
from common import save
from decode import step_seconds

from model.generate import Reader
from model.gpt import GPT
from pipeline import recipe

TURNS, TOKENS = 5, {"tiny": 64, "small": 64, "medium": 24, "large": 8}


def frozen(size: str, dtype: torch.dtype) -> GPT:
    chosen = recipe.load(size, data="none")
    model = GPT(chosen.model, chosen.tokenizer.vocab_size)
    model.compute_dtype = dtype
    return model.freeze().eval()


def main() -> None:
    rows, most = [], torch.get_num_threads()
    for size, tokens in TOKENS.items():
        models = {dtype: frozen(size, dtype) for dtype in (torch.float32, torch.bfloat16)}
        cases = [(dtype, threads) for dtype in models for threads in sorted({1, most})]
        found: dict = {case: [] for case in cases}
        for _ in range(TURNS):
            for dtype, threads in cases:
                torch.set_num_threads(threads)
                found[dtype, threads].append(1 / step_seconds(Reader(models[dtype]), tokens))
        for (dtype, threads), speeds in found.items():
            told = {"size": size, "type": str(dtype), "threads": threads}
            rows.append(told | {"tokens_per_second": round(statistics.median(speeds), 1)})
            print(rows[-1], flush=True)
    save("decode-cpu", {"rows": rows, "turns": TURNS})


if __name__ == "__main__":
    main()
