"""Checkpoints: the library's bytes, no second copy in memory, and best weights that stay."""

import errno
import json
import os
import random
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import MACHINE, SETTINGS
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from toys import noisy_text

from model.batches import Batches
from model.gpt import GPT
from model.trainer import Trainer
from pipeline import checkpoint, loop, recipe
from pipeline.checkpoint import Stored, write
from pipeline.errors import Interrupted
from pipeline.loop import Loop
from pipeline.stage import Context
from pipeline.store.disk import link

VOCAB = 270

KINDS = {
    "float32": torch.arange(6.0).reshape(2, 3) / 7,
    "bfloat16": torch.arange(6.0).reshape(3, 2).bfloat16() / 7,
    "int64 scalar": torch.tensor(-(2**40)),
    "float32 scalar": torch.tensor(0.1),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "strided": torch.arange(40.0)[3:30:3],
    "expanded": torch.arange(3.0).expand(4, 3),
    "learned": torch.nn.Parameter(torch.ones(5)),
    "not a number": torch.tensor([float("nan"), float("-inf"), -0.0]),
}


def library_bytes(tensors: dict[str, Tensor]) -> bytes:
    """What the library writes; it refuses tensors that share memory or are not contiguous."""
    return save({name: t.detach().clone().contiguous() for name, t in tensors.items()})


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor_is_written_as_the_library_writes_it(tmp_path, kind):
    path = tmp_path / "file"
    write({kind: KINDS[kind]}, path)
    contiguous = KINDS[kind].detach().clone(memory_format=torch.contiguous_format)
    assert path.read_bytes() == save({kind: contiguous})
    read = load_file(path)[kind]
    assert read.dtype == KINDS[kind].dtype and read.shape == KINDS[kind].shape


def random_tensors(draw: random.Random) -> dict[str, Tensor]:
    """Some tensors of any of our types and shapes, in any order, under difficult names."""
    tensors = {}
    for _ in range(draw.randint(0, 12)):
        name = "".join(draw.choices('ab.Z_0é€𝄞"\\ \n\t\x1f\x7f', k=draw.randint(0, 5)))
        shape = [draw.randint(0, 4) for _ in range(draw.randint(0, 3))]
        dtype = draw.choice([torch.int64, torch.float32, torch.bfloat16])
        tensors[name] = torch.randint(-1000, 1000, shape).to(dtype)
    return tensors


