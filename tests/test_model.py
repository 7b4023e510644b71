"""The network against the classes of ``transformers`` that compute the same, and its own rules."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import lively_model
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
)

from model.attention import KVCache, attention, fused_attention
from model.config import SIZES, ModelConfig
from model.gpt import GPT

VOCAB = 97
SHAPES = {
    "flat": ModelConfig(layers=2, width=32, heads=4, feed_forward=64, context=16),
    "deep": ModelConfig(layers=4, width=24, heads=2, feed_forward=40, context=24, rope_base=500.0),
}


def ids(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (rows, columns), generator=generator)


# --- the same numbers from somebody else's code --------------------------------------------------


def copy_linear(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy a linear layer or a norm; a bias that we do not have is zero there."""
    theirs.weight.copy_(ours.weight)
    if theirs.bias is not None:
        theirs.bias.zero_() if ours.bias is None else theirs.bias.copy_(ours.bias)


def copy_qkv(ours: nn.Module, theirs: nn.Module, heads: int) -> None:
    """Our rows are [3, heads, head size]; theirs are [heads, 3, head size]."""

    def regrouped(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)

    theirs.weight.copy_(regrouped(ours.weight))
    if theirs.bias is not None:
        theirs.bias.zero_() if ours.bias is None else theirs.bias.copy_(regrouped(ours.bias))


def shared_settings(model: GPT) -> dict[str, object]:
    config = model.config
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.context,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": config.tied,
    }


@torch.no_grad()
def as_gpt_neox(model: GPT) -> GPTNeoXForCausalLM:
    config = model.config
    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **shared_settings(model),
            use_parallel_residual=False,
            rotary_pct=1.0,
            rotary_emb_base=config.rope_base,
        )
    )
    trunk = theirs.gpt_neox
    trunk.embed_in.weight.copy_(model.embedding.weight)
    copy_linear(model.final_norm, trunk.final_layer_norm)
    for block, layer in zip(model.blocks, trunk.layers, strict=True):
        copy_linear(block.attention_norm, layer.input_layernorm)
        copy_qkv(block.attention.qkv, layer.attention.query_key_value, config.heads)
        copy_linear(block.attention.out, layer.attention.dense)
        copy_linear(block.feed_forward_norm, layer.post_attention_layernorm)
        copy_linear(block.feed_forward.up, layer.mlp.dense_h_to_4h)
        copy_linear(block.feed_forward.down, layer.mlp.dense_4h_to_h)
    if model.head is not None:
        theirs.lm_head.weight.copy_(model.head.weight)
    return theirs.eval()


@torch.no_grad()
def as_persimmon(model: GPT) -> PersimmonForCausalLM:
    config = model.config
    theirs = PersimmonForCausalLM(
        PersimmonConfig(
            **shared_settings(model),
            qk_layernorm=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.rope_base,
                "partial_rotary_factor": 1.0,
            },
        )
    )
    trunk = theirs.model
    trunk.embed_tokens.weight.copy_(model.embedding.weight)
    copy_linear(model.final_norm, trunk.final_layernorm)
    for block, layer in zip(model.blocks, trunk.layers, strict=True):
        copy_linear(block.attention_norm, layer.input_layernorm)
        copy_qkv(block.attention.qkv, layer.self_attn.query_key_value, config.heads)
        copy_linear(block.attention.q_norm, layer.self_attn.q_layernorm)
        copy_linear(block.attention.k_norm, layer.self_attn.k_layernorm)
        copy_linear(block.attention.out, layer.self_attn.dense)
        copy_linear(block.feed_forward_norm, layer.post_attention_layernorm)
        copy_linear(block.feed_forward.up, layer.mlp.dense_h_to_4h)
        copy_linear(block.feed_forward.down, layer.mlp.dense_4h_to_h)
    if model.head is not None:
        theirs.lm_head.weight.copy_(model.head.weight)
    return theirs.eval()


@torch.no_grad()
def in_chunks(model: GPT, ids_BT: Tensor, sizes: list[int]) -> Tensor:
    """Logits of the whole text, read through the cache ``sizes`` tokens at a time."""
    cache = KVCache.empty(model.config, len(ids_BT), ids_BT.device, torch.float32)
    return torch.cat([model(chunk, cache) for chunk in ids_BT.split(sizes, dim=1)], dim=1)


