r"""Cut text into pieces - words, numbers, punctuation, white space - before merges are learned.

Why cut at all: byte-pair encoding joins whatever stands side by side most often. On raw text that
wastes the vocabulary on "dog.", "dog!" and "dog?", and on accidents across words such as "of the";
and every new merge would have to scan the whole corpus. Cut first, and merges stay inside a piece:
tokens resemble words, and one distinct piece with a count stands for all its occurrences.

The rule by default is GPT-4's, in the form that Hugging Face tokenizers and rustbpe use. Its
alternatives are tried in this order at every position; nothing is lost, the pieces joined are the
text:

    (?i:'s|'t|'re|'ve|'m|'ll|'d)  an English ending, so that "she's" shares "she" with "she"
    [^\r\n\p{L}\p{N}]?\p{L}+      a word, with one space or mark before it: " word", "(word"
    \p{N}{1,3}                    at most three digits: long numbers need no tokens of their own
     ?[^\s\p{L}\p{N}]+[\r\n]*     punctuation, with the space before it, the line ends after it
    \s*[\r\n]+                    blank lines, up to the last line end
    \s+(?!\S)                     white space, but for the last, which belongs to the next word
    \s+                           any white space that is left

tiktoken's form, "cl100k", takes all the white space at the end of a text as one piece. "gpt2" is
the rule of old: no marks but a space before a word, numbers of any length, no line ends of its own.

The standard library's `re` has no \p{L}, and its \s and its ignoring of case differ from those of
the engines named above, so all classes are spelled out from the tables of `unicode16`. The case
of letters matters in one place: the long s of old print, U+017F, counts as an s.

Cost: 10 ms to compile, at first use. Then 13-15 MB/s, as fast as the PyPI package `regex`.
"""

import functools
import re
from collections.abc import Iterator

from model import unicode16

PATTERN_NAME = "cl100k-classic"

# The same rules for libraries that know \p{L}: what exported tokenizers carry.
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
_START += r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_END = r"|\s+(?!\S)|\s+"
PATTERNS = {
    "cl100k-classic": rf"{_START}|\s*[\r\n]+{_END}",
    "cl100k": rf"{_START}|\s+\z|\s*[\r\n]+{_END}",
    "gpt2": rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+{_END}",
}

_LAST = 0x10FFFF
_LAST_OF_PLANE_0 = 0xFFFF

Ranges = list[tuple[int, int]]


def split(text: str, pattern: str = PATTERN_NAME) -> Iterator[str]:
    """The pieces of `text`, in order; "".join(split(text)) == text.

    Lone surrogates, which stand for bytes that are not UTF-8 (`errors="surrogateescape"`), count as
    punctuation.
    """
    return map(re.Match.group, compiled_pattern(pattern).finditer(text))


@functools.cache
def compiled_pattern(name: str) -> re.Pattern[str]:
    """A rule above as one pattern of the standard library."""
    letters, numbers, spaces = map(
        unicode16.ranges, (unicode16.LETTERS, unicode16.NUMBERS, unicode16.WHITESPACE)
    )
    line_ends = [(10, 10), (13, 13)]
    one_before_word = _one(_all_but(letters + numbers + line_ends))
    letter_run, other_run = _run(letters), _run(_all_but(letters + numbers + spaces))
    space = _inside(spaces, 0, _LAST)
    last = rf"[{space}]+(?![^{space}])|[{space}]+"
    if name == "gpt2":
        return re.compile(
            rf"'(?:[stmd]|re|ve|ll)| ?{letter_run}| ?{_run(numbers)}| ?{other_run}|{last}"
        )
    return re.compile(
        r"'(?:[sStTmMdD\u017f]|[rR][eE]|[vV][eE]|[lL][lL])"
        rf"|{one_before_word}?{letter_run}"
        rf"|{_one(numbers)}{{1,3}}"
        rf"| ?{other_run}[\r\n]*"
        + (rf"|[{space}]++\Z" if name == "cl100k" else "")
        + rf"|[{space}]*[\r\n]+|{last}"
    )


# `re` looks up code points of plane 0 (up to U+FFFF) in a bitmap, but walks a list of all ranges
# above it, and does so for each character that is *not* in the class: for every space after a
# word. Asking first whether the character lies above plane 0 at all makes splitting twice as fast.
_ABOVE_PLANE_0 = r"(?=[\U00010000-\U0010ffff])"


def _one(ranges: Ranges) -> str:
    """A pattern for one character of the class."""
    plane_0 = _inside(ranges, 0, _LAST_OF_PLANE_0)
    above = _inside(ranges, _LAST_OF_PLANE_0 + 1, _LAST)
    return f"(?:[{plane_0}]|{_ABOVE_PLANE_0}[{above}])"


def _run(ranges: Ranges) -> str:
    """A pattern for one or more characters of the class, all there are (`++` never gives back)."""
    plane_0 = _inside(ranges, 0, _LAST_OF_PLANE_0)
    above = _inside(ranges, _LAST_OF_PLANE_0 + 1, _LAST)
    return f"(?:[{plane_0}]++|{_ABOVE_PLANE_0}[{above}]++)++"


def _inside(ranges: Ranges, low: int, high: int) -> str:
    """The part of the ranges within low..high, as it is written between [ and ]."""
    cut = [(max(first, low), min(last, high)) for first, last in ranges]
    ends = [(re.escape(chr(first)), re.escape(chr(last))) for first, last in cut if first <= last]
    return "".join(f"{first}-{last}" for first, last in ends)


def _all_but(ranges: Ranges) -> Ranges:
    """The complement: every code point that lies in none of the ranges."""
    gaps, start = [], 0
    for first, last in sorted(ranges):
        if start < first:
            gaps.append((start, first - 1))
        start = last + 1
    return [*gaps, (start, _LAST)] if start <= _LAST else gaps
