"""Estimates of time, memory and traffic, held against what was measured."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_trainer import SHAPE, TRAIN
from toys import noisy_text

from launchers.estimate import (
    GIB,
    corpus_bytes,
    disk,
    hours,
    on_cpu,
    on_gpu,
    state_bytes,
    tokens,
    traffic,
    weights_bytes,
)
from launchers.plan import GPUS, TYPICAL
from model.batches import Batches
from model.config import SIZES
from model.gpt import GPT
from model.trainer import Trainer
from pipeline import recipe
from pipeline.cards import CARDS, find, listed
from pipeline.memory import fixed_bytes, token_bytes
from pipeline.recipe import Recipe, TokenizerConfig

RESULTS = Path(__file__).parents[1] / "bench" / "results"
SIX = ["model.layers=6", "model.width=256", "model.feed_forward=1024", "model.heads=8"]


def measured(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def of(size: str, *settings: str) -> Recipe:
    return recipe.load(size, data="tinyshakespeare", settings=settings)


# speeds


def test_an_h100_is_as_fast_as_it_was():
    told = measured("gpu-training")
    for size, speed in (
        ("medium", told["medium"]["ours"]["tokens_per_second"]),
        ("large", told["large"]["ours, before"]["tokens_per_second"]),
    ):
        found = on_gpu(of(size), "NVIDIA H100 80GB HBM3")
        assert found.tokens_per_second == pytest.approx(speed, rel=0.03), size
        assert found.measured and found.basis.endswith("of 989 TFLOP/s in bf16, measured")


def test_a_step_takes_its_time_however_little_is_in_it():
    small = measured("gpu")["quality"]
    seen = of("small", f"train.steps={small['steps']}", "train.batch=32")
    found = on_gpu(seen, "NVIDIA H100 80GB HBM3")
    assert found.tokens_per_second == pytest.approx(small["tokens_per_second"], rel=0.03)
    smaller = on_gpu(of("small"), "NVIDIA H100 80GB HBM3")
    assert smaller.training == pytest.approx(8 * found.training, rel=0.03)
    assert smaller.basis == "17 ms a step, assumed" and not smaller.measured


def test_muon_has_its_share_of_a_small_step():
    """As it was on two cores: bench/results/small.json."""
    told = measured("small")["runs"][1]["segments"][1]["tokens_per_second"]
    found = on_cpu(of("small"), 2, "bf16").tokens_per_second
    assert told < found < 1.3 * told
    assert found < 0.75 * on_cpu(of("small", "train.optimizer=adamw"), 2, "bf16").tokens_per_second


def test_nothing_else_is_called_measured():
    medium = of("medium")
    for card in CARDS:
        assert on_gpu(medium, card.name).measured == (card.name == "H100 SXM")
    assert not on_gpu(medium, "H100 SXM", 2).measured
    assert not on_gpu(medium, "H100 SXM", memory=4).measured  # it recomputes
    assert not on_gpu(of("tiny"), "H100 SXM").measured
    assert not on_cpu(medium, 2, "bf16").measured


def test_an_assumed_share_is_near_what_others_publish():
    """nanoGPT's README: 10.6 M parameters make 455,000 tokens a second on an A100."""
    shape = ["model.layers=6", "model.width=384", "model.heads=6", "model.feed_forward=1536"]
    shape += ["model.context=256", "tokenizer.vocab_size=258"]
    baby = of("small", *shape, "train.optimizer=adamw", "train.batch=64")
    assert on_gpu(baby, "A100 SXM4").tokens_per_second == pytest.approx(455_000, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_cores_are_as_fast_as_they_were(precision):
    six = of("tiny", *SIX, "model.context=256", "train.optimizer=adamw")
    speed = measured("train_cpu")["rows"][f"ours {precision}"]["tokens_per_second"]
    assert on_cpu(six, 2, precision).tokens_per_second == pytest.approx(speed, rel=0.03)


def test_tiny_on_two_cores_takes_what_it_took():
    runs = measured("tiny")["runs"]
    speeds = sorted(run["tokens_per_second"] for run in runs)
    found = on_cpu(of("tiny"), 2, "bf16", corpus_bytes("tinyshakespeare"))
    assert speeds[0] <= found.tokens_per_second <= speeds[-1]
    training = sorted(run["train_seconds"] for run in runs)
    assert training[0] * 0.9 <= found.training <= training[2] * 1.1  # the median
    others = [
        sum(run[f"{stage}_seconds"] for stage in ("prepare", "tokenizer", "encode", "evaluate"))
        for run in runs
    ]
    assert max(others) < found.others < max(others) + 30


def test_more_work_takes_longer_and_more_cards_less():
    base = of("medium")
    more = replace(base, train=replace(base.train, steps=2 * base.train.steps))
    assert tokens(base) == 20_000 * 256 * 1024
    for gpu in GPUS:
        one, two = on_gpu(base, gpu), on_gpu(base, gpu, 2)
        assert on_gpu(more, gpu).training == pytest.approx(2 * one.training)
        assert one.training / 2 < two.training < one.training
        assert one.hours > one.training / 3600
    assert [on_gpu(base, gpu).hours for gpu in GPUS] == sorted(
        (on_gpu(base, gpu).hours for gpu in GPUS), reverse=True
    )
    for small, large in pairwise(SIZES):
        assert hours(of(small), "RTX 4090") < hours(of(large), "RTX 4090")


def test_a_text_adds_its_reading_and_its_scoring():
    base = of("medium")
    nothing, much = (on_gpu(base, "RTX 4090", corpus=size) for size in (None, 10**9))
    assert much.training == nothing.training
    assert 500 < much.others - nothing.others < 2000


def test_hours_are_those_that_targets_ask_for():
    base = of("large")
    assert hours(base, "RTX_4090") == hours(base, "NVIDIA GeForce RTX 4090")
    assert hours(base, "RTX 4090") == on_gpu(base, "RTX 4090").hours
    assert hours(base, "RTX 4090", memory=4) is None  # it does not fit
    assert hours(base, "RTX 4090 D") is None and hours(base, "") is None


# cards


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_can_be_estimated(card):
    assert find(card.name) is card and find(card.name.replace(" ", "_")) is card
    assert on_gpu(of("tiny"), card.name).hours > 0
    assert listed(card.name, "float32") == card.peak("float32")


@pytest.mark.parametrize(
    ("name", "torch_name"),
    [
        ("Tesla T4", "Tesla T4"),
        ("RTX 3060", "NVIDIA GeForce RTX 3060"),
        ("RTX 5090", "NVIDIA GeForce RTX 5090"),
        ("L4", "NVIDIA L4"),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB"),
        ("A100 PCIE", "NVIDIA A100 80GB PCIe"),
        ("H100 SXM", "NVIDIA H100 80GB HBM3"),
        ("H100 PCIE", "NVIDIA H100 PCIe"),
        ("H200", "NVIDIA H200"),
    ],
)
def test_a_card_has_one_entry_whoever_names_it(name, torch_name):
    assert find(torch_name) is find(name) is not None


def test_a_price_is_that_of_a_known_card():
    assert all(find(name).name == name for name in TYPICAL)
    assert all(find(name) for name in GPUS)
    assert all(0 < least <= most for least, most in TYPICAL.values())


# memory


def test_memory_is_a_little_more_than_was_seen():
    """Ours is for a run that is not compiled, and the one that was seen was."""
    told, memory = measured("gpu-training"), 79.6 * GIB
    for size, ours in (("medium", "ours"), ("large", "ours, before")):
        shape, count = SIZES[size], told[size]["micro_batch"]
        expected = fixed_bytes(shape, told["vocabulary"], False, memory)
        expected += count * shape.context * token_bytes(shape, False)
        seen = told[size][ours]["peak_bytes"]
        assert seen < expected < 1.15 * seen, size


@pytest.mark.parametrize(
    ("size", "memory", "fits", "micro_batch"),
    [  # as the table of docs/training.md has them
        ("medium", 4, "recomputing", 16),
        ("medium", 8, "yes", 8),
        ("large", 4, "no", 0),
        ("large", 8, "recomputing", 8),
        ("large", 24, "yes", 8),
    ],
)
def test_what_fits_is_what_fit_would_find(size, memory, fits, micro_batch):
    found = on_gpu(of(size), "RTX 4090", memory=memory)
    assert (found.fits, found.micro_batch) == (fits, micro_batch)
    assert (found.training is None) == (fits == "no") == (found.hours is None)


def test_recomputing_costs_a_third():
    short, enough = (on_gpu(of("medium"), "RTX 4090", memory=memory) for memory in (4, 24))
    assert short.training == pytest.approx(enough.training * 4 / 3)


@pytest.mark.parametrize(
    ("settings", "fits", "micro_batch"),
    [
        ((), "recomputing", 8),
        (("model.dropout=0.1",), "recomputing", 4),
        (("train.ema=0.9",), "no", 0),
    ],
)
def test_masks_and_the_mean_of_the_weights_want_room(settings, fits, micro_batch):
    found = on_gpu(of("large", *settings), "RTX 4090", memory=8)
    assert (found.fits, found.micro_batch) == (fits, micro_batch)


# what is sent


@pytest.mark.parametrize("ema", [0.0, 0.99])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_as_large_as_it_is(optimizer, ema):
    base, vocabulary = of("tiny"), 258
    told = replace(
        base,
        model=SHAPE,
        train=replace(TRAIN, optimizer=optimizer, ema=ema),
        tokenizer=TokenizerConfig(vocabulary),
    )
    batches = Batches(noisy_text(600, vocabulary), SHAPE.context, TRAIN.batch, TRAIN.seed)
    device = torch.device("cpu")
    run = Trainer(GPT(SHAPE, vocabulary), told.train, batches, micro_batch=8, device=device)
    tensors = {name: each for name, each in run.state().items() if each.ndim}
    assert tensors.pop("scaler").nbytes < 100
    assert state_bytes(told) == sum(each.nbytes for each in tensors.values())
    assert weights_bytes(told) == sum(each.nbytes for each in run.weights().values())


def test_traffic_is_checkpoints_and_no_more_than_the_network_takes():
    large = of("large")
    often, seldom = (traffic(large, 36_000, every=every) for every in (60, 1800))
    assert often.gap > 60 and often.up / 36_000 < 25e6 * 1.4  # the best weights come on top
    assert seldom.gap == 1800
    assert seldom.up == pytest.approx(
        20 * (state_bytes(large) + weights_bytes(large)) + 2 * weights_bytes(large)
    )
    again = traffic(large, 36_000, sessions=3, every=1800)
    assert again.down - seldom.down > 2 * state_bytes(large)
    assert disk(large) > 4 * state_bytes(large)


def test_a_text_is_as_long_as_its_files(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    (tmp_path / "below" / "b.txt").write_bytes(b"x" * 11)
    assert corpus_bytes(str(tmp_path / "a.txt")) == 100
    assert corpus_bytes(str(tmp_path)) == 111
    assert corpus_bytes("https://example.com/a.txt") is None
    assert corpus_bytes(str(tmp_path / "missing")) is None
