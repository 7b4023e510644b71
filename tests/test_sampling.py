"""Sampling against probabilities worked out by hand, generation against doing it the long way."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import lively_model
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model.config import ModelConfig
from model.generate import generate
from model.gpt import GPT
from model.sampling import SamplerConfig, keep_top_k, keep_top_p, sample, warp

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
LOGITS = [0.3, 2.0, -1.0, 1.2, 0.9, -2.5, 1.7, 0.0]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- frequencies ---------------------------------------------------------------------------------


def by_hand(logits: list[float], config: SamplerConfig) -> list[float]:
    """What each token's probability should be, in plain Python and the words of the papers."""
    weights = {i: math.exp(logit / config.temperature) for i, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: (-weights[i], i))
    if config.top_k:
        ranked = ranked[: config.top_k]
    total = sum(weights[i] for i in ranked)
    nucleus: list[int] = []
    while sum(weights[i] for i in nucleus) < config.top_p * total and len(nucleus) < len(ranked):
        nucleus.append(ranked[len(nucleus)])
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(logits))]


CONFIGS = {
    "plain": SamplerConfig(),
    "cold": SamplerConfig(temperature=0.5),
    "hot": SamplerConfig(temperature=3.0),
    "top-k": SamplerConfig(top_k=3),
    "top-p": SamplerConfig(top_p=0.8),
    "all three": SamplerConfig(temperature=1.5, top_k=6, top_p=0.85),
}
# the value that chi-square with d degrees of freedom exceeds once in a thousand times
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_follow_the_probabilities(name: str) -> None:
    draws, config = 20_000, CONFIGS[name]
    logits_BV = torch.tensor(LOGITS).expand(draws, -1)
    counts = sample(logits_BV, config, seeded(1)).bincount(minlength=len(LOGITS)).tolist()
    expected = [draws * p for p in by_hand(LOGITS, config)]
    assert all(count == 0 for count, e in zip(counts, expected, strict=True) if e == 0)
    likely = [(count, e) for count, e in zip(counts, expected, strict=True) if e > 0]
    assert sum((count - e) ** 2 / e for count, e in likely) < CHI_SQUARE[len(likely) - 1]


def test_each_row_is_drawn_from_its_own_distribution() -> None:
    sure_BV = torch.full((3, 5), -math.inf)
    sure_BV[0, 4] = sure_BV[1, 0] = sure_BV[2, 2] = 0.0
    assert sample(sure_BV, SamplerConfig(), seeded()).tolist() == [4, 0, 2]


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_no_random_number_draws_an_impossible_token(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, u, dtype=dtype))
    logits_BV = torch.randn(500, 40, generator=seeded())
    logits_BV[:, :3] = logits_BV[:, -3:] = -math.inf
    ids_B = sample(logits_BV, SamplerConfig(), seeded())
    assert (ids_B == (3 if u == 0 else 36)).all()


# --- greedy --------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_likeliest_whatever_else_is_set() -> None:
    logits_BV = torch.randn(50, 30, generator=seeded())
    greedy = sample(logits_BV, SamplerConfig(temperature=0, top_k=3, top_p=0.5), seeded())
    assert torch.equal(greedy, logits_BV.argmax(dim=-1))


def test_greedy_takes_the_first_of_equals() -> None:
    tied_BV = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0]])
    assert sample(tied_BV, SamplerConfig(temperature=0), seeded()).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy_too(temperature: float) -> None:
    logits_BV = torch.randn(50, 30, generator=seeded())
    cold = sample(logits_BV, SamplerConfig(temperature=temperature), seeded())
    assert torch.equal(cold, logits_BV.argmax(dim=-1))


# --- which tokens are kept -----------------------------------------------------------------------


def kept(logits_BV: Tensor) -> list[list[bool]]:
    return logits_BV.isfinite().tolist()


@st.composite
def distinct_logits(draw_from: st.DrawFn) -> Tensor:
    """[B, V] without equals in a row, where top-k is Hugging Face's to the token."""
    rows, size = draw_from(st.integers(1, 3)), draw_from(st.integers(1, 40))
    spread = draw_from(st.sampled_from([0.02, 0.2, 1.0]))
    seed = draw_from(st.integers(0, 2**32))
    ranks = [torch.randperm(size, generator=seeded(seed + row)) for row in range(rows)]
    return spread * torch.stack(ranks).float()


@given(
    distinct_logits(),
    st.floats(0.2, 5.0),
    st.integers(1, 45),
    st.floats(0.01, 0.999),
)
@PROPERTY
def test_the_kept_tokens_are_those_of_transformers(
    logits_BV: Tensor, temperature: float, k: int, p: float
) -> None:
    theirs_BV = TopKLogitsWarper(k)(None, TemperatureLogitsWarper(temperature)(None, logits_BV))
    masses_BV = theirs_BV.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    assume((masses_BV - p).abs().min() > 1e-5)  # nearer than this, rounding decides
    theirs_BV = TopPLogitsWarper(p)(None, theirs_BV)
    ours_BV = warp(logits_BV, SamplerConfig(temperature, k, p))
    assert kept(ours_BV) == kept(theirs_BV)
    torch.testing.assert_close(ours_BV.softmax(-1), theirs_BV.softmax(-1))


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=20), st.integers(1, 25))
@PROPERTY
def test_top_k_keeps_k_and_the_lower_ids_of_equals(logits: list[int], k: int) -> None:
    (ours,) = kept(keep_top_k(torch.tensor([logits], dtype=torch.float32), k))
    best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert [i for i, stays in enumerate(ours) if stays] == sorted(best)


