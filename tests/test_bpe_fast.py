"""The compiled tokenizer against the readable one, tiktoken and Hugging Face."""

import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rich_vocabulary, sources
from pieces import BYTE_TOKENS, awkward_bytes, counted, plainly_counted

from model import bpe_choice, bpe_coder, bpe_fast, bpe_plain
from model.bpe import END_OF_TEXT, Tokenizer
from model.fast import desk
from model.split import PATTERNS

_MODES = list(PATTERNS)
_EXACTLY = {"deadline": None, "derandomize": True}


def reference(monkeypatch) -> None:
    monkeypatch.setenv("IGNITE_TOKENIZER", "reference")


@pytest.fixture(scope="module")
def play(shakespeare: Path) -> bytes:
    return shakespeare.read_bytes()


@pytest.fixture(scope="module", params=_MODES)
def rich(request) -> Tokenizer:
    return rich_vocabulary(request.param)


@pytest.mark.parametrize("pattern", ["cl100k", "gpt2"])
def test_every_code_point_is_split_alike(pattern: str) -> None:
    points = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200))]
    text = "".join(f"a{c}1 {c}1'{c}" for c in [*points, "\U0010ffff"]).encode()
    assert counted([text], pattern) == plainly_counted([text], pattern)


@pytest.mark.parametrize("pattern", _MODES)
@given(texts=st.lists(awkward_bytes, max_size=3))
@settings(max_examples=400, **_EXACTLY)
def test_any_bytes_are_split_alike(pattern: str, texts: list[bytes]) -> None:
    assert counted(texts, pattern) == plainly_counted(texts, pattern)


@pytest.mark.parametrize("pattern", _MODES)
def test_the_text_ends_alike_wherever_it_is_cut(pattern: str) -> None:
    text = "Don't  we'LL'ſ\r\n \n  wonderfully 12345 ... \n\t\u3000 é中😀'".encode() * 2
    for cut in range(len(text)):
        assert counted([text[:cut]], pattern) == plainly_counted([text[:cut]], pattern)


@pytest.mark.parametrize("pattern", _MODES)
@given(
    words=st.lists(st.text("abcé ", min_size=1, max_size=30), max_size=25),
    least=st.integers(0, 3),
    room=st.integers(0, 60),
)
@settings(max_examples=150, **_EXACTLY)
def test_any_text_teaches_the_same_merges(pattern, words, least, room) -> None:
    texts = [" ".join(words), "\n".join(words[::2])]
    arguments = (texts, pattern, BYTE_TOKENS, room, least)
    assert bpe_fast.learn(*arguments) == bpe_plain.learn(*arguments)


def test_long_words_teach_the_same_merges() -> None:
    rng = random.Random(8)
    texts = ["".join(rng.choices("ab", k=30_000)), "a" * 9_999, "".join(rng.choices("xyz", k=7))]
    fast = bpe_fast.learn(texts, "gpt2", BYTE_TOKENS, 200, 2)
    assert len(fast) == 200
    assert fast == bpe_plain.learn(texts, "gpt2", BYTE_TOKENS, 200, 2)


@pytest.mark.parametrize("vocab_size", [512, 4096])
@pytest.mark.parametrize("pattern", _MODES)
def test_shakespeare_teaches_the_same_merges(play, pattern, vocab_size, monkeypatch) -> None:
    ours = Tokenizer.train([play], vocab_size=vocab_size, pattern=pattern)
    reference(monkeypatch)
    assert Tokenizer.train([play], vocab_size=vocab_size, pattern=pattern).merges == ours.merges


@given(
    data=awkward_bytes,
    merges=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=60),
    pattern=st.sampled_from(_MODES),
)
@settings(max_examples=400, **_EXACTLY)
def test_any_merges_give_the_same_ids(data: bytes, merges, pattern) -> None:
    used = [*set(data)] or [0]
    known: dict[tuple[int, int], None] = {}
    for pair in merges:  # most of them of bytes that occur, and of tokens made of these
        tokens = [*(BYTE_TOKENS[b] for b in used), *range(257, 257 + len(known))]
        known.setdefault(tuple(tokens[i % len(tokens)] for i in pair))
    tokenizer = Tokenizer(known, pattern=pattern)
    made = (tokenizer.merges, BYTE_TOKENS, tokenizer.token_bytes, pattern)
    fast, plain = bpe_fast.Coder(*made), bpe_plain.Coder(*made)
    ids = plain.encode(data)
    for _ in range(2):  # the second time from memory
        assert fast.encode(data) == ids
    array = fast.encode_array(data)
    assert array.dtype == np.uint16 and array.tolist() == ids
    for form in (ids, array, array.astype(np.uint32), array.astype(np.int64), iter(ids)):
        assert bytes(fast.decode(form)) == data


