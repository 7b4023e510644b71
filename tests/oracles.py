"""Tokenizers that we did not write, and texts to ask them about."""

import functools
import json
import random
import sysconfig
from pathlib import Path

import tokenizers
from pieces import TELLING
from tokenizers import Regex, models, pre_tokenizers, trainers

from model.bpe import END_OF_TEXT, Tokenizer
from model.split import PATTERN_NAME, PATTERNS


@functools.cache
def rich_vocabulary(pattern: str) -> Tokenizer:
    """A vocabulary with tokens of many scripts."""
    texts = [*many_scripts(20_000), *sources(200_000), TELLING * 3]
    return Tokenizer.train(texts, vocab_size=3000, pattern=pattern)


def huggingface(
    texts: list[str],
    vocab_size: int,
    min_pair_count: int = 2,
    special_tokens: tuple[str, ...] = (END_OF_TEXT,),
    pattern: str = PATTERN_NAME,
) -> tokenizers.Tokenizer:
    """Train with the library that everybody uses."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_pair_count,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return trained


def merges_of(trained: tokenizers.Tokenizer) -> list[tuple[int, int]]:
    model = json.loads(trained.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def random_texts(many: int) -> list[str]:
    rng = random.Random(17)
    blocks = [(32, 127), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xDFF)]
    blocks += [(0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x5000), (0x1F300, 0x1F700)]
    texts = []
    for _ in range(many):
        chars: list[str] = []
        for _ in range(rng.randint(0, 12)):
            block = rng.choice(blocks)
            chars += [chr(rng.randrange(*block)) for _ in range(rng.randint(1, 5))]
            chars += rng.choices(["", " ", "  ", "\n", " \n", "'s", "'", "12", TELLING], k=2)
        texts.append("".join(chars))
    return texts


def sources(most: int) -> list[str]:
    """Modules of the running Python's standard library, up to so many characters."""
    folder, texts = Path(sysconfig.get_path("stdlib")), []
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if most > 0 and "site-packages" not in path.parts:
            texts.append(path.read_text("utf-8", "replace")[:most])
            most -= len(texts[-1])
    return texts


def many_scripts(words: int) -> list[str]:
    """A text of made-up words of ten scripts, as frequent as words are: by Zipf's law."""
    rng = random.Random(11)
    firsts = [ord("a"), 0xE0, 0x3B1, 0x430, 0x5D0, 0x628, 0x915, 0xE01, 0x3042, 0x4E00]
    known = []
    for _ in range(30_000):
        first = rng.choice(firsts)
        letters = [chr(first + rng.randrange(24)) for _ in range(rng.randint(1, 9))]
        known.append("".join(letters))
    drawn = rng.choices(known, [1 / (1 + i) for i in range(len(known))], k=words)
    signs = rng.choices([" ", " ", " ", ", ", ". ", "\n", " 12 ", "。"], k=words)
    return ["".join(word + sign for word, sign in zip(drawn, signs, strict=True))]


def ties(words: int) -> list[str]:
    """Short words over few letters, each of which occurs three times."""
    rng = random.Random(12)
    known = list({"".join(rng.choices("abcdef", k=rng.randint(2, 9))) for _ in range(words)})
    known = sorted(known) * 3
    rng.shuffle(known)
    return [" ".join(known[i : i + 1000]) for i in range(0, len(known), 1000)]
