"""The tokenizer against Hugging Face's trainer, tiktoken, and its own promises."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import huggingface, merges_of

from model import bpe_plain
from model.bpe import END_OF_TEXT, Tokenizer
from model.bpe_merges import apply_merges, pairs_of

_SENTENCES = [
    "Don't panic: she's 42, he'LL be 1234567!\r\n\r\n  \tEnd   ",
    "naïve Ünïcödé — 日本語のテキスト, русский текст; हिन्दी",
    "🏳️‍🌈👩🏽‍🚀 \U0001d7d8\U0001d7d9 x\u0301 \u00a0\u3000\x1c\x85 ſ 'ſ",
    "def f(x):\n\treturn x**2  # <|endoftext|>\n",
    "\n \n", " ", "", "a" * 100,
]  # fmt: skip


@pytest.fixture(scope="module")
def play(shakespeare: Path) -> str:
    return shakespeare.read_text()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A small vocabulary that needs no corpus."""
    words = random.Random(5).choices(
        ["the", " cat", " sat", "\n\n", " on", "é", " 123", "日本"], k=900
    )
    return Tokenizer.train(["".join(words), *_SENTENCES], vocab_size=400, min_pair_count=1)


@pytest.mark.parametrize("vocab_size", [512, 4096, 32_000])
def test_shakespeare_gives_the_merges_and_ids_of_hugging_face(play: str, vocab_size: int) -> None:
    ours = Tokenizer.train([play], vocab_size=vocab_size)
    theirs = huggingface([play], vocab_size)
    assert ours.merges == merges_of(theirs)
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in (play[:200_000], *_SENTENCES[:3]):
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("letters", ["ab", "abc", "abcdef", "aé"])
@pytest.mark.parametrize("min_pair_count", [0, 1, 2, 3])
def test_ties_are_broken_as_hugging_face_does(letters: str, min_pair_count: int) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        words = [
            "".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(rng.randint(1, 30))
        ]
        texts = [" ".join(words), "\n".join(words[::2])]
        ours = Tokenizer.train(texts, vocab_size=330, min_pair_count=min_pair_count)
        assert ours.merges == merges_of(huggingface(texts, 330, min_pair_count)), texts


@pytest.mark.parametrize("special_tokens", [(), (END_OF_TEXT, "<|user|>", "[INST]")])
def test_special_tokens_take_the_first_ids(special_tokens: tuple[str, ...]) -> None:
    ours = Tokenizer.train(_SENTENCES, vocab_size=300, special_tokens=special_tokens)
    theirs = huggingface(_SENTENCES, 300, special_tokens=special_tokens)
    assert ours.special_tokens == {name: i for i, name in enumerate(special_tokens)}
    assert ours.merges == merges_of(theirs)


def test_documents_do_not_run_into_each_other() -> None:
    assert Tokenizer.train(["a", "b"] * 5, vocab_size=300, min_pair_count=1).merges == []


def test_text_and_its_bytes_train_and_encode_alike() -> None:
    from_text = Tokenizer.train(_SENTENCES, vocab_size=300)
    from_bytes = Tokenizer.train([text.encode() for text in _SENTENCES], vocab_size=300)
    assert from_text.merges == from_bytes.merges
    for text in _SENTENCES:
        assert from_text.encode(text) == from_bytes.encode(text.encode())


def test_training_says_why_it_stopped() -> None:
    full = Tokenizer.train(["abab abab"], vocab_size=258)
    assert full.stopped_because == "vocabulary reached 258"
    dry = Tokenizer.train(["abab abab"], vocab_size=2000)
    assert dry.stopped_because == "no pair occurs 2 times: the corpus supports 2 merges"


