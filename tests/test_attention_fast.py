"""Rotation and attention compiled for a CPU: what the lesson gives, forwards and back."""

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trainer import SHAPE, TRAIN, losses, trainer
from torch import Tensor

from model.attention import Attention, attention
from model.attention_fast import rotated_attention
from model.config import ModelConfig
from model.embeddings import rotary_table, rotate
from model.fast.build import attention_kernels

SEED = 20263
# batch, time, heads, size: whole tiles, parts of them, a single number, more threads than heads
SHAPES = [(2, 256, 4, 32), (1, 37, 3, 8), (3, 100, 2, 24), (1, 1, 1, 2), (1, 70, 2, 64)]


def lesson(qkv_BTNK: Tensor, heads: int, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    q, k, v = qkv_BTNK.transpose(1, 2).split(heads, dim=1)
    return attention(rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK), v).transpose(1, 2)


def inputs(shape: tuple[int, int, int, int], scale: float = 1.0) -> tuple[Tensor, ...]:
    """Queries, keys and values; the gradient to come back; cosines and sines. All float64."""
    batch, time, heads, size = shape
    generator = torch.Generator().manual_seed(SEED)

    def drawn(many: int) -> Tensor:
        return torch.randn(batch, time, many, size, generator=generator, dtype=torch.float64)

    tables = (table.double() for table in rotary_table(time, size, 10_000.0))
    return scale * drawn(3 * heads), drawn(heads), *tables


