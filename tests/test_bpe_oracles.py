"""The compiled tokenizer against tiktoken and Hugging Face: the same merges, and the same ids."""

from pathlib import Path

import pytest
import tiktoken
import tokenizers
from oracles import (
    huggingface,
    many_scripts,
    merges_of,
    random_texts,
    rich_vocabulary,
    sources,
    ties,
)
from tiktoken_ext import openai_public

from model.bpe import Tokenizer
from model.split import PATTERNS

_QUICK = {"scripts": lambda: many_scripts(60_000), "ties": lambda: ties(12_000)}
_QUICK["sources"] = lambda: sources(400_000)
_LARGE = {"scripts": lambda: many_scripts(1_500_000), "ties": lambda: ties(400_000)}
_LARGE["sources"] = lambda: sources(40_000_000)


@pytest.fixture(scope="module", params=PATTERNS)
def rich(request) -> Tokenizer:
    return rich_vocabulary(request.param)


def agree(texts: list[str], vocab_sizes: list[int], pattern: str) -> None:
    """Learn from texts and encode them, as they do who are asked."""
    for vocab_size in vocab_sizes:
        ours = Tokenizer.train(texts, vocab_size=vocab_size, pattern=pattern)
        theirs = huggingface(texts, vocab_size, pattern=pattern)
        assert len(ours.merges) > 200 and ours.merges == merges_of(theirs)
    rank = tiktoken.Encoding(**ours.to_tiktoken())
    assert ours.encode_batch(texts) == rank.encode_ordinary_batch(texts, num_threads=1)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
def test_shakespeare_gives_the_same_merges_and_ids(shakespeare: Path, pattern: str) -> None:
    agree([shakespeare.read_text()], [512, 4096], pattern)


@pytest.mark.parametrize("name", _QUICK)
def test_other_texts_give_the_same_merges_and_ids(name: str) -> None:
    agree(_QUICK[name](), [512, 4096], "cl100k-classic")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt2", "cl100k-classic"])
@pytest.mark.parametrize("name", _LARGE)
def test_large_texts_give_the_same_merges_and_ids(name: str, pattern: str) -> None:
    agree(_LARGE[name](), [512, 4096, 32_000], pattern)


def test_tiktoken_gives_the_same_ids_on_random_unicode(rich: Tokenizer) -> None:
    published = rich.to_tiktoken()
    if rich.pattern == "cl100k":  # as OpenAI writes it
        published["pat_str"] = _published(openai_public.cl100k_base)
    elif rich.pattern == "gpt2":
        published["pat_str"] = openai_public.r50k_pat_str
    theirs = tiktoken.Encoding(**published)
    texts = random_texts(10_000)
    assert rich.encode_batch(texts) == [theirs.encode_ordinary(text) for text in texts]


def _published(encoding) -> str:
    constants = [c for c in encoding.__code__.co_consts if isinstance(c, str)]
    return next(c for c in constants if r"\p{L}" in c)


def test_hugging_face_gives_the_same_ids_on_random_unicode(rich, tmp_path) -> None:
    rich.to_huggingface(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in random_texts(1000):
        assert rich.encode(text) == theirs.encode(text).ids
