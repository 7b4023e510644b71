"""Bytes of every awkward kind, and what pieces two programs find in them."""

from collections import Counter

from hypothesis import strategies as st

from model.bpe import Tokenizer
from model.bpe_count import count_words
from model.bpe_merges import count_pieces
from model.fast import desk
from model.fast.desk import Desk

BYTE_TOKENS = Tokenizer([])._byte_tokens
# at least one character of each kind, length and trap; bytes that are no UTF-8, in every way
TELLING = "aZé1٣² \n\r\t'sſtreVElL!.-\u00a0\u3000\x1c\x85中\U00010400\U0001d7d8😀\u0301\u0378\0"
BROKEN = [b"\xff", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\x80", b"\xc0\xaf", b"\xe0\x80\xaf"]
BROKEN += [b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xe4\xb8a"]

awkward_bytes = st.lists(
    st.sampled_from([c.encode() for c in TELLING] + BROKEN)
    | st.characters(exclude_categories=["Cs"]).map(str.encode)
    | st.binary(max_size=3)
    | st.sampled_from([b"word", b" the", b" extraordinarily", b"\n\n  ", b"don't", b"1234567"]),
    max_size=40,
).map(b"".join)


def words_of(work: Desk) -> Counter[bytes]:
    """The words that learning would begin with, each of which must be there once."""
    byte_of = {token: byte for byte, token in enumerate(BYTE_TOKENS)}
    numbers, found, at = work.arrays[desk.WORDS], Counter(), 0
    assert len(numbers) == work[desk.WORDS_SIZE]
    while at < len(numbers):
        length = int(numbers[at + 2])
        word = bytes(byte_of[token] for token in numbers[at + 3 : at + 3 + length].tolist())
        assert word not in found
        found[word] = int(numbers[at : at + 2].view("int64")[0])
        at += 3 + length
    return found


def counted(texts, pattern: str, workers: int | None = None) -> Counter[bytes]:
    """The pieces of two bytes or more that the compiled program counts."""
    return words_of(count_words(texts, pattern, BYTE_TOKENS, workers=workers))


def plainly_counted(texts, pattern: str) -> Counter[bytes]:
    """The same, as the readable program counts them."""
    pieces = count_pieces(texts, pattern, None)
    found = {p.encode("utf-8", "surrogateescape"): n for p, n in pieces.items()}
    return Counter({piece: n for piece, n in found.items() if len(piece) > 1})
