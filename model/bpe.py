"""The tokenizer: byte-level byte-pair encoding (BPE), which turns text into ids and back.

A language model predicts the next item of a sequence; the tokenizer decides what the items are.
Bytes would do (256 of them, any text), but make sequences long. Byte-pair encoding on bytes
(Radford et al. 2019, "GPT-2", section 2.2) gives a frequent word one token, a rare one a few, and
has no unknown word. `split` cuts the text into pieces, `bpe_merges` merges within them.

Ids: the special tokens, the 256 bytes in GPT-2's order, the merges in the order learned, exactly
as Hugging Face's BpeTrainer gives them.

Two programs do the work, with the same results: `bpe_merges` and `bpe_plain`, to be read; and
`bpe_fast`, compiled, some thirty times as fast. `bpe_choice` takes one.
"""

import functools
import itertools
import operator
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from model import bpe_choice, bpe_file
from model.bpe_merges import MOST_TOKENS, Pair, Progress, to_bytes, why_stopped
from model.split import PATTERN_NAME, PATTERNS, split

END_OF_TEXT = "<|endoftext|>"

# GPT-2 wrote each byte as a printable character and sorted by those; the order has stayed.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_ORDER = bytes(_PRINTABLE) + bytes(b for b in range(256) if b not in _PRINTABLE)


