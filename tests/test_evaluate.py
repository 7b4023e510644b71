"""The protocol of evaluation: every token once, each with the context it was promised."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toys import lively_model

from model.config import ModelConfig
from model.evaluate import Score, score, windows
from model.gpt import GPT

PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
VOCAB, CONTEXT = 23, 12
LENGTHS = st.integers(1, 400)
CONTEXTS = st.integers(1, 50)


def model() -> GPT:
    return lively_model(
        ModelConfig(layers=2, width=16, heads=2, feed_forward=32, context=CONTEXT), VOCAB
    )


def tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(VOCAB, size=length).astype(np.uint16)


# --- windows -------------------------------------------------------------------------------------


@given(LENGTHS, CONTEXTS, st.data())
@PROPERTY
def test_windows_score_each_token_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    spans = windows(length, context, stride)
    scored = [i for _, end, scored_from in spans for i in range(scored_from, end)]
    assert scored == list(range(length))


@given(LENGTHS, CONTEXTS, st.data())
@PROPERTY
def test_windows_fill_the_context_and_never_more(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    spans = windows(length, context, stride)
    assert all(0 <= start <= scored < end <= length for start, end, scored in spans)
    assert {end - start for start, end, _ in spans} == {min(context, length)}


@given(LENGTHS, CONTEXTS, st.data())
@PROPERTY
def test_later_windows_give_the_promised_context(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    assume(length > context)
    for start, _, scored_from in windows(length, context, stride)[1:]:
        assert scored_from - start >= context - stride


def test_windows_by_hand() -> None:
    assert windows(10, 4, 2) == [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    assert windows(10, 4, 4) == [(0, 4, 0), (4, 8, 4), (6, 10, 8)]
    assert windows(3, 4, 2) == [(0, 3, 0)]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_would_miss_tokens_is_a_bug(stride: int) -> None:
    with pytest.raises(AssertionError):
        windows(10, 4, stride)


# --- scores --------------------------------------------------------------------------------------


@torch.no_grad()
def one_by_one(model: GPT, text: np.ndarray, stride: int) -> float:
    """Total nats, each token predicted on its own from what the protocol lets it see."""
    text_T = torch.from_numpy(text.astype(np.int64))
    total = len(text) - 1
    nats = 0.0
    for i in range(total):
        start = 0
        if i >= CONTEXT:
            end = min(total, CONTEXT + ((i - CONTEXT) // stride + 1) * stride)
            start = end - CONTEXT
        logits_V = model(text_T[None, start : i + 1])[0, -1].double()
        nats -= logits_V.log_softmax(dim=-1)[text_T[i + 1]].item()
    return nats


@pytest.mark.parametrize("stride", [CONTEXT, CONTEXT // 2, 5, 1])
@pytest.mark.parametrize("length", [2, 8, 13, 14, 61])
def test_score_equals_token_by_token(length: int, stride: int) -> None:
    result = score(model(), tokens(length), stride=stride)
    assert result.tokens == length - 1
    assert result.nats == pytest.approx(one_by_one(model(), tokens(length), stride), rel=1e-5)


def test_disjoint_windows_are_texts_of_their_own() -> None:
    text = tokens(3 * CONTEXT + 1)
    parts = [text[start : start + CONTEXT + 1] for start in range(0, 3 * CONTEXT, CONTEXT)]
    alone = sum(score(model(), part, stride=CONTEXT).nats for part in parts)
    assert score(model(), text, stride=CONTEXT).nats == pytest.approx(alone, rel=1e-5)


class Copier(torch.nn.Module):
    """Knows that texts repeat every three tokens, so is sure of all but what it sees first."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(1, 2, 1, 2, CONTEXT)
        self.embedding = torch.nn.Embedding(VOCAB, 1)

    def token_losses(self, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV = torch.zeros(*ids_BT.shape, VOCAB)
        logits_BTV[:, 2:] = 100.0 * F.one_hot(ids_BT[:, :-2], VOCAB)
        return F.cross_entropy(logits_BTV.mT, targets_BT, reduction="none")


def test_disjoint_windows_forget_and_half_strides_remember() -> None:
    text, guess = np.tile([4, 9, 17], 41)[: 10 * CONTEXT + 1], math.log(VOCAB)
    # without context the first two predictions are guesses: in each of ten windows, or once
    assert score(Copier(), text, stride=CONTEXT).nats == pytest.approx(10 * 2 * guess)
    assert score(Copier(), text, stride=CONTEXT // 2).nats == pytest.approx(2 * guess)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_does_not_change_the_score(batch: int) -> None:
    reference = score(model(), tokens(200), stride=CONTEXT // 2, batch=16)
    result = score(model(), tokens(200), stride=CONTEXT // 2, batch=batch)
    assert result.tokens == reference.tokens
    assert result.nats == pytest.approx(reference.nats, rel=1e-6)


@pytest.mark.parametrize("fits", [1, 2, 5])
def test_what_memory_does_not_hold_at_once_is_read_in_parts(fits: int) -> None:
    gpt, read = model(), []
    works = gpt.token_losses

    def small(inputs, targets):
        if len(inputs) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        read.append(len(inputs))
        return works(inputs, targets)

    gpt.token_losses = small
    told = score(gpt, tokens(200), stride=6, batch=16)
    assert told.nats == pytest.approx(score(model(), tokens(200), stride=6).nats, rel=1e-6)
    assert told.tokens == 199 and set(read[:-1]) == {{1: 1, 2: 2, 5: 4}[fits]}


def test_one_window_that_does_not_fit_is_an_error_and_the_mode_is_left_as_found() -> None:
    gpt = model().train()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpt.token_losses = full
    with pytest.raises(torch.OutOfMemoryError):
        score(gpt, tokens(200), stride=6)
    assert gpt.training


def test_progress_ends_with_everything() -> None:
    told: list[tuple[int, int]] = []
    score(model(), tokens(200), stride=6, batch=4, progress=lambda *now: told.append(now))
    assert told == sorted(told)
    assert told[-1] == (199, 199)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_found_and_dropout_is_off(training: bool) -> None:
    config = ModelConfig(2, 16, 2, 32, CONTEXT, dropout=0.5)
    dropping = lively_model(config, VOCAB).train(training)
    nats = score(dropping, tokens(50), stride=6).nats
    assert dropping.training is training
    assert nats == score(model(), tokens(50), stride=6).nats


@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_score_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"the split has {length} token"):
        score(model(), tokens(length), stride=6)


# --- units ---------------------------------------------------------------------------------------


def test_a_model_without_opinion_hesitates_among_all_tokens() -> None:
    undecided = model()
    with torch.no_grad():
        undecided.embedding.weight.zero_()
    result = score(undecided, tokens(100), stride=6)
    assert result.perplexity == pytest.approx(VOCAB)


def test_units() -> None:
    # 5 tokens of 4 bits each, for 10 bytes of text
    result = Score(nats=5 * math.log(16), tokens=5)
    assert result.loss == pytest.approx(math.log(16))
    assert result.perplexity == pytest.approx(16)
    assert result.bits_per_byte(10) == pytest.approx(2.0)
