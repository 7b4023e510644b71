r"""Where can a text be cut without changing a single token? So that long ones are done in parts.

Ids are given piece by piece, so a cut is safe if, in all three patterns of `split`, the pieces of
the whole are those of its left part followed by those of its right part. It is, between a letter or
number and a character behind it that is neither, wherever they stand. Why, with c for the former, d
for the latter, and p for the place between them:

1.  No alternative of any pattern matches a letter or number with such a character right behind it:
    where letters or numbers stand (`\p{L}+`, `\p{N}+`, the endings as in 's), none but letters or
    numbers follow, and the others match neither. So no piece spans p, and as pieces leave nothing
    out, one ends at p.
2.  The right part is cut as before: patterns look ahead, never back.
3.  So is the left part, though it now ends at p. A run of letters or numbers stops at p in either
    case: at d, or at the end; so does an ending as in 's. Every other run that begins before p
    stops before c, and all that is ever asked of what is behind it, `(?!\S)` and `\z`, is answered
    by c or by what stands before it.

It holds for bytes, too. UTF-8 has no byte below 0x80 in longer characters, and a byte that begins
one continues none, so c and d are the same characters in every surrounding, valid or not.

Both are looked for up to U+FFFF, lone surrogates left out, as those stand for bytes that are no
UTF-8: a cut is needed now and then, not everywhere.
"""

import functools
import mmap
import re

from model import unicode16
from model.bpe_merges import from_bytes

_REACH = 5  # bytes, less one, of the two longest characters up to U+FFFF
_WINDOW = 1 << 16  # bytes, or characters of a str, searched at once


def safe_cut(data: bytes) -> int | None:
    """The first offset behind a letter or number and before what is neither; None: there is none.

    `data` may begin and end within a character.
    """
    text = from_bytes(data)
    found = _before_cut().search(text)
    return None if found is None else len(text[: found.end()].encode("utf-8", "surrogateescape"))


def next_cut(text: str | bytes | memoryview | mmap.mmap, at: int) -> int:
    """The first safe cut behind `at`: the text's end if there is no other."""
    while at < len(text):
        if isinstance(text, str):
            if found := _before_cut().search(text, at, at + _WINDOW + 1):
                return found.end()
        elif (cut := safe_cut(bytes(text[at : at + _WINDOW + _REACH]))) is not None:
            return at + cut
        at += _WINDOW
    return len(text)


@functools.cache
def _before_cut() -> re.Pattern[str]:
    ranges = [*unicode16.ranges(unicode16.LETTERS), *unicode16.ranges(unicode16.NUMBERS)]
    ends = [
        (re.escape(chr(first)), re.escape(chr(last))) for first, last in ranges if last < 1 << 16
    ]
    inside = "".join(f"{first}-{last}" for first, last in ends)
    return re.compile(rf"[{inside}](?=[^{inside}\ud800-\udfff\U00010000-\U0010ffff])")