class Tokenizer:
    """A vocabulary and what is done with it.

    merges: pairs of ids in the order learned; merge i makes token len(special_tokens) + 256 + i.
    special_tokens: name -> id. token_bytes: what each id stands for. stopped_because: why training
    ended, None after `load`. ValueError: merges or special tokens that make no vocabulary.
    """

    def __init__(
        self,
        merges: Iterable[Pair],
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        stopped_because: str | None = None,
        pattern: str = PATTERN_NAME,
    ) -> None:
        if pattern not in PATTERNS:
            raise ValueError(f"pattern {pattern!r}: it must be one of {[*PATTERNS]}")
        self.special_tokens = {name: i for i, name in enumerate(special_tokens)}
        self.merges, self.stopped_because, self.pattern = list(merges), stopped_because, pattern
        if len(self.special_tokens) < len(special_tokens):
            raise ValueError(f"special tokens {special_tokens}: give each name only once")
        for name in self.special_tokens:  # a learned token could come out equal to a single piece
            if name != END_OF_TEXT and len(list(split(name, pattern))) < 2:
                raise ValueError(f"special token {name!r}: write it like '<|{name}|>'")
        first = len(special_tokens)
        self.token_bytes = [name.encode() for name in special_tokens]
        self.token_bytes += [bytes([byte]) for byte in BYTE_ORDER]
        for left, right in self.merges:
            token = len(self.token_bytes)
            if not (first <= left < token and first <= right < token):
                raise ValueError(f"merge {(left, right)}: both ids must be in {first}..{token - 1}")
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
        if len(set(self.merges)) < len(self.merges):
            raise ValueError("merges: the same pair stands there twice")
        self._byte_tokens = [first + BYTE_ORDER.index(byte) for byte in range(256)]

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document. ValueError: a tokenizer that was made without it."""
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"no special token {END_OF_TEXT!r} here; train with it")
        return self.special_tokens[END_OF_TEXT]

    @functools.cached_property
    def _coder(self):
        """Made when it is needed: training alone needs none."""
        made_of = (self.merges, self._byte_tokens, self.token_bytes, self.pattern)
        return bpe_choice.coder(made_of, lambda better: self.__dict__.update(_coder=better))

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes, which make a coder of their own."""
        return {name: value for name, value in self.__dict__.items() if name != "_coder"}

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes | memoryview],
        *,
        vocab_size: int = 32_000,
        min_pair_count: int = 2,
        pattern: str = PATTERN_NAME,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        progress: Progress | None = None,
        workers: int | None = None,
    ) -> "Tokenizer":
        """Learn from `texts`, each one document, until there are `vocab_size` tokens or no pair of
        neighbours occurs `min_pair_count` times. `pattern` names the rule of `split`.

        `progress(done, total, what)` hears of "read" (bytes; total None) and "merge" (merges).
        `workers` threads count, as many as there are cores, up to four, if it is None; they change
        nothing but the time. The readable program has one.
        ValueError: texts with more distinct pieces than 2**31 numbers hold, billions of bytes.
        """
        if isinstance(texts, str | bytes | memoryview):
            raise ValueError("texts must be a series of documents; for a single one pass [text]")
        plain = cls((), special_tokens, pattern=pattern)
        if workers is not None and workers < 1:
            raise ValueError(f"workers {workers}: there must be at least 1")
        room, least = vocab_size - plain.vocab_size, plain.vocab_size
        if not least <= vocab_size <= MOST_TOKENS:
            raise ValueError(f"vocab_size {vocab_size}: it must be {least} to {MOST_TOKENS}")
        program, texts = bpe_choice.for_texts(texts)
        asked = (texts, pattern, plain._byte_tokens, room, min_pair_count, progress, workers)
        merges = program.learn(*asked)
        reason = why_stopped(len(merges), room, vocab_size, min_pair_count)
        return cls(merges, special_tokens, reason, pattern)

    def encode(self, text: str | bytes, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`; `decode_bytes` turns them back into the same bytes, UTF-8 or not.

        The name of a special token is plain text unless it is in `allowed_special`: nobody can
        smuggle one in. ValueError: a name there that this tokenizer lacks.
        """
        if not allowed_special:
            return self._coder.encode(text)
        parts = self._parts(to_bytes(text), allowed_special)
        lists = ([p] if isinstance(p, int) else self._coder.encode(p) for p in parts)
        return [*itertools.chain.from_iterable(lists)]

    def encode_array(self, text: str | bytes, allowed_special: Collection[str] = ()) -> np.ndarray:
        """The same as an array: of uint16, or uint32 where there are more than 65,536 tokens."""
        if not allowed_special:
            return self._coder.encode_array(text)
        encode = self._coder.encode_array
        empty = encode(b"")
        parts = self._parts(to_bytes(text), allowed_special)
        arrays = [empty.dtype.type([p]) if isinstance(p, int) else encode(p) for p in parts]
        return np.concatenate([empty, *arrays])

    def encode_batch(
        self, texts: Iterable[str | bytes], allowed_special: Collection[str] = ()
    ) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text, allowed_special) for text in texts]

    def _parts(self, data: bytes, allowed_special: Collection[str]) -> Iterable[bytes | int]:
        """What stands between the special tokens allowed, and these as ids."""
        if unknown := set(allowed_special) - set(self.special_tokens):
            raise ValueError(f"special tokens {unknown}: there are only {[*self.special_tokens]}")
        longest_first = sorted(allowed_special, key=len, reverse=True)
        names = b"|".join(re.escape(name.encode()) for name in longest_first)
        for i, part in enumerate(re.split(b"(%s)" % names, data)):
            yield self.special_tokens[part.decode()] if i % 2 else part

    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """The bytes of `ids`, special tokens by name. ValueError: an id outside the vocabulary."""
        return bytes(self._coder.decode(ids))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`; what is not UTF-8, such as half a character, becomes U+FFFD."""
        return str(self._coder.decode(ids), "utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write one line of JSON: the same vocabulary gives the same bytes."""
        content = {"pattern": self.pattern, "special_tokens": [*self.special_tokens]}
        bpe_file.write(path, content | {"merges": self.merges})

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. ValueError: another kind of file, another format, damage."""
        data = bpe_file.read(path)
        if data.get("pattern") not in [*PATTERNS]:
            raise ValueError(f"{path} has pattern {data.get('pattern')!r}; known: {[*PATTERNS]}")
        try:
            merges = [(operator.index(a), operator.index(b)) for a, b in data["merges"]]
            return cls(merges, data["special_tokens"], pattern=data["pattern"])
        except (KeyError, TypeError, ValueError) as why:
            raise ValueError(f"{path} is damaged ({why}); copy it again or train again") from why

    def to_huggingface(self, path: str | Path) -> None:
        """Write a tokenizer.json for `tokenizers` and `transformers`; see `bpe_export`."""
        from model.bpe_export import to_huggingface

        to_huggingface(self, path)

    def to_tiktoken(self) -> dict[str, Any]:
        """What `tiktoken.Encoding(**...)` takes: mergeable ranks, pattern, special tokens."""
        from model.bpe_export import to_tiktoken

        return to_tiktoken(self)
