"""What training takes of memory: the formulas of docs/training.md hold, and so does its table."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import SIZES, ModelConfig
from model.gpt import GPT
from model.loss import SLICE
from pipeline import memory, recipe
from pipeline.memory import CUDA, SPARE, block_bytes, choose, fixed_bytes, halves, token_bytes

GIB = 1 << 30
CARDS = (4, 8, 16, 24)
DOCUMENT = Path(__file__).parents[1] / "docs" / "training.md"


def kept(shape: ModelConfig, batch: int, recompute: bool) -> int:
    """Bytes that torch keeps for the way back, weights and what the head adds up left out."""
    model = GPT(shape, vocab_size=4)
    model.compute_dtype, model.recompute = torch.bfloat16, recompute
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    seen: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids_BT = torch.zeros(batch, shape.context, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(ids_BT, ids_BT)
    return sum(seen.values())


def test_the_loss_holds_the_slice_that_is_counted():
    assert memory.SLICE == SLICE


@pytest.mark.parametrize(
    "shape",
    [
        # beyond 512 tokens a CPU takes torch's fused attention, as GPUs always do
        ModelConfig(layers=1, width=64, heads=2, feed_forward=256, context=1024),
        ModelConfig(layers=3, width=64, heads=4, feed_forward=128, context=640),
        ModelConfig(layers=2, width=96, heads=2, feed_forward=384, context=640),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_token_keeps_what_the_formula_says(shape, recompute):
    seen = kept(shape, 3, recompute) - kept(shape, 2, recompute)
    expected = token_bytes(shape, recompute)
    if recompute:  # the one block that is computed again keeps it on the way back only
        expected -= block_bytes(shape)
    assert seen == expected * shape.context


def row(size: str) -> str:
    chosen = recipe.load(size, data="none")
    shape, batch = chosen.model, chosen.train.batch
    vocab = chosen.tokenizer.vocab_size
    cells = [size, f"{16 * shape.parameters(vocab) / GIB:.2f}"]
    cells.append(f"{fixed_bytes(shape, vocab, False) / GIB:.2f}")
    cells += [f"{token_bytes(shape, on) * shape.context / GIB:.3f}" for on in (False, True)]

    for card in CARDS:

        def fits(count: int, on: bool, card: int = card) -> bool:
            tokens = count * shape.context
            needed = fixed_bytes(shape, vocab, on, card * GIB) + tokens * token_bytes(shape, on)
            return needed <= (1 - SPARE) * card * GIB - CUDA

        count, on = choose(halves(batch), shape.context, "auto", fits)
        cells.append(f"{count or '-'}{' c' if on else ''}")
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("size", SIZES)
def test_the_table_is_what_is_computed(size):
    assert row(size) in DOCUMENT.read_text(encoding="utf-8").splitlines()
