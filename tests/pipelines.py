"""A pipeline small enough to run whole in about a second, for tests of the engine."""

import hashlib
import io
import random
from pathlib import Path

from pipeline import recipe
from pipeline.engine.engine import Engine
from pipeline.machine import Machine
from pipeline.store.disk import Disk
from pipeline.store.store import Store
from pipeline.ui import Ui

SETTINGS = (
    "tokenizer.vocab_size=270",
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "model.feed_forward=32",
    "model.context=16",
    "model.dropout=0.2",
    "train.steps=12",
    "train.batch=4",
    "train.warmup=2",
    "train.eval_every=4",
    "sample.tokens=8",
)
MACHINE = Machine(device="cpu", precision="fp32", threads=1, micro_batch=2, checkpoint_steps=2)
# what must come out the same however often a run was killed
FILES = (
    ("tokenizer", "tokenizer.json"),
    ("encode", "train.tokens"),
    ("encode", "validation.tokens"),
    ("train", "weights.safetensors"),
    ("train", "best.safetensors"),
    ("train", "history.json"),
    ("evaluate", "metrics.json"),
    ("sample", "samples.json"),
)


def write_corpus(path: Path, words: int = 1200, seed: int = 0) -> Path:
    """Some text with repeated words."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(60)]
    path.write_text(" ".join(draw.choices(vocabulary, k=words)) + "\n", encoding="utf-8")
    return path


def local_store(path: Path) -> Store:
    """A store in a directory."""
    return Store(Disk(Path(path)))


def toy_engine(store: Path, corpus: Path, *settings: str) -> Engine:
    chosen = recipe.load("tiny", data=str(corpus), settings=(*SETTINGS, *settings))
    return Engine(local_store(store), chosen)


def run(engine: Engine, upto: str = "sample", machine: Machine = MACHINE, stopping=lambda: False):
    """Run quietly; returns the report and what was printed."""
    printed = io.StringIO()
    return engine.run(upto, machine, Ui(printed), stopping), printed.getvalue()


def digests(engine: Engine) -> dict[str, str]:
    """sha256 of the actual bytes of every file that must not depend on how the run went."""
    planned = {item.stage.name: item for item in engine.plan()}
    return {
        name: hashlib.sha256(engine.file(planned[stage], name).read_bytes()).hexdigest()
        for stage, name in FILES
    }
