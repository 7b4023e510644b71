"""A text that is cut where model/cut.py says has the pieces, and so the tokens, of the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import BROKEN, TELLING

from model import cut
from model.bpe import Tokenizer
from model.bpe_merges import from_bytes
from model.cut import next_cut, safe_cut
from model.split import PATTERNS, split

# what the rules speak of
_WORDS = [b"word", b" the", b"\n\n  ", b"  \n", b"'re ", b"'S\n", b"don't ", b"1234567 ", b"a "]
texts = st.lists(
    st.sampled_from([c.encode() for c in TELLING + "\v"] + BROKEN + _WORDS)
    | st.characters(exclude_categories=["Cs"]).map(str.encode),
    max_size=30,
).map(b"".join)
TRAINED = {
    name: Tokenizer.train([b"the word  of the \n\n wo 're 'S 1234 12 aaa a a\n"] * 3, pattern=name)
    for name in PATTERNS
}


def cuts(data: bytes) -> list[int]:
    """All of them: what is behind one is searched from its last character on."""
    found, start = [], 0
    while (more := safe_cut(data[start:])) is not None:
        start += more
        found.append(start)
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=texts)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_a_cut_changes_no_piece_and_no_token(pattern, data):
    whole, coder = list(split(from_bytes(data), pattern)), TRAINED[pattern]
    for at in cuts(data):
        left, right = from_bytes(data[:at]), from_bytes(data[at:])
        assert [*split(left, pattern), *split(right, pattern)] == whole
        parts = [*coder.encode(data[:at]), *coder.encode(data[at:])]
        assert parts == coder.encode(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("two words", [3]),
        ("1 2\n3", [1, 3]),
        ("été là-bas.", [5, 9, 13]),
        ("中\n文。\r\n", [3, 7]),
        ("it's 're a\u00a0b", [2, 4, 8, 10]),
        (".. \n (  ) !", []),
        ("oneword", []),
        ("", []),
        ("\U00010400 a b😀", [6]),  # nobody needs those beyond U+FFFF
        (b"\x80a \xe4\xb8 b \xff c\xff", [2, 7]),  # and what is no UTF-8 is neither
    ],
)
def test_where_cuts_are(data, expected):
    assert cuts(data if isinstance(data, bytes) else data.encode()) == expected


@given(data=texts, skipped=st.integers(0, 40))
@settings(deadline=None, derandomize=True)
def test_a_cut_is_one_wherever_the_search_begins(data, skipped):
    later = [at - skipped for at in cuts(data) if at - skipped > 0]
    assert set(cuts(data[skipped:])) <= set(later)


@given(data=texts, window=st.integers(1, 9))
@settings(deadline=None, derandomize=True)
def test_the_next_cut_is_found_across_windows(data, window):
    """From any place on, in bytes and in a str; and it is never overlooked."""
    text, every = data.decode("utf-8", "replace"), cuts(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "_WINDOW", window)
        for at in range(len(data)):
            found = next_cut(memoryview(data), at)
            assert found == len(data) or found in every
            later = [each for each in every if each > at + 2]  # `at` may lie within a character
            assert found <= min(later, default=len(data))
        encoded = cuts(text.encode())
        for at in range(len(text)):
            found = len(text[: next_cut(text, at)].encode())
            start = len(text[:at].encode())
            assert found == min([c for c in encoded if c > start], default=len(text.encode()))
