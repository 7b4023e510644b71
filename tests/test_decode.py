"""The fast ways of reading a token against the plain one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import lively_model

from model.attention import KVCache
from model.config import ModelConfig
from model.decode import Fast, quick_reader
from model.generate import Reader, generate
from model.gpt import GPT
from model.sampling import SamplerConfig

VOCAB = 31
SHAPE = ModelConfig(layers=2, width=32, heads=2, feed_forward=64, context=16)
SHAPES = {
    "biased": SHAPE,
    "bare": replace(SHAPE, bias=False, norm="rmsnorm", tied=False),
    "qk-norm": replace(SHAPE, qk_norm=True),
}
GREEDY = SamplerConfig(temperature=0)
WARM = SamplerConfig(temperature=1.0, top_k=10, top_p=0.95, seed=5)


def lively(config: ModelConfig) -> GPT:
    return lively_model(config, VOCAB, deviation=0.3, seed=1)


def ids(count: int) -> Tensor:
    return torch.randint(VOCAB, (1, count), generator=torch.Generator().manual_seed(count))


# --- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_length", [0, 1, 5, 15])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_static_step_gives_the_logits_of_the_plain_way(shape: str, prompt_length: int) -> None:
    model = lively(SHAPES[shape])
    same_logits(Reader(model), Fast(model), prompt_length)


@torch.no_grad()
def same_logits(plain: Reader, fast: Reader, prompt_length: int, tolerance: float = 1e-5) -> None:
    """Both read a prompt, then token by token to the end of the context."""
    text = ids(plain.model.config.context).to(plain.device)
    if prompt_length:
        plain(text[:, :prompt_length]), fast(text[:, :prompt_length])
    for at in range(prompt_length, text.shape[1]):
        told, expected = fast(text[:, at : at + 1]), plain(text[:, at : at + 1])
        torch.testing.assert_close(told, expected, rtol=tolerance, atol=tolerance)
        assert fast.cache.length == plain.cache.length == at + 1


def test_the_step_reads_no_more_of_the_cache_than_it_needs() -> None:
    model = lively(replace(SHAPE, context=600))
    fast = Fast(model)
    lengths = []
    for fast.cache.length in (1, 256, 257, 512, 513, 600):
        lengths.append(fast._length())
    assert lengths == [256, 256, 512, 512, 600, 600]


def test_what_lies_behind_a_token_in_the_cache_does_not_matter() -> None:
    model = lively(SHAPE)
    fresh, used = Fast(model), Fast(model)
    used(ids(16))
    used.cache.length = 0
    for at in range(5):
        assert torch.equal(fresh(ids(9)[:, at : at + 1]), used(ids(9)[:, at : at + 1]))


@pytest.mark.slow
def test_the_compiled_step_gives_the_logits_of_the_plain_way() -> None:
    for shape in SHAPES.values():
        model = lively(shape)
        same_logits(Reader(model), Fast(model, "compiled"), 5)


def interpreted() -> bool:
    """May Triton's kernels run on a CPU, number by number? Some of its versions need numpy < 2.4"""
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton  # noqa: F401

        return int(np.ones(1)) == 1
    except (ImportError, TypeError):
        return False


@pytest.mark.skipif(
    not torch.cuda.is_available() and not interpreted(), reason="no GPU, and no Triton to act it"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_give_the_logits_of_the_plain_way(shape: str, dtype: torch.dtype) -> None:
    # neither the past, nor the width, nor a head is a power of two or fits in one go
    config = replace(SHAPES[shape], layers=1, width=48, heads=4, feed_forward=4100, context=70)
    model = lively(config)
    model.compute_dtype = dtype
    model.freeze().to("cuda" if torch.cuda.is_available() else "cpu")
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    same_logits(Reader(model), Fast(model, "fused"), 68, tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampler", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("way", ["graph", "compiled", "fused"])
def test_every_way_writes_the_same_text_on_a_gpu(way: str, sampler: SamplerConfig) -> None:
    model = lively(SHAPE).to("cuda")
    plain = list(generate(model, [1, 2], max_tokens=60, sampler=sampler))
    fast = Fast(model, way)
    for _ in range(2):
        settings = {"max_tokens": 60, "sampler": sampler, "reader": fast}
        assert list(generate(model, [1, 2], **settings)) == plain


def test_a_cpu_reads_the_plain_way_and_nothing_is_wrong() -> None:
    reader, wrong = quick_reader(lively(SHAPE), 10_000)
    assert type(reader) is Reader
    assert not wrong


# --- generating ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("prompt_length", [1, 2, 11, 16, 40])
def test_generation_writes_the_same_text(prompt_length: int, sampler: SamplerConfig) -> None:
    model = lively(SHAPE)
    prompt = ids(prompt_length)[0].tolist()
    plain = list(generate(model, prompt, max_tokens=60, sampler=sampler))
    fast = Fast(model)
    for _ in range(2):  # a reader may be used again
        settings = {"max_tokens": 60, "sampler": sampler, "reader": fast}
        assert list(generate(model, prompt, **settings)) == plain


# --- frozen weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_frozen_model_computes_the_same_bit_for_bit(shape: str, dtype: torch.dtype) -> None:
    model, frozen = lively(SHAPES[shape]), lively(SHAPES[shape])
    model.compute_dtype = frozen.compute_dtype = dtype
    frozen.freeze()
    caches = [KVCache.empty(model.config, 1, torch.device("cpu"), dtype) for _ in range(2)]
    for part in ids(9).split([6, 1, 2], dim=1):
        assert torch.equal(frozen(part, caches[0]), model(part, caches[1]))
    assert torch.equal(frozen.token_losses(ids(9), ids(9)), model.token_losses(ids(9), ids(9)))


def test_a_frozen_model_holds_the_weights_of_products_in_their_type() -> None:
    model = lively(SHAPE)
    model.compute_dtype = torch.bfloat16
    model.freeze()
    assert model.head_weight.dtype == torch.bfloat16
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert all("norm" in name or name == "embedding.weight" for name in wide)


# --- one position of the head --------------------------------------------------------------------


@torch.no_grad()
def test_the_next_logits_are_the_last_of_all() -> None:
    model = lively(SHAPE)
    torch.testing.assert_close(model.next_logits(ids(9)), model(ids(9))[:, -1])


# --- the benchmark -------------------------------------------------------------------------------


def test_the_benchmark_runs_on_a_toy() -> None:
    script = Path(__file__).parents[1] / "bench" / "decode.py"
    options = ["--size", "tiny", "--device", "cpu", "--tokens", "8", "--vocab", "64", "--dry"]
    done = subprocess.run(
        [sys.executable, script, *options], check=True, capture_output=True, text=True
    )
    assert "'way': 'graph'" in done.stdout
    assert "failed" not in done.stdout