def test_top_p_keeps_the_lower_ids_of_equals() -> None:
    assert kept(keep_top_p(torch.zeros(1, 8), 0.5)) == [[True] * 4 + [False] * 4]


def test_top_p_stops_as_soon_as_p_is_reached() -> None:
    halves_BV = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert kept(keep_top_p(halves_BV, 0.5)) == [[False, True, False]]
    assert kept(keep_top_p(halves_BV, 0.51)) == [[True, True, False]]


def test_top_p_keeps_one_token_at_least() -> None:
    assert kept(keep_top_p(torch.tensor([[1.0, 3.0, 2.0]]), 1e-9)) == [[False, True, False]]


def test_16_bit_logits_are_drawn_in_float32() -> None:
    logits_BV = torch.randn(5000, 30, generator=seeded()).bfloat16()
    config = SamplerConfig(temperature=0.7, top_k=20, top_p=0.9)
    exact = sample(logits_BV.float(), config, seeded())
    assert torch.equal(sample(logits_BV, config, seeded()), exact)


# --- seeds and settings --------------------------------------------------------------------------


def test_a_seed_names_the_draws() -> None:
    logits_BV = torch.zeros(100, 50)
    first, again, other = (sample(logits_BV, SamplerConfig(), seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"temperature": -1.0},
            r"temperature = -1\.0 .* 0 \(greedy\), or .* at least 1e-45",
        ),
        ({"temperature": math.nan}, r"temperature = nan .* finite"),
        ({"temperature": math.inf}, r"temperature = inf .* finite"),
        ({"top_k": -1}, r"top_k = -1 .* at least 0"),
        ({"top_p": 0.0}, r"top_p = 0\.0 .* above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p = 1\.1 .* above 0 and at most 1"),
        ({"seed": -1}, r"seed = -1 .* at least 0"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**wrong)


# --- generation ----------------------------------------------------------------------------------

VOCAB = 31
GREEDY = SamplerConfig(temperature=0)
WARM = SamplerConfig(temperature=1.0, top_k=10, top_p=0.95, seed=5)


def model_with(context: int, dropout: float = 0.0) -> GPT:
    # an untied head, and strong opinions: most random models do little but repeat a token
    config = ModelConfig(2, 16, 2, 32, context, dropout, tied=False)
    return lively_model(config, VOCAB, deviation=0.4, seed=1)


@torch.no_grad()
def the_long_way(
    model: GPT, prompt: list[int], max_tokens: int, sampler: SamplerConfig
) -> list[int]:
    """No cache: every token from a fresh look at all that the model may see."""
    context = model.config.context
    generator, text = seeded(sampler.seed), list(prompt)
    first_seen = max(0, len(text) - context)
    for _ in range(max_tokens):
        if len(text) - first_seen > context:
            first_seen = len(text) - math.ceil(context / 2)
        logits_BV = model(torch.tensor([text[first_seen:]]))[:, -1]
        text.append(sample(logits_BV, sampler, generator).item())
    return text[len(prompt) :]


@pytest.mark.parametrize("sampler", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize(
    ("context", "prompt_length"),
    [(64, 5), (16, 5), (16, 1), (16, 16), (16, 40), (7, 3), (2, 1), (1, 1), (1, 4)],
)
def test_generation_equals_the_long_way(
    context: int, prompt_length: int, sampler: SamplerConfig
) -> None:
    model, prompt = model_with(context), [(7 * i + 3) % VOCAB for i in range(prompt_length)]
    ours = list(generate(model, prompt, max_tokens=40, sampler=sampler))
    assert ours == the_long_way(model, prompt, 40, sampler)


def test_the_toy_model_has_more_than_one_thing_to_say() -> None:
    assert len(set(generate(model_with(16), [1, 2], max_tokens=40, sampler=GREEDY))) > 5


def test_generation_ends_before_the_stop_token() -> None:
    model = model_with(16)
    ids = list(generate(model, [1, 2], max_tokens=40, sampler=GREEDY))
    stop_id = ids[20]
    stopped = list(generate(model, [1, 2], max_tokens=40, sampler=GREEDY, stop_id=stop_id))
    assert stopped == ids[: ids.index(stop_id)]


def test_a_stop_token_in_the_prompt_stops_nothing() -> None:
    model = model_with(16)
    ids = list(generate(model, [30], max_tokens=10, sampler=GREEDY))
    assert 30 not in ids
    assert list(generate(model, [30], max_tokens=10, sampler=GREEDY, stop_id=30)) == ids


def test_generation_streams() -> None:
    model = model_with(16)
    stream = generate(model, [1, 2], max_tokens=10**9, sampler=GREEDY)
    first = [next(stream) for _ in range(5)]
    assert first == list(generate(model, [1, 2], max_tokens=5, sampler=GREEDY))


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_mode_as_found_and_dropout_off(training: bool) -> None:
    model = model_with(16, dropout=0.5).train(training)
    ids = list(generate(model, [1], max_tokens=30, sampler=GREEDY))
    assert model.training is training
    assert ids == list(generate(model_with(16), [1], max_tokens=30, sampler=GREEDY))


def test_an_abandoned_generation_leaves_the_mode_as_found() -> None:
    model = model_with(16).train()
    stream = generate(model, [1], max_tokens=30, sampler=GREEDY)
    next(stream)
    stream.close()
    assert model.training


def test_an_empty_prompt_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="pass the id of the end-of-text token"):
        generate(model_with(16), [], max_tokens=3, sampler=GREEDY)