@pytest.mark.parametrize("size_of_slice", [8, 24, 1 << 24])
def test_any_tensors_are_written_as_the_library_writes_them(tmp_path, monkeypatch, size_of_slice):
    monkeypatch.setattr(checkpoint, "_SLICE", size_of_slice)
    seed = 7_041
    print(f"seed {seed}")
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(100):
        tensors = random_tensors(draw)
        write(tensors, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == save(tensors), list(tensors)


def test_what_is_written_is_read(tmp_path):
    write(KINDS, tmp_path / "file")
    stored = Stored(tmp_path / "file")
    assert set(stored) == set(KINDS) and len(stored) == len(KINDS)
    for name, tensor in KINDS.items():
        assert stored[name].dtype == tensor.dtype
        assert np.array_equal(stored[name].float(), tensor.detach().float(), equal_nan=True)


def test_a_linked_file_is_replaced_and_not_written_into(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    write({"a": torch.zeros(3)}, first)
    link(first, other)
    before = other.read_bytes()
    assert other.stat().st_ino == first.stat().st_ino
    write({"a": torch.ones(3)}, first)
    assert other.read_bytes() == before != first.read_bytes()
    link(first, other)
    assert other.read_bytes() == first.read_bytes()


def test_a_file_that_cannot_be_linked_is_copied(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuses)
    (tmp_path / "first").write_bytes(b"123")
    link(tmp_path / "first", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"123"
    with pytest.raises(FileNotFoundError):
        link(tmp_path / "missing", tmp_path / "other")


# --- memory --------------------------------------------------------------------------------------


def test_from_another_device_comes_one_slice_at_a_time(tmp_path, monkeypatch):
    """No such device is needed: here ``cpu`` copies, as it does from one."""
    monkeypatch.setattr(checkpoint, "_SLICE", 1 << 10)
    sizes: list[int] = []
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def cpu(tensor: Tensor) -> Tensor:
        nonlocal most
        copy = tensor.clone()
        sizes.append(copy.nbytes)
        alive.add(copy)
        most = max(most, sum(each.nbytes for each in alive))
        return copy

    tensors = {str(size): torch.rand(size) for size in (1, 100, 256, 257, 5000)}
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "cpu", cpu)
        write(tensors, tmp_path / "file")
    assert sum(sizes) == sum(tensor.nbytes for tensor in tensors.values())
    assert max(sizes) == 1 << 10
    assert most <= 2 << 10  # one that is written and one that comes
    assert (tmp_path / "file").read_bytes() == save(tensors)


def memory(field: str) -> int:
    """Bytes of main memory of this process: VmRSS now, VmHWM the most since ``forget_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def extra_memory(work) -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    except OSError as error:
        pytest.skip(f"this system does not tell the peak of memory: {error}")
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


SIZE = 200 << 20


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {str(each): torch.full((SIZE >> 7,), float(each)) for each in range(32)}


def test_writing_needs_no_second_copy(tmp_path, state):
    path = tmp_path / "file"
    copied = extra_memory(lambda: [tensor.clone() for tensor in state.values()])
    assert copied > 0.9 * SIZE, "what is measured does not show a copy"
    assert extra_memory(lambda: write(state, path)) < 0.25 * SIZE


def test_reading_needs_no_second_copy(tmp_path, state):
    path = tmp_path / "file"
    save_file(state, path)

    def load() -> None:
        stored = Stored(path)
        for name, tensor in state.items():
            tensor.copy_(stored[name])

    assert extra_memory(load) < 0.25 * SIZE


class OneByOne(Mapping):
    """A state whose tensors are made when asked for; knows how many were alive at once."""

    def __init__(self, whole: dict[str, Tensor]) -> None:
        self.whole, self.alive, self.most = whole, weakref.WeakSet(), 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.whole[name].clone()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __iter__(self):
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trainer_loads_tensor_by_tensor(optimizer):
    chosen = toy_recipe(f"train.optimizer={optimizer}")
    run, other = toy_trainer(chosen), toy_trainer(chosen, start_seed=9)
    run.run_step()
    state = OneByOne(run.state())
    other.load(state)
    assert state.most == 1
    assert all(torch.equal(value, other.state()[name]) for name, value in run.state().items())


# --- the best weights ----------------------------------------------------------------------------


def toy_recipe(*settings: str) -> recipe.Recipe:
    return recipe.load("tiny", data="text.txt", settings=(*SETTINGS, *settings))


def toy_trainer(chosen: recipe.Recipe, start_seed: int = 0) -> Trainer:
    shape = chosen.model
    return Trainer(
        GPT(shape, VOCAB, start_seed),
        chosen.train,
        Batches(noisy_text(600, VOCAB), shape.context, chosen.train.batch, 0),
        micro_batch=4,
        device=torch.device("cpu"),
    )


class Sessions:
    """A run of six steps in any number of sessions, with a checkpoint and a look at each step.

    Handed-over files are moved away and get read-only, as a store does it.
    """

    def __init__(self, root: Path, losses: list[float], monkeypatch) -> None:
        self.root, self.losses = root, losses
        self.chosen = toy_recipe("train.steps=6", "train.eval_every=1")
        self.saved: dict[str, Path] | None = None
        self.weights: dict[int, bytes] = {}  # of each step, in the library's format
        self.sessions = 0
        monkeypatch.setattr(loop, "score", self.score)

    def score(self, model: GPT, *_, **__):
        step = self.trainer.step
        self.weights[step] = library_bytes(dict(model.named_parameters()))
        return type("Measured", (), {"loss": self.losses[step - 1]})

    def save(self, step: int, files: list[Path]) -> None:
        folder = self.root / f"checkpoint {step}"
        folder.mkdir()
        self.saved = {}
        for file in files:
            os.chmod(file, 0o444)
            self.saved[file.name] = file.rename(folder / file.name)

    def run(self, until: int = 99) -> Path:
        """One session, interrupted after step ``until``; returns where its files lie."""
        self.sessions += 1
        out = self.root / f"session {self.sessions}"
        out.mkdir()
        self.trainer = toy_trainer(self.chosen, start_seed=self.sessions)
        context = Context(
            self.chosen,
            MACHINE,
            {},
            out,
            restored=self.saved,
            stopping=lambda: self.trainer.step >= until,
            save=self.save,
        )
        tokens = {"validation_bytes": 1, "validation_tokens": 1}
        loop = Loop(context, self.trainer, np.zeros(0), tokens)
        loop._checkpoint_due = lambda step: step < self.chosen.train.steps
        if until > self.chosen.train.steps:
            loop.run()
        else:
            with pytest.raises(Interrupted):
                loop.run()
        return out


@pytest.mark.parametrize("stops", [(), (3,), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("best", [1, 2, 5, 6])
def test_the_best_weights_outlive_checkpoints_and_sessions(tmp_path, monkeypatch, best, stops):
    losses = [5.0, 4.0, 4.5, 4.4, 4.3, 4.2]
    losses[best - 1] = 1.0
    run = Sessions(tmp_path, losses, monkeypatch)
    for stop in stops:
        run.run(until=stop)
    out = run.run()
    assert (out / "best.safetensors").read_bytes() == run.weights[best]
    assert (out / "weights.safetensors").read_bytes() == run.weights[6]
    assert {file.name for file in out.iterdir()} == {
        "best.safetensors",
        "history.json",
        "metrics.jsonl",
        "segments.json",
        "weights.safetensors",
    }
    # every checkpoint still holds what was the best when it was written
    for step in range(1, 6):
        folder = tmp_path / f"checkpoint {step}"
        looks = json.loads((folder / "history.json").read_text())["validation"]
        found = min(looks, key=lambda look: look["loss"])["step"]
        assert (folder / "best.safetensors").read_bytes() == run.weights[found]


def test_a_checkpoint_before_the_first_look_has_no_best_weights(tmp_path, monkeypatch):
    run = Sessions(tmp_path, [5.0] * 6, monkeypatch)
    run.chosen = toy_recipe("train.steps=6", "train.eval_every=4")
    run.run(until=2)
    assert "best.safetensors" not in run.saved
    assert (run.run() / "best.safetensors").read_bytes() == run.weights[4]


def test_the_state_is_the_file_that_the_library_makes(tmp_path, monkeypatch):
    run = Sessions(tmp_path, [5.0] * 6, monkeypatch)
    run.run(until=4)
    assert run.saved["state.safetensors"].read_bytes() == library_bytes(run.trainer.state())
