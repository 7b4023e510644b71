"""Which precision on which chip, and why not another."""

import re

import pytest
import torch

from pipeline import machine
from pipeline.machine import allow_tf32, choose_precision, resolve_precision

CHIPS = {
    "Tesla K80": ((3, 7), "fp32"),
    "GTX 1080 Ti": ((6, 1), "fp32"),
    "Tesla P100": ((6, 0), "fp32"),
    "Tesla V100": ((7, 0), "fp16"),
    "Tesla T4": ((7, 5), "fp16"),
    "A100": ((8, 0), "bf16"),
    "RTX 3060": ((8, 6), "bf16"),
    "RTX 4090": ((8, 9), "bf16"),
    "H200": ((9, 0), "bf16"),
    "B200": ((10, 0), "bf16"),
    "RTX 5090": ((12, 0), "bf16"),
}


@pytest.mark.parametrize("chip", CHIPS)
def test_a_gpu_computes_in_what_it_has_units_for(chip):
    capability, best = CHIPS[chip]
    assert choose_precision("auto", "cuda", capability, chip=chip) == best
    assert choose_precision("fp32", "cuda", capability, chip=chip) == "fp32"
    assert choose_precision(best, "cuda", capability, chip=chip) == best


@pytest.mark.parametrize("chip", CHIPS)
def test_what_a_gpu_is_bad_at_is_refused_with_what_is_better(chip):
    capability, best = CHIPS[chip]
    refused = {
        "bf16": (capability < (8, 0), "only emulates bfloat16, many times slower"),
        "fp16": (capability < (7, 0), "has no tensor cores, and sums that it adds up in float16"),
    }
    for name, (bad, why) in refused.items():
        if not bad:
            assert choose_precision(name, "cuda", capability, chip=chip) == name
            continue
        words = f"--precision {name}: {chip} {why}.* Use --precision {best}"
        with pytest.raises(ValueError, match=words):
            choose_precision(name, "cuda", capability, chip=chip)


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ("sse avx2", "fp32"),
        ("avx512f avx512_bf16", "bf16"),
        ("amx_tile amx_bf16", "bf16"),
        ("", "fp32"),
    ],
)
def test_a_cpu_computes_in_what_it_has_units_for(flags, best):
    flags = frozenset(flags.split())
    assert choose_precision("auto", "cpu", flags=flags) == best
    assert choose_precision("bf16", "cpu", flags=flags) == "bf16", "slow perhaps, and exact"
    with pytest.raises(ValueError, match=f"fp16: slow and no use on a CPU. Use --precision {best}"):
        choose_precision("fp16", "cpu", flags=flags)


def test_apples_gpus_compute_in_float32():
    assert choose_precision("auto", "mps", flags={"avx512_bf16"}) == "fp32"
    with pytest.raises(ValueError, match=r"untried on Apple's GPUs. Use --precision fp32"):
        choose_precision("fp16", "mps")


@pytest.mark.parametrize("kind", ["cuda", "cpu", "mps"])
def test_what_is_no_precision(kind):
    with pytest.raises(ValueError, match="--precision fp8: it must be auto, fp32, bf16 or fp16"):
        choose_precision("fp8", kind, (9, 0))


def test_a_device_is_asked_what_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda")
    assert resolve_precision("auto", gpu) == torch.float16
    assert resolve_precision("fp32", gpu) == torch.float32
    with pytest.raises(ValueError, match=re.escape("Tesla T4 only emulates bfloat16")):
        resolve_precision("bf16", gpu)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert resolve_precision("auto", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset())
    assert resolve_precision("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    ("kind", "capability", "allowed"),
    [
        ("cuda", (7, 5), False),
        ("cuda", (8, 0), True),
        ("cuda", (12, 0), True),
        ("cpu", None, False),
    ],
)
def test_tf32_is_for_gpus_that_have_it_and_for_no_cpu(monkeypatch, kind, capability, allowed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = torch.backends.cuda.matmul.allow_tf32
    on_cpu = torch.backends.mkldnn.matmul.fp32_precision
    assert not before
    try:
        allow_tf32(torch.device(kind))
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert torch.backends.mkldnn.matmul.fp32_precision == on_cpu
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
