"""Training fits the machine: the search on made-up devices, and what it leaves behind on none."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from test_trainer import SHAPE, TRAIN, copied_state, losses, trainer

from model.parallel import Team
from model.trainer import Trainer
from pipeline import fit as fitting
from pipeline.cli.machine_options import make_machine
from pipeline.fit import BUSY, choose, fit, halves
from pipeline.machine import Machine
from pipeline.stages.train import restart

GB = 1 << 30
CONTEXT = 1024


@dataclass
class Card:
    """A device with a linear model of memory: so much for the weights, so much a sequence."""

    memory: float
    weights: float = 2 * GB
    kept: float = 0.4 * GB  # a sequence
    recomputed: float = 0.05 * GB  # a sequence with activation checkpointing

    def __post_init__(self) -> None:
        self.tried: list[tuple[int, bool]] = []

    def __call__(self, size: int, recompute: bool) -> bool:
        self.tried.append((size, recompute))
        each = self.recomputed if recompute else self.kept
        return self.weights + size * each <= 0.9 * self.memory


# the search


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 48, 64, 100, 256])
def test_sizes_to_try_are_halves_of_the_batch(batch):
    sizes = halves(batch)
    assert sizes[0] == 1 and sizes[-1] == batch
    assert all(small == -(-large // 2) for small, large in pairwise(sizes))


@pytest.mark.parametrize("asked", ["auto", "on", "off"])
@pytest.mark.parametrize("memory", range(1, 17))
def test_what_is_chosen_fits_and_the_next_size_does_not(memory, asked):
    card, sizes = Card(memory * GB), halves(64)
    size, recompute = choose(sizes, CONTEXT, asked, card)
    assert not (asked == "on" and size and not recompute) and not (asked == "off" and recompute)
    if size:
        assert card(size, recompute)
    else:
        assert not card(1, asked != "off")
    larger = [each for each in sizes if each > size]
    assert not larger or not card(larger[0], recompute)


@pytest.mark.parametrize(
    ("memory", "chosen"),
    [
        (2, (0, False)),  # not even one sequence
        (2.5, (4, True)),  # none without
        (3, (8, True)),  # one without
        (3.5, (16, True)),  # two without: fewer than 4,096 tokens
        (5, (4, False)),  # four are enough
        (16, (16, False)),
        (40, (64, False)),
    ],
)
def test_activation_checkpointing_is_for_little_memory(memory, chosen):
    assert choose(halves(64), CONTEXT, "auto", Card(memory * GB)) == chosen


def test_a_whole_batch_needs_no_checkpointing_however_small_it_is():
    card = Card(4 * GB)
    assert choose(halves(2), CONTEXT, "auto", card) == (2, False)
    assert card.tried == [(1, False), (2, False)]


def test_checkpointing_that_lets_no_more_fit_is_left_off():
    card = Card(4 * GB, kept=0.8 * GB, recomputed=0.8 * GB)
    assert choose(halves(64), CONTEXT, "auto", card) == (2, False)


# without trace


@pytest.mark.parametrize("shape", [{"dropout": 0.1}, {"attention_dropout": 0.1}])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rehearsal_leaves_no_trace(optimizer, shape):
    options = {"train": replace(TRAIN, optimizer=optimizer), "shape": replace(SHAPE, **shape)}
    run, other = trainer(**options), trainer(**options)
    expected = losses(run, 3) + losses(run, 3)
    seen = losses(other, 3)
    before, drawn = copied_state(other), torch.get_rng_state()
    other.rehearse(1)
    other.rehearse(8)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in other.state().items())
    assert all(each.grad is None for each in other.model.parameters())
    assert seen + losses(other, 3) == expected


def test_a_rehearsal_that_fails_leaves_none_either(monkeypatch):
    run = trainer(shape=replace(SHAPE, attention_dropout=0.1))
    drawn = torch.get_rng_state()
    monkeypatch.setattr(run.model.final_norm, "forward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run.rehearse(2)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(each.grad is None for each in run.model.parameters())


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


# a whole machine


@dataclass(frozen=True)
class Properties:
    name: str
    total_memory: int


class Cuda:
    """What of torch.cuda is asked, of a card of a given size; a trainer that thinks it is there."""

    def __init__(self, monkeypatch, tmp_path, memory: float, free: float = 0.95) -> None:
        self.card, self.free, self.fractions = Card(memory * GB), free, []
        self.resets = 0
        monkeypatch.setenv("IGNITE_CACHE", str(tmp_path))
        for name in ("get_device_properties", "mem_get_info", "set_per_process_memory_fraction"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        monkeypatch.setattr(Trainer, "rehearse", self.rehearse)
        self.run = trainer(replace(TRAIN, batch=64), replace(SHAPE, context=CONTEXT // 2))
        self.run.device = torch.device("cuda")

    def get_device_properties(self, device):
        return Properties("Test Card", int(self.card.memory))

    def mem_get_info(self, device):
        return int(self.free * self.card.memory), int(self.card.memory)

    def set_per_process_memory_fraction(self, fraction, device):
        assert isinstance(fraction, float) and 0 <= fraction <= 1
        assert device is None or isinstance(device, int), "torch takes no device without a number"
        self.fractions.append(fraction)

    def reset(self, device):
        self.resets += 1

    def rehearse(self, size):
        assert self.fractions[-1] < 1, "nothing is spared"
        if not self.card(size, self.run.model.recompute):
            out_of_memory()

    def found(self, **told) -> tuple[int, bool]:
        fit(self.run, Machine(**told))
        return self.run.micro_batch, self.run.model.recompute

    def searched(self) -> bool:
        seen = bool(self.card.tried)
        self.card.tried.clear()
        return seen


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    return lambda memory, free=0.95: Cuda(monkeypatch, tmp_path, memory, free)


def test_what_was_found_is_remembered_of_this_device_and_this_run(cuda):
    first = cuda(8)
    assert first.found() == (8, False) and first.searched()
    assert first.fractions == [pytest.approx(0.85), 1.0]
    assert first.found() == (8, False) and not first.searched()
    first.run.model.compute_dtype = torch.bfloat16
    assert first.found() == (8, False) and first.searched()
    assert first.found(activation_checkpointing="on") == (64, True) and first.searched()
    assert first.found(activation_checkpointing="off") == (8, False) and first.searched()
    other = cuda(4)
    assert other.found() == (32, True) and other.searched()
    again = cuda(8)
    assert again.found() == (8, False) and not again.searched()


def test_what_takes_other_memory_is_searched_for_anew(cuda):
    card = cuda(8)
    assert card.found() == (8, False) and card.searched()
    assert card.found(deterministic=True) == (8, False) and card.searched()
    card.run.average = object()
    assert card.found() == (8, False) and card.searched()


def test_trying_is_no_part_of_the_most_that_training_took(cuda):
    card = cuda(8)
    card.found()
    assert card.resets == 1 and not card.run.events


def test_nothing_is_remembered_of_a_card_that_somebody_else_uses(cuda):
    shared = cuda(16, free=0.5)
    assert shared.found() == (16, False) and shared.searched()
    assert shared.fractions == [pytest.approx(0.4), 1.0]
    assert shared.found() == (16, False) and shared.searched()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"micro_batch": 0, "recompute": true}', b"\xff"]
)
def test_a_damaged_memory_costs_a_search(cuda, tmp_path, content):
    card = cuda(8)
    assert card.found() == (8, False) and card.searched()
    (file,) = (tmp_path / "fits").glob("*.json")
    assert json.loads(file.read_bytes()) == {"micro_batch": 8, "recompute": False}
    file.write_bytes(content)
    assert card.found() == (8, False) and card.searched()


def test_a_cache_that_cannot_be_written_costs_a_search(cuda, tmp_path):
    (tmp_path / "fits").write_text("a file, not a directory")
    card = cuda(8)
    for _ in range(2):
        assert card.found() == (8, False) and card.searched()


def test_what_does_not_fit_is_answered_with_what_is_smaller(cuda):
    card = cuda(2)
    with pytest.raises(ValueError, match=r"not one sequence of 512 tokens .* 2.0 GiB of Test Card"):
        card.found()
    assert card.searched()
    with pytest.raises(ValueError, match=r"take a shorter model\.context, a smaller --size"):
        card.found()
    assert card.searched(), "a failure is not remembered"
    with pytest.raises(ValueError, match="take --activation-checkpointing auto, a shorter"):
        card.found(activation_checkpointing="off")


def test_if_somebody_else_holds_the_memory_that_is_said(cuda):
    card = cuda(2, free=0.5)
    with pytest.raises(ValueError, match=r"into 1\.0 GiB of the 2\.0 GiB of .*nvidia-smi says"):
        card.found()


def test_what_was_told_is_taken(cuda):
    card = cuda(8)
    assert card.found(micro_batch=5) == (5, False)
    assert card.found(micro_batch=500, activation_checkpointing="on") == (64, True)
    assert not card.searched() and not card.fractions


class Two(Team):
    """A team of two; the other process found micro-batch 3, and needs activation checkpointing."""

    size = 2

    def least(self, number: int) -> int:
        return min(number, 0 if isinstance(number, bool) else 3)


def test_of_several_processes_all_take_what_the_one_with_the_least_found(cuda):
    card = cuda(8)
    card.run.team = Two()
    assert card.found() == (3, True)
    assert max(size for size, _ in card.card.tried) == 16, "half of the batch is half of the slots"
    assert card.found(micro_batch=50) == (32, False)
    small = trainer(replace(TRAIN, batch=5))
    small.team = Two()
    fit(small, Machine())
    assert small.micro_batch == 3  # the larger share


def test_where_processes_hold_parts_nothing_is_tried(cuda):
    card = cuda(8)
    card.run.team = Two()
    card.run.team.sharded = True
    assert card.found() == (BUSY // 512, True)
    assert card.found(activation_checkpointing="off") == (BUSY // 512, False)
    assert not card.searched()


def test_on_a_cpu_it_is_so_many_tokens():
    run = trainer(replace(TRAIN, batch=64), replace(SHAPE, context=512))
    fit(run, Machine())
    assert (run.micro_batch, run.model.recompute) == (fitting.ON_CPU // 512, False)
    few = trainer(replace(TRAIN, batch=4))
    fit(few, Machine(activation_checkpointing="on"))
    assert (few.micro_batch, few.model.recompute) == (4, True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trainer_starts_again_where_it_is(optimizer):
    train = replace(TRAIN, optimizer=optimizer)
    run = trainer(train)
    run.scaler.factor = 8.0
    weight = run.model.embedding.weight
    expected = losses(run, 4)
    run.events.append((3, "something"))
    assert restart(run, trainer(train)) is run
    assert run.model.embedding.weight is weight
    assert (run.step, run.events, run.scaler.factor) == (0, [], trainer().scaler.factor)
    assert losses(run, 4) == expected


def test_the_thresholds_are_as_the_documents_say():
    assert (BUSY, fitting.ON_CPU, fitting.SPARE) == (4096, 16384, 0.1)


def test_a_machine_is_made_of_what_was_told():
    told = {
        "device": "cpu",
        "precision": "fp32",
        "micro_batch": 3,
        "activation_checkpointing": "on",
        "threads": 2,
        "checkpoint_steps": 5,
        "keep": 4,
    }
    made = make_machine(checkpoint_every=300.0, **told)
    assert made == Machine(**told, checkpoint_seconds=300)
    with pytest.raises(ValueError, match="--activation-checkpointing x: it must be auto, on or"):
        Machine(activation_checkpointing="x")