def found(attend, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What it gives, and the gradient of that, computed in ``dtype``."""
    qkv, given, *tables = (tensor.to(dtype) for tensor in inputs)
    y = attend(qkv.requires_grad_(), given.shape[2], *tables)
    return y, torch.autograd.grad(y, qkv, given)[0]


def check(shape: tuple[int, int, int, int], scale: float = 1.0) -> None:
    given = inputs(shape, scale)
    exact = found(lesson, given, torch.float64)
    for one, other in zip(found(rotated_attention, given, torch.float32), exact):
        torch.testing.assert_close(one.double(), other, atol=2e-5 * scale, rtol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_rotated_attention(shape) -> None:
    check(shape)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.tuples(*(st.integers(1, most) for most in (3, 90, 4, 20))))
def test_of_any_shape(shape) -> None:
    batch, time, heads, half = shape
    check((batch, time, heads, 2 * half))


def test_scores_may_be_as_large_as_they_like() -> None:
    """The largest of a row is taken off before exponentials."""
    qkv, _, *tables = (tensor.float() for tensor in inputs((1, 40, 2, 8), scale=100.0))
    y = rotated_attention(qkv, 2, *tables)
    exact = lesson(qkv.double(), 2, *(table.double() for table in tables))
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), exact, atol=1.0, rtol=0.01)  # of scores near 10,000


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_it_is_more_exact_than_the_lesson(shape) -> None:
    given = tuple(tensor.bfloat16().double() for tensor in inputs(shape))
    exact = found(lesson, given, torch.float64)
    ours, theirs = (
        [(one.double() - other).norm().item() for one, other in zip(some, exact)]
        for some in (
            found(rotated_attention, given, torch.bfloat16),
            found(lesson, given, torch.bfloat16),
        )
    )
    for one, other in zip(ours, theirs):
        assert one <= other + 1e-6


def test_the_bits_are_the_same_with_any_number_of_threads() -> None:
    given, before = inputs((3, 50, 3, 16)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = found(rotated_attention, given, torch.float32)
        torch.set_num_threads(3)
        for _ in range(5):
            again = found(rotated_attention, given, torch.float32)
            assert all(torch.equal(one, other) for one, other in zip(alone, again))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 7, 8, 38, 63])
def test_no_token_sees_what_comes_after_it_nor_a_head_another(at, dtype) -> None:
    qkv, _, *tables = inputs((1, 64, 2, 8))
    qkv = qkv.to(dtype)
    whole = rotated_attention(qkv, 2, *tables)
    qkv[0, at:, ::2] *= -3  # query, key and value of the first head
    other = rotated_attention(qkv, 2, *tables)
    assert torch.equal(other[0, :at], whole[0, :at])
    assert torch.equal(other[0, :, 1], whole[0, :, 1])
    assert not (other[0, at:, 0] == whole[0, at:, 0]).all(dim=-1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [0, 2, 4])
def test_a_run_that_diverges_shows_it(part, dtype) -> None:
    """What is no number is none behind it, be it in a query, a key or a value."""
    qkv, given, *tables = inputs((1, 64, 2, 8))
    qkv = qkv.to(dtype)
    qkv[0, 38, part, 3] = float("nan")
    y = rotated_attention(qkv.requires_grad_(), 2, *tables)
    seen = y[0, 38:, 0] if part else y[0, 38, 0]
    assert seen.isnan().any(dim=-1).all()
    assert torch.autograd.grad(y, qkv, given.to(dtype))[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("time", "size"), [(1, 2), (37, 8), (64, 32), (65, 34)])
def test_kernels_write_where_they_may_and_nowhere_else(time, size, dtype) -> None:
    kernels, heads, guard = attention_kernels(), 2, 64
    torch.manual_seed(SEED)

    def guarded(numbers: int, dtype: torch.dtype, fill: bool = False) -> Tensor:
        made = torch.full((numbers + 2 * guard,), -7.0, dtype=dtype)
        if fill:
            made[guard:-guard] = torch.randn(numbers)
        return made

    def address(tensor: Tensor) -> int:
        return tensor.data_ptr() + guard * tensor.element_size()

    vectors = heads * time * size
    qkv, result = guarded(3 * vectors, dtype, fill=True), guarded(3 * vectors, dtype)
    output, given = guarded(vectors, dtype), guarded(vectors, dtype, fill=True)
    sums = guarded(heads * time, torch.float32)
    turning = torch.stack(rotary_table(time, size, 10_000.0))
    room = guarded(kernels.room(time, size), torch.float32)
    narrow = dtype == torch.bfloat16
    shape = (narrow, time, heads, size, 0, heads)
    before = [address(tensor) for tensor in (qkv, output, sums)]
    kernels.attend(*before, turning.data_ptr(), *shape, address(room))
    before = [address(tensor) for tensor in (qkv, output, given, sums)]
    kernels.attend_back(*before, turning.data_ptr(), *shape, address(result), address(room))
    for tensor in (qkv, result, output, given, sums, room):
        assert (tensor[:guard] == -7).all() and (tensor[-guard:] == -7).all()
    for tensor in (result, output, sums):  # every place of the result has been written
        assert not (tensor[guard:-guard] == -7).any()


def test_what_is_interrupted_waits_for_the_other_threads(monkeypatch) -> None:
    """They write to memory that would otherwise be somebody else's by then."""
    real, ended = attention_kernels(), []

    class Interrupted:
        room = real.room

        def attend(self, *arguments) -> int:
            if ended:
                raise KeyboardInterrupt
            ended.append(False)
            real.attend(*arguments)
            ended[0] = True
            return 0

    monkeypatch.setattr("model.attention_fast.attention_kernels", Interrupted)
    qkv, _, *tables = (tensor.float() for tensor in inputs((4, 64, 4, 32)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            rotated_attention(qkv, 4, *tables)
    finally:
        torch.set_num_threads(before)
    assert ended == [True]


def bad(**changes):
    """Arguments of which one does not fit the others."""
    qkv, _, cos, sin = (tensor.float() for tensor in inputs((1, 8, 2, 4)))
    return tuple(({"qkv": qkv, "heads": 2, "cos": cos, "sin": sin} | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv": torch.zeros(1, 8, 6, 4, dtype=torch.float16)},
        {"qkv": torch.zeros(1, 8, 6, 4, dtype=torch.float64)},
        {"qkv": torch.zeros(1, 8, 6, 4, device="meta")},
        {"qkv": torch.zeros(1, 9, 6, 4)},
        {"heads": 1},
        {"qkv": torch.zeros(1, 8, 6, 3), "cos": torch.zeros(8, 3), "sin": torch.zeros(8, 3)},
        {"sin": torch.zeros(7, 4)},
    ],
)
def test_what_would_be_misread_is_refused(changes) -> None:
    with pytest.raises(ValueError, match=r"it must be float32|\[B, T, 3 heads, K\]"):
        rotated_attention(*bad(**changes))


def test_tensors_that_lie_otherwise_in_memory() -> None:
    qkv, given, *tables = (tensor.float() for tensor in inputs((2, 20, 2, 6)))
    plain = found(rotated_attention, (qkv, given, *tables), torch.float32)
    turned = qkv.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    y = rotated_attention(turned, 2, *tables)
    other = given.neg().transpose(1, 3).contiguous().transpose(1, 3)
    gradient = torch.autograd.grad(y, turned, torch._neg_view(other))[0]
    assert torch.equal(y, plain[0]) and torch.equal(gradient, plain[1])


def test_room_is_float32_whatever_torch_makes_by_default() -> None:
    given = inputs((1, 70, 2, 64))
    expected = found(rotated_attention, given, torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = found(rotated_attention, given, torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(expected, again))


def test_a_gradient_of_the_gradient_is_refused() -> None:
    qkv, given, *tables = (tensor.float() for tensor in inputs((1, 8, 2, 4)))
    y = rotated_attention(qkv.requires_grad_(), 2, *tables)
    (gradient,) = torch.autograd.grad(y, qkv, given.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_where_no_thread_can_be_had_there_is_one_at_least(monkeypatch) -> None:
    given, before = inputs((2, 30, 4, 8)), torch.get_num_threads()
    expected = found(rotated_attention, given, torch.float32)

    class Full:
        def submit(self, work):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("model.attention_fast._threads", lambda process: Full())
    torch.set_num_threads(3)
    try:
        again = found(rotated_attention, given, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(expected, again))


def test_threads_that_are_the_first_to_need_the_kernels() -> None:
    """Each may load them, and only one's are remembered: code must live while it runs."""
    code = """
import threading, torch
from test_attention_fast import SHAPES, check
threads = [threading.Thread(target=check, args=(SHAPES[0],)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    for _ in range(3):
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert (told.returncode, told.stdout) == (0, "done\n"), told.stderr


def test_a_forked_process_has_threads_of_its_own() -> None:
    given, before = inputs((2, 30, 4, 8)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found(rotated_attention, given, torch.float32)  # now there are threads here
        child = os.fork()
        if not child:
            torch.set_num_threads(2)
            y = rotated_attention(given[0].float(), 4, *given[2:])
            os._exit(0 if y.isfinite().all() else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_a_layer_takes_it_only_where_it_is_alone_with_it() -> None:
    torch.manual_seed(SEED)

    def layer(**changes) -> Attention:
        shape = ModelConfig(layers=1, width=16, heads=2, feed_forward=8, context=16, **changes)
        made = Attention(shape)
        torch.nn.init.normal_(made.qkv.weight)
        torch.nn.init.normal_(made.out.weight)
        return made

    x, rotary, taken = torch.randn(2, 16, 16), rotary_table(16, 8, 10_000.0), []

    def spied(*arguments) -> Tensor:
        taken.append(True)
        return rotated_attention(*arguments)

    plain = layer()
    expected = plain(x, rotary)
    plain.in_one = spied
    torch.testing.assert_close(plain(x, rotary), expected, atol=1e-3, rtol=1e-3)
    assert taken == [True]
    for other in (layer(qk_norm=True), layer(attention_dropout=0.1)):
        other.in_one = spied
        other(x, rotary)
    assert taken == [True]


def test_training_with_it_gives_the_same_curve_and_bits_however_it_is_worked_off() -> None:
    shape, train = replace(SHAPE, layers=3, dropout=0.2), replace(TRAIN, steps=12)
    plain = losses(trainer(train, shape, micro_batch=4), 12)
    states = []
    for recompute in (False, True):
        run = trainer(train, shape, micro_batch=4)
        run.model.attend_in_one(rotated_attention)
        run.model.recompute = recompute
        assert losses(run, 12) == pytest.approx(plain, abs=1e-4)
        states.append({name: value.clone() for name, value in run.state().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="it is for 64 bits")
def test_without_avx512_as_well(tmp_path) -> None:
    """Other processors have shorter vectors and fewer registers."""
    import llvmlite.binding as llvm

    if not llvm.get_host_cpu_features().get("avx512f"):
        pytest.skip("this processor has no AVX-512, so all the other tests are this one")
    code = """
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
for name in features:
    if "avx512" in name or "avx10" in name:
        features[name] = False
llvm.get_host_cpu_features = lambda: features
llvm.get_host_cpu_name = lambda: "haswell"
from test_attention_fast import SHAPES, check, test_in_bfloat16_it_is_more_exact_than_the_lesson
from model.fast import tiles
for shape in SHAPES:
    check(shape)
    test_in_bfloat16_it_is_more_exact_than_the_lesson(shape)
print(tiles.LANES)
"""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "IGNITE_CACHE": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout == "8\n"
