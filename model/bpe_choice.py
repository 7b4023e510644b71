"""Which program learns, encodes and decodes: the compiled one, or the one to be read.

Both give the same results, whatever the text; the readable one says what they are. The compiled one
is taken where it is compiled already. Where it is not, compiling takes some twelve seconds, which a
prompt or a small text is not worth: the readable one works until there is more.

    IGNITE_TOKENIZER=fast         compile at once
    IGNITE_TOKENIZER=reference    the one to be read
"""

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from model import bpe_plain
from model.bpe_merges import MOST_TOKENS

WORTH = 16 << 20  # bytes that compiling is worth: some five seconds of the readable program's work


def program(size: int = 0) -> ModuleType:
    """`bpe_fast` or `bpe_plain`, for so many bytes. ValueError: IGNITE_TOKENIZER asks for another.

    Where it cannot be compiled, a line on stderr says why, and it is `bpe_plain` as well.
    """
    asked = _asked()
    if asked == "reference":
        return bpe_plain
    return _compiled() if asked or size >= WORTH or _is_compiled() else bpe_plain


def _asked() -> str | None:
    asked = os.environ.get("IGNITE_TOKENIZER") or None
    if asked not in (None, "fast", "reference"):
        raise ValueError(f"IGNITE_TOKENIZER={asked!r}: it must be 'fast' or 'reference'")
    return asked


def for_texts(texts: Iterable[Any]) -> tuple[ModuleType, Iterable[Any]]:
    """The program that should learn from these, and the same texts: some have been looked at."""
    if (known := program()) is not bpe_plain or _asked():
        return known, texts
    looked_at: list[Any] = []
    size, texts = 0, iter(texts)
    while size < WORTH and (text := next(texts, None)) is not None:
        looked_at.append(text)
        size += len(text)
    return program(size), itertools.chain(looked_at, texts)


def coder(made_of: tuple[Any, ...], replace: Callable[[Any], None]) -> Any:
    """A Coder. One that should be another after some text gives that to `replace`.

    ValueError: too many tokens for either.
    """
    if len(made_of[2]) > MOST_TOKENS:
        raise ValueError(f"{len(made_of[2]):,} tokens: there may be {MOST_TOKENS:,}")
    known = program()
    if known is not bpe_plain or _asked():
        return known.Coder(*made_of)
    return _Patient(made_of, replace)


class _Patient:
    """Encodes with the readable program until the text was worth compiling the other."""

    def __init__(self, made_of: tuple[Any, ...], replace: Callable[[Any], None]) -> None:
        self._made_of, self._replace, self._done = made_of, replace, 0
        self.plain = bpe_plain.Coder(*made_of)
        self.decode = self.plain.decode

    def encode(self, text: Any) -> list[int]:
        return self._for(text).encode(text)

    def encode_array(self, text: Any) -> Any:
        return self._for(text).encode_array(text)

    def _for(self, text: Any) -> Any:
        self._done += len(text)
        if self._done < WORTH or (known := program(WORTH)) is bpe_plain:
            return self.plain
        better = known.Coder(*self._made_of)
        self._replace(better)
        return better


def _is_compiled() -> bool:
    try:
        from model.fast.build import are_kept

        return are_kept()
    except Exception:  # as below; whoever needs it is told why
        return False


@functools.cache
def _compiled() -> ModuleType:
    try:
        from model import bpe_fast

        bpe_fast.kernels()
    except Exception as error:  # numba and LLVM have many, and none is worth a run
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"the tokenizer cannot be compiled ({why}).", end=" ", file=sys.stderr)
        print(
            "The readable one does the same, thirty times as slowly.", file=sys.stderr, flush=True
        )
        return bpe_plain
    return bpe_fast