def test_training_reports_progress() -> None:
    heard: list[tuple[int, int | None, str]] = []
    Tokenizer.train(["abab", "é"], vocab_size=259, progress=lambda *news: heard.append(news))
    assert heard == [(6, None, "read"), (1, 2, "merge")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one text"}, r"pass \[text\]"),
        ({"texts": [], "vocab_size": 256}, "256: it must be 257 to"),
        ({"texts": [], "special_tokens": ("<|a|>", "<|a|>")}, "only once"),
        ({"texts": [], "special_tokens": ("word",)}, r"<\|word\|>"),
        ({"texts": [], "special_tokens": ("",)}, "special token ''"),
    ],
)
def test_training_refuses_what_cannot_work(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(**arguments)


def test_tiktoken_gives_the_same_ids(play: str) -> None:
    ours = Tokenizer.train([play], vocab_size=2048)
    theirs = tiktoken.Encoding(**ours.to_tiktoken())
    for text in (play, *_SENTENCES, " ".join(_SENTENCES) * 3):
        assert ours.encode(text) == theirs.encode_ordinary(text)
    named = f"a{END_OF_TEXT}b"
    assert ours.encode(named, {END_OF_TEXT}) == theirs.encode(named, allowed_special={END_OF_TEXT})


def test_hugging_face_loads_the_export_and_gives_the_same_ids(trained, tmp_path: Path) -> None:
    trained.to_huggingface(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == trained.vocab_size
    for text in _SENTENCES:
        ids = trained.encode(text, {END_OF_TEXT})
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text


def test_export_refuses_tokens_that_hugging_face_cannot_tell_apart(tmp_path: Path) -> None:
    twins = Tokenizer([(1, 2), (2, 3), (257, 3), (1, 258)])
    with pytest.raises(ValueError, match="same bytes"):
        twins.to_huggingface(tmp_path / "tokenizer.json")


@given(st.text(st.characters() | st.sampled_from(" \n'sa1é"), max_size=60))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_comes_back(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        assert trained.decode(ids) == text


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"the", b"\xe6\x97", b"\xa5 ", b"\xed\xa0\x80"])).map(b"".join)
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_bytes_come_back(trained: Tokenizer, data: bytes) -> None:
    assert trained.decode_bytes(trained.encode(data)) == data


@given(
    merges=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30),
    word=st.text("abc", max_size=40),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_merging_all_at_once_equals_merging_one_at_a_time(merges, word: str) -> None:
    tokens, token_of_pair = ["a", "b", "c"], {}
    for left, right in merges:
        pair = tokens[left % len(tokens)] + tokens[right % len(tokens)]
        if pair not in token_of_pair:
            token_of_pair[pair] = chr(0x100 + len(tokens))
            tokens.append(token_of_pair[pair])
    merged = word
    while known := [
        (token_of_pair[p], i) for i, p in enumerate(pairs_of(merged)) if p in token_of_pair
    ]:
        token, at = min(known)
        merged = merged[:at] + token + merged[at + 2 :]
    assert apply_merges(word, token_of_pair) == merged


def test_a_piece_of_a_million_letters_is_encoded_in_seconds() -> None:
    text = "a" * 1_000_000
    tokenizer = Tokenizer.train([text[:1000]], vocab_size=320)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < 3000


def test_the_cache_of_pieces_is_bounded_and_changes_nothing(trained, monkeypatch) -> None:
    expected = [trained.encode(text) for text in _SENTENCES]
    monkeypatch.setenv("IGNITE_TOKENIZER", "reference")
    monkeypatch.setattr(bpe_plain, "_CACHE_PIECES", 4)
    small = Tokenizer(trained.merges)
    assert [small.encode(text) for text in _SENTENCES * 2] == expected * 2
    assert len(small._coder._ids_of_piece) <= 4


def test_special_tokens_are_text_unless_allowed(trained: Tokenizer) -> None:
    text = f"the{END_OF_TEXT} cat"
    assert trained.end_of_text not in trained.encode(text)
    allowed = trained.encode(text, {END_OF_TEXT})
    assert allowed == [*trained.encode("the"), trained.end_of_text, *trained.encode(" cat")]
    assert trained.decode(allowed) == trained.decode(trained.encode(text)) == text


