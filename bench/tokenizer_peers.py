"""The tokenizers that ours is measured beside, each asked in its own way for the same thing.

A peer that is not installed is left out and named. All are given the same documents and the same
pattern, in the form that is the fastest for them; gigatoken learns with one pattern only, GPT-2's.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.bpe import END_OF_TEXT, Tokenizer
from model.bpe_export import to_huggingface, to_tiktoken
from model.split import PATTERN_NAME, PATTERNS

_MODULES = {name: name for name in ("tokenizers", "tiktoken", "rustbpe", "gigatoken")}
_MODULES["fastokens"] = "fastokens._compat"


def find() -> tuple[dict[str, Any], dict[str, str]]:
    """The modules of the peers that are here, and of each its version, or why it is not here."""
    modules, told = {}, {}
    for name, module in _MODULES.items():
        try:
            modules[name] = importlib.import_module(module)
            told[name] = version(name)
        except ImportError as error:
            told[name] = f"left out: {error}"
    return modules, told


PEERS, VERSIONS = find()


def huggingface(documents: list[str], vocab_size: int, pattern: str = PATTERN_NAME) -> Any:
    """A tokenizer of Hugging Face's, trained."""
    from tokenizers import Regex, models, pre_tokenizers, trainers

    trained = PEERS["tokenizers"].Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([pieces, level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    return trained


def merges_of(trained: Any) -> list[tuple[int, int]]:
    model = json.loads(trained.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def rustbpe(documents: list[str], vocab_size: int) -> Any:
    """A tokenizer of rustbpe's, trained; it has no special token, so one less."""
    trained = PEERS["rustbpe"].Tokenizer()
    pattern = PATTERNS[PATTERN_NAME]
    trained.train_from_iterator(iter(documents), vocab_size - 1, pattern=pattern)
    return trained


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep to oneself what a library writes to stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        for target, source in enumerate(kept, start=1):
            os.dup2(source, target)
            os.close(source)
        os.close(nowhere)


def gigatoken_merges(documents: list[str], vocab_size: int) -> list[tuple[bytes, bytes]]:
    """The merges that gigatoken learns with GPT-2's pattern, as bytes."""
    joined = "\0".join(documents).encode()
    learn = PEERS["gigatoken"].train_bpe
    with silenced():
        return learn(joined, vocab_size, [END_OF_TEXT], "huggingface", b"\0")[1]


class Encoders:
    """Of each peer makers of tokenizers with our vocabulary, which have not seen any text."""

    def __init__(self, ours: Tokenizer, folder: Path) -> None:
        self._ours, self._path = ours, folder / "tokenizer.json"
        to_huggingface(ours, self._path)

    def ours(self) -> Tokenizer:
        return Tokenizer(self._ours.merges, pattern=self._ours.pattern)

    def tiktoken(self) -> Any:
        return PEERS["tiktoken"].Encoding(**to_tiktoken(self._ours))

    def tokenizers(self) -> Any:
        return PEERS["tokenizers"].Tokenizer.from_file(str(self._path))

    def gigatoken(self) -> Any:
        return PEERS["gigatoken"].Tokenizer.from_json(self._path.read_text())

    def fastokens(self) -> Any:
        return PEERS["fastokens"]._TokenizerShim.from_file(str(self._path))
