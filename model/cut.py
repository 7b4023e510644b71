r"""Where can a text be cut without changing a single token? So that long ones are encoded in parts.

Ids are given piece by piece, so a cut is safe if, in all three patterns of `split`, the pieces of
the whole are those of its left part followed by those of its right part. It is, between a letter or
number and a white space that follows it, wherever they stand. Why, with c for the former, d for the
latter, and p for the place between them:

1.  No alternative of any pattern matches a letter or number with white space right behind it: where
    letters or numbers stand (`\p{L}+`, `\p{N}+`, the endings as in 's), none but letters or numbers
    follow, and the others match neither. So no piece spans p, and as pieces leave nothing out, one
    ends at p.
2.  The right part is cut as before: patterns look ahead, never back.
3.  So is the left part, though it now ends at p. A run of anything but white space stops at p in
    either case: at d, or at the end. A run of white space that begins before p stops before c, and
    all that is ever asked of what is behind such a run, `(?!\S)` and `\z`, is answered by c or by
    what stands before it. The letters of an ending are none of both: neither d nor the end is one.

It holds for bytes, too. UTF-8 has no byte below 0x80 in longer characters, and a byte that begins
one continues none, so c and d are the same characters in every surrounding, valid or not.

White space is looked for in ASCII, letters and numbers up to U+FFFF: a cut is needed now and then,
not everywhere.
"""

import functools
import re

from model import unicode16
from model.bpe_merges import from_bytes

REACH = 3  # bytes of the longest character up to U+FFFF


def safe_cut(data: bytes) -> int | None:
    """The first offset behind a letter or number and before white space; None if there is none.

    `data` may begin and end within a character.
    """
    text = from_bytes(data)
    found = _before_cut().search(text)
    return None if found is None else len(text[: found.end()].encode("utf-8", "surrogateescape"))


@functools.cache
def _before_cut() -> re.Pattern[str]:
    ranges = [*unicode16.ranges(unicode16.LETTERS), *unicode16.ranges(unicode16.NUMBERS)]
    ends = [
        (re.escape(chr(first)), re.escape(chr(last))) for first, last in ranges if last < 1 << 16
    ]
    inside = "".join(f"{first}-{last}" for first, last in ends)
    return re.compile(rf"[{inside}](?=[\t-\r ])")
