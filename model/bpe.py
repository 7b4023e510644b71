"""The tokenizer: byte-level byte-pair encoding (BPE), which turns text into ids and back.

A language model predicts the next item of a sequence; the tokenizer decides what the items are.
Bytes would do (256 of them, any text), but make sequences long. Byte-pair encoding on bytes
(Radford et al. 2019, "GPT-2", section 2.2) gives a frequent word one token, a rare one a few, and
has no unknown word. `split` cuts the text into pieces, `bpe_merges` merges within them.

Ids: the special tokens, the 256 bytes in GPT-2's order, the merges in the order learned, exactly
as Hugging Face's BpeTrainer gives them. As in `bpe_merges`, a word is a string of chr(id).

Cost on one core: encoding runs at 8 MB/s once the usual pieces are known, 3 MB/s before.
"""

import json
import operator
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import SupportsIndex

from model.bpe_merges import (
    Progress,
    apply_merges,
    count_pieces,
    from_bytes,
    learn_merges,
    to_bytes,
    why_stopped,
)
from model.split import PATTERN_NAME, split

END_OF_TEXT = "<|endoftext|>"

# GPT-2 wrote each byte as a printable character and sorted by those; the order has stayed.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_ORDER = bytes(_PRINTABLE) + bytes(b for b in range(256) if b not in _PRINTABLE)

_FILE_KIND, _FILE_FORMAT = "Ignite-LLM byte-level BPE", 1
_CACHE_PIECES, _CACHE_LONGEST = 1 << 18, 64  # some 70 MB when full; longer pieces seldom recur


class Tokenizer:
    """A vocabulary and what is done with it.

    merges: pairs of ids in the order learned; merge i makes token len(special_tokens) + 256 + i.
    special_tokens: name -> id. token_bytes: what each id stands for. stopped_because: why training
    ended, None after `load`. ValueError: merges or special tokens that make no vocabulary.
    """

    pattern = PATTERN_NAME

    def __init__(
        self,
        merges: Iterable[tuple[int, int]],
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        stopped_because: str | None = None,
    ) -> None:
        self.special_tokens = {name: i for i, name in enumerate(special_tokens)}
        self.merges, self.stopped_because = list(merges), stopped_because
        if len(self.special_tokens) < len(special_tokens):
            raise ValueError(f"special tokens {special_tokens}: give each name only once")
        for name in self.special_tokens:
            if len(list(split(name))) < 2:  # then a learned token could come out equal to it
                raise ValueError(f"special token {name!r}: write it like '<|{name}|>'")
        first = len(special_tokens)
        self.token_bytes = [name.encode() for name in special_tokens]
        self.token_bytes += [bytes([byte]) for byte in BYTE_ORDER]
        for left, right in self.merges:
            token = len(self.token_bytes)
            if not (first <= left < token and first <= right < token):
                raise ValueError(f"merge {(left, right)}: both ids must be in {first}..{token - 1}")
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
        self._char_of_byte = {byte: chr(first + i) for i, byte in enumerate(BYTE_ORDER)}
        made = enumerate(self.merges, start=first + 256)
        self._token_of_pair = {chr(a) + chr(b): chr(token) for token, (a, b) in made}
        if len(self._token_of_pair) < len(self.merges):
            raise ValueError("merges: the same pair stands there twice")
        self._ids_of_piece: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document. ValueError: a tokenizer that was made without it."""
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"no special token {END_OF_TEXT!r} here; train with it")
        return self.special_tokens[END_OF_TEXT]

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes],
        *,
        vocab_size: int = 32_000,
        min_pair_count: int = 2,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        progress: Progress | None = None,
    ) -> "Tokenizer":
        """Learn from `texts`, each one document, until there are `vocab_size` tokens or no pair of
        neighbours occurs `min_pair_count` times.

        `progress(done, total, what)` hears of "read" (bytes; total None) and "merge" (merges).
        """
        plain = cls((), special_tokens)
        room = vocab_size - plain.vocab_size
        if room < 0:
            raise ValueError(f"vocab_size {vocab_size}: it must be at least {plain.vocab_size}")
        pieces = count_pieces(texts, progress)
        words = [plain._spell(piece) for piece in pieces]
        learned = learn_merges(words, list(pieces.values()), plain.vocab_size, min_pair_count)
        merges = []
        for left, right in islice(learned, room):
            merges.append((ord(left), ord(right)))
            if progress:
                progress(len(merges), room, "merge")
        reason = why_stopped(len(merges), room, vocab_size, min_pair_count)
        return cls(merges, special_tokens, reason)

    def encode(self, text: str | bytes, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`; `decode_bytes` turns them back into the same bytes, UTF-8 or not.

        The name of a special token is plain text unless it is in `allowed_special`: nobody can
        smuggle one in. ValueError: a name there that this tokenizer lacks.
        """
        text = from_bytes(to_bytes(text))
        if not allowed_special:
            return self._encode_plain(text)
        if unknown := set(allowed_special) - set(self.special_tokens):
            raise ValueError(f"special tokens {unknown}: there are only {[*self.special_tokens]}")
        names = "|".join(map(re.escape, sorted(allowed_special, key=len, reverse=True)))
        ids: list[int] = []
        for i, part in enumerate(re.split(f"({names})", text)):
            ids += [self.special_tokens[part]] if i % 2 else self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        known = self._ids_of_piece
        for piece in split(text):
            ids_of_piece = known.get(piece)
            if ids_of_piece is None:
                word = apply_merges(self._spell(piece), self._token_of_pair)
                ids_of_piece = [ord(token) for token in word]
                if len(known) >= _CACHE_PIECES:
                    known.clear()
                if len(piece) <= _CACHE_LONGEST:
                    known[piece] = ids_of_piece
            ids += ids_of_piece
        return ids

    def _spell(self, piece: str) -> str:
        """A piece as a word of byte tokens."""
        return "".join([self._char_of_byte[b] for b in piece.encode("utf-8", "surrogateescape")])

    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """The bytes of `ids`, special tokens by name. ValueError: an id outside the vocabulary."""
        parts = []
        for i in map(operator.index, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i}: this vocabulary has 0..{self.vocab_size - 1}")
            parts.append(self.token_bytes[i])
        return b"".join(parts)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`; what is not UTF-8, such as half a character, becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write one line of JSON: the same vocabulary gives the same bytes."""
        head = {"kind": _FILE_KIND, "format": _FILE_FORMAT, "pattern": self.pattern}
        data = head | {"special_tokens": [*self.special_tokens], "merges": self.merges}
        Path(path).write_bytes(json.dumps(data, separators=(",", ":")).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. ValueError: another kind of file, another format, damage."""
        try:
            data = json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or data.get("kind") != _FILE_KIND:
            raise ValueError(
                f"{path} is not a tokenizer; Tokenizer.train(...).save(path) makes one"
            )
        if (data.get("format"), data.get("pattern")) != (_FILE_FORMAT, PATTERN_NAME):
            found = f"{path} has format {data.get('format')}, pattern {data.get('pattern')!r}"
            raise ValueError(f"{found}; this program reads {_FILE_FORMAT} and {PATTERN_NAME!r}")
        try:
            merges = [
                (operator.index(left), operator.index(right)) for left, right in data["merges"]
            ]
            return cls(merges, data["special_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); copy it again or train again"
            ) from error