READINGS = {"at once": None, "token by token": [1] * 12, "in chunks": [5, 3, 1, 2, 1]}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logits_equal_gpt_neox(shape: str, tied: bool, reading: str) -> None:
    model = lively_model(replace(SHAPES[shape], tied=tied), VOCAB)
    text_BT = ids(3, 12)
    sizes = READINGS[reading]
    ours = model(text_BT) if sizes is None else in_chunks(model, text_BT, sizes)
    theirs = as_gpt_neox(model)(text_BT).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_without_biases_equal_gpt_neox() -> None:
    model = lively_model(replace(SHAPES["flat"], bias=False), VOCAB)
    theirs = as_gpt_neox(model)(ids(2, 12)).logits
    torch.testing.assert_close(model(ids(2, 12)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logits_with_qk_norm_equal_persimmon(shape: str, tied: bool, reading: str) -> None:
    model = lively_model(replace(SHAPES[shape], tied=tied, qk_norm=True), VOCAB)
    text_BT = ids(3, 12)
    sizes = READINGS[reading]
    ours = model(text_BT) if sizes is None else in_chunks(model, text_BT, sizes)
    theirs = as_persimmon(model)(text_BT).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rmsnorm_divides_by_the_root_mean_square() -> None:
    model = lively_model(replace(SHAPES["flat"], norm="rmsnorm"), VOCAB)
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    by_hand = x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.final_norm.weight
    torch.testing.assert_close(model.final_norm(x_TD, torch.float32), by_hand)


# --- its own rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_parameter_formula_counts_each_size(size: str) -> None:
    with torch.device("meta"):
        model = GPT(SIZES[size], 32_000)
    assert sum(p.numel() for p in model.parameters()) == SIZES[size].parameters(32_000)


@pytest.mark.parametrize(
    ("norm", "bias", "qk_norm", "tied"),
    list(itertools.product(("layernorm", "rmsnorm"), *[(True, False)] * 3)),
)
def test_parameter_formula_counts_each_variant(
    norm: str, bias: bool, qk_norm: bool, tied: bool
) -> None:
    config = replace(SHAPES["deep"], norm=norm, bias=bias, qk_norm=qk_norm, tied=tied)
    with torch.device("meta"):
        model = GPT(config, VOCAB)
    assert sum(p.numel() for p in model.parameters()) == config.parameters(VOCAB)


@pytest.mark.parametrize("changed", [0, 4, 11])
@torch.no_grad()
def test_a_token_changes_no_logits_before_it(changed: int) -> None:
    model = lively_model(SHAPES["flat"], VOCAB)
    text_BT = ids(1, 12)
    other_BT = text_BT.clone()
    other_BT[0, changed] = (other_BT[0, changed] + 1) % VOCAB
    same = (model(text_BT) == model(other_BT)).all(dim=-1)[0]
    assert same.tolist() == [t < changed for t in range(12)]


def test_parameter_groups_hold_every_parameter_once() -> None:
    model = GPT(replace(SHAPES["flat"], tied=False, qk_norm=True), VOCAB)
    groups = model.parameter_groups()
    grouped = [name for group in groups.values() for name in group]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert set(groups["tables"]) == {"embedding.weight", "head.weight"}
    assert all(name.startswith("blocks.") for name in groups["matrices"])
    assert all(p.ndim == 1 for p in groups["vectors"].values())


def test_too_long_a_text_is_refused() -> None:
    model = GPT(SHAPES["flat"], VOCAB)
    with pytest.raises(ValueError, match="17 tokens exceed the context of 16"):
        model(ids(1, 17))


def test_the_cache_counts_towards_the_context() -> None:
    model = GPT(SHAPES["flat"], VOCAB)
    with pytest.raises(ValueError, match="17 tokens exceed the context of 16"):
        in_chunks(model, ids(1, 17), [10, 7])


ROWS = 50  # times 12 tokens: more than the loss takes at a time


@torch.no_grad()
def test_loss_is_the_sum_of_minus_log_p() -> None:
    model = lively_model(SHAPES["flat"], VOCAB)
    inputs_BT, targets_BT = ids(ROWS, 12), ids(ROWS, 12, seed=1)
    log_p_BTV = model(inputs_BT).log_softmax(dim=-1)
    by_hand = sum(-log_p_BTV[b, t, targets_BT[b, t]] for b in range(ROWS) for t in range(12))
    torch.testing.assert_close(model.loss(inputs_BT, targets_BT), by_hand)


@pytest.mark.parametrize("tied", [True, False])
def test_loss_has_the_gradient_of_cross_entropy(tied: bool) -> None:
    model = lively_model(replace(SHAPES["flat"], tied=tied), VOCAB)
    inputs_BT, targets_BT = ids(ROWS, 12), ids(ROWS, 12, seed=1)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.loss(inputs_BT, targets_BT), parameters)
    plain = F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten(), reduction="sum")
    torch.testing.assert_close(ours, torch.autograd.grad(plain, parameters), rtol=1e-4, atol=1e-3)


