"""Which tokens a step trains on: all of them, once an epoch, and always the same ones."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches import Batches, permuted, random_bits

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
TEXT = np.arange(1000, dtype=np.int64)  # every token is its own position
CONTEXT = 16


def text_batches(batch: int = 8, seed: int = 0) -> Batches:
    return Batches(TEXT, CONTEXT, batch, seed)


def epoch_starts(batches: Batches, epoch: int) -> list[int]:
    return [batches.start(epoch * batches.windows + i) for i in range(batches.windows)]


# --- random numbers ------------------------------------------------------------------------------


def test_random_bits_never_change() -> None:
    # the first number is SplitMix64's for seed 0, as its authors' C code prints it; the others
    # are ours: were they to change, no run could be continued
    assert random_bits(0) == 0xE220A8397B1DCDAF
    assert random_bits(1, 2, 3) == 0x6AE515C1C0AC7E37
    assert random_bits(3, 2, 1) == 0xD62A7F6E291FEF64


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
@PROPERTY
def test_permuted_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_permuted_depends_on_the_key() -> None:
    orders = {tuple(permuted(i, 50, key) for i in range(50)) for key in range(100)}
    assert len(orders) == 100


def test_permuted_sends_each_index_everywhere() -> None:
    seen = {(i, permuted(i, 5, key)) for key in range(300) for i in range(5)}
    assert len(seen) == 25


# --- epochs --------------------------------------------------------------------------------------


@given(st.integers(2, 400), st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 5))
@PROPERTY
def test_an_epoch_holds_every_window_once(length: int, context: int, seed: int, epoch: int) -> None:
    context = min(context, length - 1)
    batches = Batches(np.zeros(length, np.uint16), context, 1, seed)
    starts = sorted(epoch_starts(batches, epoch))
    first = starts[0]
    assert starts == [first + context * i for i in range(batches.windows)]
    assert first >= 0 and starts[-1] + context + 1 <= length


def test_an_epoch_misses_less_than_two_windows_of_text() -> None:
    batches = text_batches()
    targets = {t for start in epoch_starts(batches, 0) for t in range(start + 1, start + 17)}
    assert len(targets) > len(TEXT) - 2 * CONTEXT


def test_epochs_differ_in_order_and_offset() -> None:
    batches = text_batches()
    epochs = [epoch_starts(batches, epoch) for epoch in range(8)]
    orders = {tuple(np.argsort(starts)) for starts in epochs}
    assert len(orders) == 8
    assert len({min(starts) for starts in epochs}) > 3


def test_an_epoch_is_not_in_the_order_of_the_text() -> None:
    starts = epoch_starts(text_batches(), 0)
    # of random neighbours half are in order
    in_order = np.mean(np.diff(starts) > 0)
    assert 0.3 < in_order < 0.7


# --- steps and slices ----------------------------------------------------------------------------


def test_targets_are_the_inputs_one_later() -> None:
    inputs, targets = text_batches().slice(3, 0, 8)
    assert inputs.shape == targets.shape == (8, CONTEXT)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    batches = text_batches(seed=4)
    for step in (5, 0, 9, 5):  # whatever was asked before
        np.testing.assert_array_equal(
            batches.slice(step, 0, 8)[0], text_batches(seed=4).slice(step, 0, 8)[0]
        )


def test_seeds_differ() -> None:
    first, second = (text_batches(seed=seed).slice(0, 0, 8)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


@given(st.integers(0, 40), st.lists(st.integers(1, 8), min_size=1, max_size=8))
@PROPERTY
def test_slices_make_up_the_step(step: int, sizes: list[int]) -> None:
    edges = [0, *(int(e) for e in np.cumsum(sizes) if e < 8), 8]
    batches = text_batches()
    parts = [batches.slice(step, a, b)[0] for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), batches.slice(step, 0, 8)[0])


def test_the_batch_size_does_not_change_the_order_of_samples() -> None:
    by_eight = [text_batches(8).slice(step, 0, 8)[0] for step in range(20)]
    by_five = [text_batches(5).slice(step, 0, 5)[0] for step in range(32)]
    np.testing.assert_array_equal(np.concatenate(by_eight), np.concatenate(by_five))


def test_a_memory_map_of_16_bit_tokens_works(tmp_path: Path) -> None:
    (65_535 - TEXT).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    mapped, _ = Batches(tokens, CONTEXT, 8, seed=0).slice(2, 0, 8)
    # above 32,767 a mistaken int16 would be negative
    np.testing.assert_array_equal(mapped, 65_535 - text_batches().slice(2, 0, 8)[0])


# --- too short -----------------------------------------------------------------------------------


def test_too_short_a_text_is_refused_with_a_context_that_fits() -> None:
    with pytest.raises(ValueError, match=r"has 16 tokens, and one window needs 17") as refusal:
        Batches(TEXT[:16], CONTEXT, 8, seed=0)
    advised = re.search(r"--set model\.context=(\d+)", str(refusal.value))
    assert advised is not None
    assert Batches(TEXT[:16], int(advised[1]), 8, seed=0).windows >= 1


def test_the_shortest_text_has_one_window() -> None:
    inputs, targets = Batches(TEXT[:17], CONTEXT, 1, seed=0).slice(0, 0, 1)
    assert inputs.tolist() == [list(range(16))]
    assert targets.tolist() == [list(range(1, 17))]
