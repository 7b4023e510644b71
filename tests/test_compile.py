"""Compiling: chosen where it can be and is worth it, and the same numbers as without."""

import shutil
from dataclasses import replace

import pytest
import torch
from pipelines import MACHINE, run, toy_engine
from test_trainer import SHAPE, TRAIN, losses, trainer

from model.config import SIZES
from pipeline import recipe
from pipeline.compiling import WORTH, _no_compiler, choose_compile, resolve_compile, work

CARD = (8, 6)
LONG = WORTH["cuda"]


@pytest.mark.parametrize(
    ("kind", "capability", "operations", "chosen"),
    [
        ("cuda", CARD, 2 * LONG, True),
        ("cuda", (7, 0), 2 * LONG, True),
        ("cuda", CARD, LONG / 2, False),
        ("cpu", None, 2 * WORTH["cpu"], True),
        ("cpu", None, WORTH["cpu"] / 2, False),
        ("mps", None, 2 * LONG, False),
    ],
)
def test_auto_compiles_long_runs_without_words(kind, capability, operations, chosen):
    assert choose_compile("auto", kind, capability, True, operations) == (chosen, "")


@pytest.mark.parametrize(
    ("capability", "triton", "words"),
    [
        ((6, 0), True, "needs compute capability 7.0, and this GPU has 6.0"),
        (CARD, False, "triton is not installed"),
    ],
)
def test_what_cannot_be_compiled_is_told_once_or_refused(capability, triton, words):
    chosen, why = choose_compile("auto", "cuda", capability, triton, 2 * LONG)
    assert not chosen and words in why
    with pytest.raises(ValueError, match=r"--compile on: .*Use --compile off"):
        choose_compile("on", "cuda", capability, triton, 0)
    assert choose_compile("off", "cuda", capability, triton, 2 * LONG) == (False, "")
    assert choose_compile("auto", "cuda", capability, triton, 0) == (False, "")


def test_what_is_ruled_out_is_told_where_it_would_have_been_worth_it():
    told, cpu = [], torch.device("cpu")
    assert not resolve_compile("auto", cpu, 2 * WORTH["cpu"], told.append, "no such thing")
    assert not resolve_compile("auto", cpu, 0, told.append, "no such thing")
    assert told == ["not compiled: no such thing"]


def test_on_means_on_where_it_can():
    assert choose_compile("on", "cuda", CARD, True, 0) == (True, "")
    assert choose_compile("on", "cpu", None, False, 0) == (True, "")
    with pytest.raises(ValueError, match="untried on mps"):
        choose_compile("on", "mps", None, True, 0)


def test_the_choice_is_one_of_the_recipe_and_not_of_what_is_left_of_it():
    """A resumed run must compute as it began to."""
    told = []
    train = recipe.load("medium").train
    whole = work(SIZES["medium"], train, 32_000)
    assert whole > LONG
    assert resolve_compile("auto", torch.device("cpu"), whole, told.append)
    assert told == []
    assert WORTH["cpu"] < work(SIZES["tiny"], recipe.load("tiny").train, 1024) < LONG


def test_a_cpu_on_which_nothing_can_be_compiled(monkeypatch):
    def fail():
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr("model.fast.build.attention_kernels", fail)
    told, cpu = [], torch.device("cpu")
    assert not resolve_compile("auto", cpu, 2 * WORTH["cpu"], told.append)
    assert told == ["not compiled: ImportError: No module named 'numba'"]
    with pytest.raises(ValueError, match=r"--compile on: ImportError: .*Use --compile off"):
        resolve_compile("on", cpu, 0, told.append)
    assert not resolve_compile("auto", cpu, 0, told.append) and len(told) == 1


@pytest.mark.parametrize("setting", ["model.qk_norm=true", "model.attention_dropout=0.1"])
def test_what_attention_on_a_cpu_cannot_do_compiled(tmp_path, corpus, setting):
    engine = toy_engine(tmp_path / "store", corpus, setting)
    with pytest.raises(ValueError, match=r"--compile on: .* without model\..*Use --compile off"):
        run(engine, "train", replace(MACHINE, compile="on"))
    _, told = run(engine, "train", MACHINE)
    assert "compiled" not in told


# of torch's own, when its compiler is loaded
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_compiled_training_gives_the_same_curve_and_compiles_a_few_blocks():
    shape, train = replace(SHAPE, layers=8, dropout=0.2), replace(TRAIN, steps=12)
    plain = losses(trainer(train, shape, micro_batch=4), 12)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = trainer(train, shape, micro_batch=4)
    run.model.compiled = True
    assert losses(run, 12) == pytest.approx(plain, abs=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # four blocks, a slice
    kept = run.state()["model.embedding.weight"].clone()
    again = trainer(train, shape, micro_batch=4)
    again.model.compiled = again.model.recompute = True
    losses(again, 12)
    assert torch.equal(again.state()["model.embedding.weight"], kept)


@pytest.mark.parametrize(
    ("dtype", "seen"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),  # ends at 65,504, and the stream is a sum
    ],
)
def test_the_stream_is_as_narrow_as_the_branches_only_in_compiled_bfloat16(
    monkeypatch, dtype, seen
):
    for place in ("model.gpt.compiled", "model.loss.compiled"):
        monkeypatch.setattr(place, lambda function: function)
    run = trainer(TRAIN, SHAPE)
    model, types = run.model, []
    model.compute_dtype = dtype
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))

    def stream_in(compiled: bool) -> set[torch.dtype]:
        types.clear()
        model.compiled = compiled
        ids_BT = torch.arange(8)[None]
        model.loss(ids_BT, ids_BT).backward()
        return set(types)

    assert stream_in(compiled=False) == {torch.float32}
    assert stream_in(compiled=True) == {seen}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        types.clear()
        model.token_losses(torch.arange(8)[None], torch.arange(8)[None])
    assert set(types) == {torch.float32}


def test_a_machine_without_a_c_compiler(monkeypatch):
    """On a GPU Triton needs one; here it is torch's own for CPUs that does."""
    from torch._inductor import config

    cpu = torch.device("cpu")
    assert _no_compiler(cpu) == ""
    torch._dynamo.reset()
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "fx_graph_cache", False)
    assert "torch.compile does not work here (InductorError: " in _no_compiler(cpu)
