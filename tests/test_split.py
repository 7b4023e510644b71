"""The split pattern against Hugging Face's `Split`, whose regular expressions know Unicode."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from model import unicode16
from model.split import PATTERN_NAME, PATTERNS, split

_REFERENCE = Split(Regex(PATTERNS[PATTERN_NAME]), behavior="isolated")

# All code points that Unicode 16.0 assigns, private use aside, and all that lie between them.
_ASSIGNED = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200))]

# At least one of each kind that the pattern treats in its own way, in each plane that has it.
_TELLING = "aZ1\u0663\u00b2 \n\r\t'sSrRvVmMlLdDeEtT\u017f!.-\u00a0\u3000\x1c\x1f\x85\u00e9\u4e2d"
_TELLING += "\U00010400\U0001d7d8\U0001f600\u0301\u200b\ufeff\u0378"


def reference(text: str) -> list[str]:
    return [piece for piece, _ in _REFERENCE.pre_tokenize_str(text)]


def unicode_text(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(_TELLING) | characters, max_size=40)


@pytest.mark.parametrize(
    ("table", "size"),
    [
        (unicode16.LETTERS, 141_028),
        (unicode16.NUMBERS, 1_911),
        (unicode16.WHITESPACE, 25),
    ],
    ids=["letters", "numbers", "whitespace"],
)
def test_tables_hold_as_many_code_points_as_unicode_16(table: str, size: int) -> None:
    ranges = unicode16.ranges(table)
    assert sum(last - first + 1 for first, last in ranges) == size
    ends = [end for first_last in ranges for end in first_last]
    assert ends == sorted(ends)


def test_every_code_point_belongs_to_the_class_that_the_reference_gives_it() -> None:
    # a letter joins "a", a number joins "1", a mark joins " ", a space joins none of them
    text = "".join(f"a{c}1 {c}1" for c in _ASSIGNED)
    assert list(split(text)) == reference(text)


def test_no_letter_number_or_space_lies_in_the_planes_left_out_above() -> None:
    for table in (unicode16.LETTERS, unicode16.NUMBERS, unicode16.WHITESPACE):
        assert max(last for _, last in unicode16.ranges(table)) < 0x32400


def test_endings_after_an_apostrophe_take_the_letters_that_the_reference_takes() -> None:
    # the 1 keeps the apostrophe from being taken as the mark after a space
    text = "".join(f"1'{c}x" for c in _ASSIGNED if c.isalpha())
    letters = string.ascii_letters + "\u0280\u2113\uff52\U0001d42b"
    text += "".join(f"1'{a}{b}x" for a in letters for b in letters)
    assert list(split(text)) == reference(text)
    assert list(split("1'\u017fx")) == ["1", "'\u017f", "x"]


@given(unicode_text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=1500, deadline=None, derandomize=True)
def test_any_text_is_split_as_the_reference_does(text: str) -> None:
    assert list(split(text)) == reference(text)


@given(unicode_text(st.characters()))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(split(text)) == text


def test_shakespeare_is_split_as_the_reference_does(shakespeare) -> None:
    text = shakespeare.read_text()
    assert list(split(text)) == reference(text)


def test_bytes_that_are_not_utf8_are_neither_letters_nor_numbers_nor_spaces() -> None:
    text = b"a\xff\xfe1 \xff\n b".decode("utf-8", "surrogateescape")
    assert list(split(text)) == ["a", "\udcff\udcfe", "1", " \udcff\n", " b"]


@pytest.mark.parametrize("run", ["a", "a\U00010400", " ", "\n ", "\U0001f600!", "\U0001d7d8"])
def test_long_runs_are_split_in_linear_time(run: str) -> None:
    text = run * 300_000
    assert sum(map(len, split(text))) == len(text)
