"""Writing one text: tokens a second of every way in model/decode.py, and the memory's limit.

    python bench/decode.py --size large --tokens 256        on a GPU, under 90 s in all
    python bench/decode.py --size tiny --device cpu         that it still runs

``fused-late`` is ``fused`` without kernels that start before the one ahead has ended.
The limit is reading all weights once a token, as fast as this device copies memory (what a copy
reads and writes, best of 10). Weights are random: how fast they are read does not depend on them.
Every way generates the same greedy text once to get ready (``start_s``, compiling included) and
then again, timed: what ``tokens_per_second`` counts is what whoever iterates gets. Then the text of
random tokens that the plain way has read is read by each: the largest difference between logits,
over their deviation, and the share of positions where both would choose the same token.
"""

import argparse
import sys
import time
import unittest.mock
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a python that this is not installed in

from common import save

from model.config import SIZES
from model.decode import WAYS, make_reader
from model.generate import Reader, generate
from model.gpt import GPT
from model.sampling import SamplerConfig
from pipeline.machine import resolve_device, resolve_precision
from pipeline.peaks import device_name

SAMPLERS = {
    "greedy": SamplerConfig(temperature=0),
    "top-p": SamplerConfig(temperature=0.8, top_p=0.95),
}
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def wait(device: torch.device) -> float:
    """The time when the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**23, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        start = wait(device)
        target.copy_(source)
        best = max(best, 2 * source.nbytes / (wait(device) - start))
    return best


def bytes_read(model: GPT) -> int:
    """Of weights, for one token: all but the embedding, of which it is one row."""
    own = {id(p): p.nbytes for name, p in model.named_parameters() if name != "embedding.weight"}
    own[id(model.head_weight)] = model.head_weight.nbytes
    return sum(own.values())


def texts(reader: Reader, tokens: int) -> dict[str, Any]:
    """Generate: seconds to get ready, tokens a second, and the greedy ids."""
    told: dict[str, Any] = {}
    for name, sampler in SAMPLERS.items():
        for when in ("start", "again"):
            start = wait(reader.device)
            settings = {"max_tokens": tokens, "sampler": sampler, "reader": reader}
            ids = list(generate(reader.model, PROMPT, **settings))
            seconds = wait(reader.device) - start
            if when == "again":
                told[name] = {"tokens_per_second": tokens / seconds, "ids": ids}
            elif name == "greedy":
                told["start_s"] = seconds
    return told


@torch.no_grad()
def step_seconds(reader: Reader, tokens: int) -> float:
    """Of reading one token, if nobody chooses or asks for any."""
    reader.cache.length = 0
    id_11 = torch.ones(1, 1, dtype=torch.long, device=reader.device)
    start = wait(reader.device)
    for _ in range(tokens):
        reader(id_11)
    return (wait(reader.device) - start) / tokens


@torch.no_grad()
def all_logits(reader: Reader, tokens: int) -> torch.Tensor:
    """[tokens, V] of a text of random tokens, one at a time."""
    text = torch.randint(reader.model.vocab_size, (tokens,), generator=torch.Generator())
    reader.cache.length = 0
    rows = [reader(id_1[None]).float().cpu() for id_1 in text.to(reader.device).split(1)]
    return torch.cat(rows)


def agreement(told: dict, reader: Reader, plain: dict, logits_TV: torch.Tensor) -> dict[str, Any]:
    """How far a way is from the plain one; see the module docstring."""
    ours_TV = all_logits(reader, len(logits_TV))
    same = [a == b for a, b in zip(told["greedy"]["ids"], plain["greedy"]["ids"])]
    return {
        "greedy_ids_in_common": same.index(False) if False in same else len(same),
        "largest_difference": ((ours_TV - logits_TV).abs().max() / logits_TV.std()).item(),
        "same_choice": (ours_TV.argmax(1) == logits_TV.argmax(1)).float().mean().item(),
    }


def reader_of(model: GPT, way: str) -> Reader:
    if way != "fused-late":
        return make_reader(model, way)
    from model import kernels

    with unittest.mock.patch.object(kernels, "CAN_START_EARLY", False):
        return make_reader(model, "fused")


def measure(model: GPT, ways: list[str], tokens: int, bandwidth: float) -> list[dict[str, Any]]:
    plain, logits_TV, rows = {}, torch.empty(0), []
    limit = bandwidth / bytes_read(model)
    for way in ways:
        start = time.perf_counter()
        try:
            reader = reader_of(model, way)
            told = texts(reader, tokens)
        except Exception as error:  # one way that fails is a finding, not the end of the others
            rows.append({"way": way, "failed": f"{type(error).__name__}: {error}"[:2000]})
            print(rows[-1], flush=True)
            continue
        row: dict[str, Any] = {"way": way, "start_s": told["start_s"]}
        for name in SAMPLERS:
            row[name + "_tokens_per_second"] = told[name]["tokens_per_second"]
            row[name + "_share_of_limit"] = told[name]["tokens_per_second"] / limit
        row["step_ms"] = 1000 * step_seconds(reader, tokens)
        row["step_share_of_limit"] = 1000 / row["step_ms"] / limit
        if way == "plain":
            plain, logits_TV = told, all_logits(reader, min(tokens, 128))
        row.update(agreement(told, reader, plain, logits_TV))
        row["seconds_in_all"] = time.perf_counter() - start
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="large", choices=SIZES)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--ways", help="plain first; else all on a GPU, plain and graph elsewhere")
    parser.add_argument("--dry", action="store_true", help="do not write a result")
    options = parser.parse_args()
    device = resolve_device(options.device)
    ways, precision = ",".join((*WAYS, "fused-late")), options.precision
    if device.type == "cpu":  # as pipeline/weights.py has it for small models
        ways, precision = "plain,graph", "fp32" if precision == "auto" else precision
        torch.set_num_threads(1)
    model = GPT(SIZES[options.size], options.vocab)
    model.compute_dtype = resolve_precision(precision, device)
    model = model.freeze().to(device).eval()
    bandwidth = copy_bandwidth(device)
    result = {
        "device": device_name(device),
        "size": options.size,
        "tokens": min(options.tokens, model.config.context),
        "type": str(model.compute_dtype),
        "bytes_of_weights": bytes_read(model),
        "copy_bandwidth": bandwidth,
        "limit_tokens_per_second": bandwidth / bytes_read(model),
    }
    print(result, flush=True)
    tokens = result["tokens"]
    result["ways"] = measure(model, (options.ways or ways).split(","), tokens, bandwidth)
    if not options.dry:
        save(f"decode-{options.size}-{device.type}", result)


if __name__ == "__main__":
    main()