# --- the start -----------------------------------------------------------------------------------


def test_matrices_start_with_their_deviations() -> None:
    config = ModelConfig(layers=2, width=128, heads=4, feed_forward=256, context=8, tied=False)
    for name, parameter in GPT(config, 500).named_parameters():
        if parameter.ndim < 2:
            continue
        scaled = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
        expected = 0.02 / math.sqrt(4) if scaled else 0.02
        # the deviation of n normal numbers is off by 1/sqrt(2n); 5 of those are never seen
        off = 5 / math.sqrt(2 * parameter.numel())
        assert parameter.std().item() == pytest.approx(expected, rel=off), name
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name


def test_norms_start_at_one_and_biases_at_zero() -> None:
    model = GPT(replace(SHAPES["flat"], qk_norm=True), VOCAB)
    for name, parameter in model.parameter_groups()["vectors"].items():
        assert (parameter == (1 if "norm.weight" in name else 0)).all(), name


@torch.no_grad()
def test_zero_init_makes_every_block_the_identity() -> None:
    model = GPT(replace(SHAPES["flat"], zero_init=True), VOCAB)
    x_BTD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    rotary = (model.cos_TK[:5], model.sin_TK[:5])
    for block in model.blocks:
        assert torch.equal(block(x_BTD, rotary, torch.float32), x_BTD)


def test_a_seed_names_the_weights() -> None:
    config = SHAPES["flat"]
    first, again, other = (GPT(config, VOCAB, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


# --- other types and modes -----------------------------------------------------------------------


@torch.no_grad()
def test_bfloat16_stays_close_to_float32() -> None:
    model = lively_model(SHAPES["flat"], VOCAB)
    exact = model(ids(3, 12))
    model.compute_dtype = torch.bfloat16
    rough = model(ids(3, 12))
    assert rough.dtype == torch.float32
    # bfloat16 keeps 8 bits: each of a handful of roundings is off by 0.4 percent at most
    assert (rough - exact).norm() < 0.02 * exact.norm()


def test_bfloat16_keeps_the_weights_float32() -> None:
    model = GPT(SHAPES["flat"], VOCAB)
    model.compute_dtype = torch.bfloat16
    model.loss(ids(1, 8), ids(1, 8)).backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, r"model\.layers = 0 .* at least 1"),
        ({"heads": 5}, r"model\.heads = 5 .* a divisor of model\.width = 32"),
        ({"heads": 32}, r"model\.heads = 32 .* even"),
        ({"dropout": 1.0}, r"model\.dropout = 1\.0 .* in \[0, 1\)"),
        ({"norm": "batch"}, r"model\.norm = 'batch' .* layernorm or rmsnorm"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHAPES["flat"], **wrong)


@pytest.mark.parametrize(("past", "time"), [(0, 7), (3, 1), (5, 4), (0, 1)])
def test_fused_attention_is_attention(past: int, time: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q_BHTK, k_BHSK, v_BHSK = (
        torch.randn(2, 3, length, 8, generator=generator)
        for length in (time, past + time, past + time)
    )
    written_out = attention(q_BHTK, k_BHSK, v_BHSK, past)
    torch.testing.assert_close(fused_attention(q_BHTK, k_BHSK, v_BHSK, past), written_out)


def test_losses_of_single_tokens_add_up_to_the_loss() -> None:
    model = lively_model(SHAPES["flat"], VOCAB)
    ids_BT = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    losses_BT = model.token_losses(ids_BT[:, :-1], ids_BT[:, 1:])
    assert losses_BT.shape == (2, 8)
    torch.testing.assert_close(losses_BT.sum(), model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).detach())