@pytest.fixture(scope="module", params=["narrow", "wide"])
def both(request, play) -> tuple[bpe_fast.Coder, bpe_plain.Coder]:
    """Coders with ids of 16 or 32 bits; of the wide one some lines of merges are full."""
    known = Tokenizer.train([play], vocab_size=2000)
    if request.param == "wide":
        rng, merges = random.Random(8), dict.fromkeys(known.merges)
        while len(merges) < 1 << 16:
            merges[rng.randrange(1, 257 + len(merges)), rng.randrange(1, 1200)] = None
        known = Tokenizer(merges)
    made = (known.merges, BYTE_TOKENS, known.token_bytes, known.pattern)
    fast = bpe_fast.Coder(*made)
    assert fast.encode_array(b"a").itemsize == (4 if request.param == "wide" else 2)
    return fast, bpe_plain.Coder(*made)


@given(
    lengths=st.lists(
        st.sampled_from([1, 2, 8, 14, 15, 16, 63, 64, 65, 255, 256, 257]), max_size=90
    ),
    letters=st.sampled_from(["ab", "etaoinshrdlu", "aé", "🄰日"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, **_EXACTLY)
def test_pieces_of_any_length_are_merged_side_by_side(both, lengths, letters, seed) -> None:
    fast, plain = both
    rng = random.Random(seed)  # of few, so that pieces occur twice among those that are new
    words = ["".join(rng.choices(letters, k=many)).encode()[:many] for many in lengths]
    text = b" ".join(words)
    ids = plain.encode(text)
    fast._set_up()
    assert [fast.encode(text), fast.encode(text)] == [ids, ids]
    assert fast.encode_array(text.decode("utf-8", "surrogateescape")).tolist() == plain.encode(
        text.decode("utf-8", "surrogateescape")
    )


def test_a_vocabulary_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 1114113: it must be 257 to 1114112"):
        Tokenizer.train(["text"], vocab_size=0x110001)


def test_merges_that_make_too_many_tokens_are_refused() -> None:
    class Many(list):
        def __len__(self) -> int:
            return 0x110001

    with pytest.raises(ValueError, match="1,114,113 tokens: there may be 1,114,112"):
        bpe_choice.coder(([], BYTE_TOKENS, Many(), _MODES[0]), lambda better: None)


def test_a_merge_of_what_is_no_byte_is_no_byte() -> None:
    made = ([(256, 256)], [*range(256)], [b"?"] * 258, "gpt2")
    assert bpe_fast.Coder(*made).encode(b"\0\0") == bpe_plain.Coder(*made).encode(b"\0\0")


@pytest.mark.parametrize("text", ["plain", "naïve", "lone \ud800", "\0", ""])
@pytest.mark.parametrize("many", [1, 9000, 60_000])
def test_a_str_and_its_bytes_give_the_same_array(rich, text, many, monkeypatch) -> None:
    data = (text * many).encode("utf-8", "surrogatepass")
    expected = rich.encode_array(data)
    for kept in (0, 1 << 24):
        monkeypatch.setattr(bpe_coder, "_MOST_KEPT", kept)
        assert np.array_equal(rich.encode_array(text * many), expected)


def test_an_array_that_is_filled_in_parts_is_whole(rich, play, monkeypatch) -> None:
    expected = rich.encode_array(play)
    monkeypatch.setattr(bpe_coder, "_MOST_OUT", 50_000)
    assert np.array_equal(rich.encode_array(play), expected)
    data = play[:200_000] + b"x" * 150_000 + play[200_000:]  # a piece longer than a part
    assert rich.decode_bytes(rich.encode_array(data)) == data


@pytest.mark.parametrize("kind", ["one letter", "no space", "random bytes", "white space"])
def test_a_million_awkward_bytes_give_the_same_ids(kind: str, play, monkeypatch) -> None:
    rng, many = random.Random(4), 1_000_000
    rich = Tokenizer.train([play[:300_000], b"a" * 5000], vocab_size=2000)
    data = {
        "one letter": b"a" * many,
        "no space": bytes(rng.choices(b"etaoinshrdlu", k=many)),
        "random bytes": rng.randbytes(many),
        "white space": bytes(rng.choices(b"  \n\t", k=many)),
    }[kind]
    ids = rich.encode_array(data)
    assert rich.decode_bytes(ids) == data
    if kind == "no space":  # one long piece, too long for the readable program
        theirs = tiktoken.Encoding(**rich.to_tiktoken())
        assert ids.tolist() == theirs.encode_ordinary(data.decode())
    else:
        reference(monkeypatch)
        plain = Tokenizer(rich.merges, pattern=rich.pattern)
        assert ids.tolist() == plain.encode(data)


def test_what_is_known_is_bounded_and_changes_nothing(rich, play, monkeypatch) -> None:
    text = play[:300_000] + "中文字符 ".encode() * 50
    expected = rich.encode(text)
    monkeypatch.setattr(bpe_coder, "_MOST_ENTRIES", 1 << 12)
    small = Tokenizer(rich.merges, pattern=rich.pattern)
    assert small.encode(text) == expected
    assert len(small._coder._desk.arrays[desk.TABLE]) <= 4 << 14


def test_threads_may_share_a_tokenizer(rich) -> None:
    """Long texts, for which others may work meanwhile, and short ones, for which they may not."""
    whole = "".join(sources(400_000))
    texts = [whole[i : i + 30_000] for i in range(0, len(whole), 30_000)]
    texts += [whole[i : i + 40] for i in range(0, 40_000, 40)]
    random.Random(6).shuffle(texts)
    shared = Tokenizer(rich.merges, pattern=rich.pattern)
    expected = Tokenizer(rich.merges, pattern=rich.pattern).encode_batch(texts)
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        found[number] = shared.encode_batch(texts)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [*found.values()] == [expected] * 4


def test_a_large_vocabulary_has_wide_ids() -> None:
    chain = [(1 + i % 256, 1 + i // 256) for i in range(1 << 16)]
    wide = Tokenizer(chain)
    ids = wide.encode_array(bytes(range(256)) * 3)
    assert ids.dtype == np.uint32 and ids.max() > 1 << 8
    assert wide.decode_bytes(ids) == bytes(range(256)) * 3
    made = (wide.merges, wide._byte_tokens, wide.token_bytes, wide.pattern)
    assert ids.tolist() == bpe_plain.Coder(*made).encode(bytes(range(256)) * 3)


def test_arrays_hold_the_special_tokens_allowed(rich: Tokenizer) -> None:
    text = f"{END_OF_TEXT}the{END_OF_TEXT}{END_OF_TEXT} é"
    array = rich.encode_array(text, [END_OF_TEXT])
    assert array.dtype == np.uint16
    assert array.tolist() == rich.encode(text, [END_OF_TEXT])
    assert rich.decode(array) == text


@pytest.mark.parametrize(
    "ids", [[5, -1], [5, 1 << 40], np.array([5, -1]), np.array([5, 9999], np.uint16), (5, 9999)]
)
def test_a_foreign_id_is_named(ids) -> None:
    with pytest.raises(ValueError, match=rf"token id {ids[1]}: this vocabulary has 0\.\.256"):
        Tokenizer([]).decode_bytes(ids)


def test_a_program_that_does_not_exist_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("IGNITE_TOKENIZER", "slow")
    with pytest.raises(ValueError, match=r"IGNITE_TOKENIZER='slow'.*'fast' or 'reference'"):
        Tokenizer([]).encode("a")


def test_a_special_token_must_be_several_pieces_of_its_own_pattern() -> None:
    assert Tokenizer([], ("(word",), pattern="gpt2").encode("(word", ["(word"]) == [0]
    with pytest.raises(ValueError, match=r"special token '\(word'"):
        Tokenizer([], ("(word",))


def test_a_pattern_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pattern 'gpt9': it must be one of \['cl100k-classic'"):
        Tokenizer.train([], pattern="gpt9")


def test_a_file_keeps_the_pattern(tmp_path) -> None:
    Tokenizer([(66, 67)], pattern="gpt2").save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").pattern == "gpt2"


@pytest.mark.parametrize(
    "text", ["", "a", "naïve", "日本語 text", "😀 \ud800 lone", "word " * 900, b"bytes \xff", "\0"]
)
def test_short_texts_and_long_ones_go_different_ways_to_the_same_ids(rich, text) -> None:
    expected = rich.encode_array(text).tolist()
    for _ in range(3):  # the first time nothing is known
        assert rich.encode(text) == expected


def test_a_short_text_does_not_disturb_a_desk_in_use(rich) -> None:
    coder, expected = rich._coder, rich.encode("a short text")
    coder._desk[desk.BUSY] = 1
    assert coder._short("a short text") == []
    coder._desk[desk.BUSY] = 0
    assert coder._short("a short text") == expected == rich.encode(b"a short text")


def test_numbers_of_a_list_are_counted(rich) -> None:
    """Python keeps a number as long as something holds it: no more, and no less."""

    rich.encode("a")  # now there are numbers
    numbers = rich._coder._desk.arrays[desk.NUMBERS]

    def references() -> int:
        return sys.getrefcount(numbers[2000])

    before = references()
    ids = rich.encode("a short text" * 3) + rich.encode(rich.token_bytes[2000] * 5000)
    ids += rich.encode(rich.token_bytes[2000].decode() * 3)
    held = sum(i is numbers[2000] for i in ids)
    assert held >= 5000
    after = references()
    assert after == before + held
    del ids
    after = references()
    assert after == before
