"""Little memory: computing again changes no bit, and a step that runs out of it is done again."""

import random
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_trainer import SHAPE, TRAIN, VOCAB, copied_state, losses, trainer
from torch import Tensor

from model.gpt import GPT
from model.trainer import Trainer

# --- activation checkpointing ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drops", [{}, {"dropout": 0.2}, {"attention_dropout": 0.2}])
@pytest.mark.parametrize("more", [{}, {"tied": False, "qk_norm": True, "norm": "rmsnorm"}])
def test_recomputing_changes_no_bit_of_the_gradient(
    dtype: torch.dtype, drops: dict[str, float], more: dict[str, object]
) -> None:
    """The same after two steps too, so the masks and torch's generator are where they were."""
    shape = replace(SHAPE, **drops, **more)
    kept, recomputed = (trainer(shape=shape, micro_batch=3, dtype=dtype) for _ in range(2))
    recomputed.model.recompute = True
    calls = counted_blocks(recomputed)
    for run in (kept, recomputed):
        losses(run, 3)
    assert len(calls) == 2 * 3 * 3 * SHAPE.layers  # forwards and again, steps, slices, blocks
    for one, other in zip(kept.model.parameters(), recomputed.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
        assert torch.equal(one, other)


def counted_blocks(run: Trainer) -> list[int]:
    """Grows by one whenever a block computes."""
    calls: list[int] = []
    for block in run.model.blocks:
        block.attention.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_recomputing_keeps_less_of_each_block() -> None:
    def kept(recompute: bool) -> int:
        seen: dict[int, int] = {}
        model = GPT(replace(SHAPE, layers=8, dropout=0.1), VOCAB)
        model.recompute = recompute
        ids_BT = torch.zeros(8, 8, dtype=torch.long)

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        masks = model.masks(range(8), 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(ids_BT, ids_BT, masks).backward()
        return sum(seen.values())

    assert kept(True) < kept(False) / 4


def test_without_gradients_nothing_is_recomputed() -> None:
    run = trainer()
    run.model.recompute = True
    calls = counted_blocks(run)
    ids_BT = torch.zeros(2, 8, dtype=torch.long)
    with torch.no_grad():
        run.model.loss(ids_BT, ids_BT)
    run.model.token_losses(ids_BT, ids_BT)
    model_loss, token_losses = SHAPE.layers, SHAPE.layers
    assert len(calls) == model_loss + token_losses


# --- out of memory -------------------------------------------------------------------------------


# as torch, its libraries, a kernel that is loaded late and the compiler say it
SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
)


class Small:
    """Memory that ends where it is told: before, within or behind the backward pass of a slice."""

    def __init__(
        self,
        run: Trainer,
        too_large: Callable[[int, int], bool],
        where: str,
        error: RuntimeError = SHORT[0],
    ) -> None:
        self.run, self.too_large, self.where, self.error = run, too_large, where, error
        self.backward, self.clip = run._backward, run._clip
        run._backward, run._clip = self._backward, self._clip

    def _refuse(self, size: int, first: int) -> None:
        if self.too_large(size, first):
            raise type(self.error)(str(self.error))

    def _backward(self, first: int, last: int) -> Tensor:
        if self.where == "before":
            self._refuse(last - first, first)
        loss = self.backward(first, last)
        if self.where == "behind":
            self._refuse(last - first, first)
        return loss

    def _clip(self) -> Tensor:
        norm = self.clip()
        if self.where == "clipped":
            self._refuse(self.run.micro_batch, 0)
        return norm


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("where", ["before", "behind", "clipped"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_out_of_memory_is_as_if_told_smaller_slices_from_that_step_on(
    optimizer: str, where: str, seed: int
) -> None:
    draw = random.Random(f"{optimizer} {where} {seed}")
    train = replace(TRAIN, optimizer=optimizer)
    shape = replace(SHAPE, **draw.choice([{"dropout": 0.2}, {"attention_dropout": 0.2}]))
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    told = {draw.randrange(6): draw.choice([1, 2])}  # at which step it becomes how small
    broken, wise = (trainer(train, shape, micro_batch=4, dtype=dtype) for _ in range(2))
    (step, size), first = *told.items(), draw.choice([0, 4])
    Small(
        broken,
        lambda of, at: broken.step >= step and of > size and (at >= first or where == "clipped"),
        where,
        draw.choice(SHORT),
    )
    seen = losses(broken, 8)
    expected = losses(wise, step)
    wise.micro_batch = size
    expected += losses(wise, 8 - step)
    assert seen == expected
    assert all(torch.equal(value, wise.state()[name]) for name, value in broken.state().items())
    halves = [2] if size == 2 else [2, 1]
    said = [(step + 1, f"out of memory: micro-batch {each} from here on") for each in halves]
    assert broken.events == said and wise.events == []


def test_where_one_sequence_is_too_much_less_of_it_is_kept() -> None:
    broken, wise = (trainer(shape=replace(SHAPE, dropout=0.2), micro_batch=2) for _ in range(2))
    Small(broken, lambda *_: broken.step >= 3 and not broken.model.recompute, "behind")
    expected = losses(wise, 3)
    wise.micro_batch = 1
    assert losses(broken, 6) == expected + losses(wise, 3)
    assert all(torch.equal(value, wise.state()[name]) for name, value in broken.state().items())
    assert [words for _, words in broken.events] == [
        "out of memory: micro-batch 1 from here on",
        "out of memory: activation checkpointing from here on",
    ]


@pytest.mark.parametrize("may_recompute", [True, False])
def test_what_cannot_fit_is_given_up_with_what_to_change(may_recompute: bool) -> None:
    run = trainer(micro_batch=8)
    run.may_recompute = may_recompute
    losses(run, 2)
    before = copied_state(run)
    Small(run, lambda *_: True, "behind")
    words = r"step 3 does not fit into the memory of cpu, one sequence at a time: take "
    words += "" if may_recompute else "--activation-checkpointing auto, "
    with pytest.raises(ValueError, match=words + r"a shorter model\.context") as raised:
        run.run_step()
    assert str(raised.value).endswith("(CUDA out of memory. Tried to allocate 2.00 GiB.)")
    assert len(run.events) == 3 + may_recompute and run.model.recompute == may_recompute
    assert all(torch.equal(value, run.state()[name]) for name, value in before.items())


def test_nothing_of_the_failed_attempt_is_held_while_it_is_repeated() -> None:
    run = trainer(micro_batch=8)
    works, made = run._backward, []

    def backward(first: int, last: int) -> Tensor:
        if last - first > 4:
            activations = torch.zeros(100)
            made.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert [each() for each in made] == [None]
        return works(first, last)

    run._backward = backward
    run.run_step()
    assert len(run.events) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    run = trainer()
    run._clip = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.run_step()
    run = trainer()
    Small(run, lambda *_: True, "before", RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.run_step()
    assert run.events == []