def test_the_longest_special_token_wins() -> None:
    tokenizer = Tokenizer([], ("<|a|>", "<|a|><|b|>"))
    assert tokenizer.encode("<|a|><|b|><|a|>", ["<|a|>", "<|a|><|b|>"]) == [1, 0]


def test_a_special_token_that_does_not_exist_is_refused(trained: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"<\|user\|>"):
        trained.encode("x", {"<|user|>"})


def test_end_of_text_is_missed_where_it_was_left_out() -> None:
    with pytest.raises(ValueError, match="endoftext"):
        _ = Tokenizer([], ()).end_of_text


def test_ids_may_be_numpy_integers(trained: Tokenizer) -> None:
    assert trained.decode(np.array(trained.encode("the cat"), dtype=np.uint16)) == "the cat"


@pytest.mark.parametrize("wrong", [-1, 400])
def test_decoding_names_an_id_out_of_range(trained: Tokenizer, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"token id {wrong}\b"):
        trained.decode_bytes([5, wrong])


def test_half_a_character_decodes_to_a_replacement(trained: Tokenizer) -> None:
    assert trained.decode(trained.encode(b"a\xf0\x9f")) == "a\ufffd"


def test_saving_twice_gives_the_same_bytes_and_loading_the_same_tokenizer(
    trained, tmp_path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    trained.save(first)
    loaded = Tokenizer.load(first)
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().endswith(b"}\n")
    assert (loaded.merges, loaded.special_tokens) == (trained.merges, trained.special_tokens)
    assert [loaded.encode(text) for text in _SENTENCES] == [trained.encode(t) for t in _SENTENCES]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{", b"[1]", b'{"model": 1}', b"[" * 99_999]
)
def test_loading_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json is not a tokenizer"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has format 3"),
        ({"format": True}, "has format True"),
        ({"format": 1.0}, "has format 1.0"),
        ({"pattern": []}, r"pattern \[\]"),
        ({"digest": "0" * 64}, "damaged .its digest"),
        ({"pattern": "gpt4"}, "pattern 'gpt4'"),
        ({"merges": [[1, 9999]]}, "damaged .*9999"),
        ({"merges": [[9999, 1]]}, "damaged .*9999"),
        ({"merges": [[1, 0]]}, "damaged .*must be in 1"),
        ({"merges": [[-1, 1]]}, "damaged"),
        ({"merges": [[1, 2], [1, 2]]}, "damaged .*twice"),
        ({"merges": [[1]]}, "damaged"),
        ({"merges": [["1", "2"]]}, "damaged"),
        ({"merges": None}, "damaged"),
        ({"special_tokens": [7]}, "damaged"),
        ({"special_tokens": ["word"]}, "damaged .*word"),
    ],
)
def test_loading_refuses_damaged_files(trained, tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(path)
    if "merges" in change:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"merges": [[2, 1]]}))
        with pytest.raises(ValueError, match=r"damaged .its digest"):
            Tokenizer.load(path)


def rewrite(path: Path, change: dict) -> None:
    """Change what a file says. Its digest then fits, unless that is what is changed."""
    data = json.loads(path.read_text()) | change
    head = {name: data.pop(name) for name in ("kind", "format", "digest")}
    text = json.dumps(data, separators=(",", ":"), sort_keys=True)
    if "digest" not in change:
        head["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(head | data))


def in_the_first_format(tokenizer: Tokenizer, folder: Path, without: str) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    data = json.loads(path.read_text()) | {"format": 1}
    del data[without]
    path.write_text(json.dumps(data))
    return path


def test_a_file_of_the_first_format_is_read(trained, tmp_path: Path) -> None:
    """Runs begun by older versions have one."""
    path = in_the_first_format(trained, tmp_path, without="digest")
    assert Tokenizer.load(path).merges == trained.merges


def test_loading_refuses_a_file_that_lacks_its_merges(trained, tmp_path: Path) -> None:
    path = in_the_first_format(trained, tmp_path, without="merges")
    with pytest.raises(ValueError, match=r"damaged .*merges"):
        Tokenizer.load(path)
