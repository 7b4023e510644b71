"""The compiled tokenizer against the readable one, tiktoken and Hugging Face."""

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import BYTE_TOKENS, TELLING, awkward_bytes, counted, plainly_counted
from tiktoken_ext import openai_public
from tokenizers import Regex, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from model import bpe_fast, bpe_plain
from model.bpe import END_OF_TEXT, Tokenizer
from model.bpe_export import to_huggingface, to_tiktoken
from model.fast import build, desk
from model.split import PATTERNS

_MODES = list(PATTERNS)
_EXACTLY = {"deadline": None, "derandomize": True}


def reference(monkeypatch) -> None:
    monkeypatch.setenv("IGNITE_TOKENIZER", "reference")


@pytest.fixture(scope="module")
def play(shakespeare: Path) -> bytes:
    return shakespeare.read_bytes()


@pytest.fixture(scope="module", params=_MODES)
def rich(request, play) -> Tokenizer:
    """A vocabulary with tokens of many scripts."""
    rng = random.Random(3)
    firsts = rng.choices([0xE9, 0x430, 0x5D0, 0x915, 0x4E00, 0x1F600], k=20_000)
    scripts = "".join(chr(first + rng.randrange(40)) for first in firsts)
    texts = [play[:400_000], scripts.encode(), TELLING.encode() * 3]
    return Tokenizer.train(texts, vocab_size=3000, pattern=request.param)


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


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
def test_shakespeare_teaches_the_merges_of_hugging_face(play, pattern) -> None:
    ours = Tokenizer.train([play], vocab_size=4096, pattern=pattern)
    theirs = tokenizers.Tokenizer(BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([play.decode()], trainer)
    names = to_names(ours)
    assert {names[i]: i for i in range(ours.vocab_size)} == theirs.get_vocab()


def to_names(tokenizer: Tokenizer) -> list[str]:
    """The tokens as Hugging Face writes them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    char_of = {tokenizer.token_bytes[1 + i][0]: char for i, char in enumerate(alphabet)}
    ordinary = tokenizer.token_bytes[1:]
    return [END_OF_TEXT, *("".join(char_of[b] for b in token) for token in ordinary)]


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


def random_texts(many: int) -> list[str]:
    rng = random.Random(17)
    blocks = [(32, 127), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xDFF)]
    blocks += [(0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x5000), (0x1F300, 0x1F700)]
    texts = []
    for _ in range(many):
        chars: list[str] = []
        for _ in range(rng.randint(0, 12)):
            block = rng.choice(blocks)
            chars += [chr(rng.randrange(*block)) for _ in range(rng.randint(1, 5))]
            chars += rng.choices(["", " ", "  ", "\n", " \n", "'s", "'", "12", TELLING], k=2)
        texts.append("".join(chars))
    return texts


def test_tiktoken_gives_the_same_ids_on_random_unicode(rich: Tokenizer) -> None:
    published = to_tiktoken(rich)
    if rich.pattern == "cl100k":  # as OpenAI writes it
        published["pat_str"] = _published(openai_public.cl100k_base)
    elif rich.pattern == "gpt2":
        published["pat_str"] = openai_public.r50k_pat_str
    theirs = tiktoken.Encoding(**published)
    texts = random_texts(10_000)
    assert rich.encode_batch(texts) == [theirs.encode_ordinary(text) for text in texts]


def _published(encoding) -> str:
    constants = [c for c in encoding.__code__.co_consts if isinstance(c, str)]
    return next(c for c in constants if r"\p{L}" in c)


def test_hugging_face_gives_the_same_ids_on_random_unicode(rich, tmp_path) -> None:
    to_huggingface(rich, tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in random_texts(1000):
        assert rich.encode(text) == theirs.encode(text).ids


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
        theirs = tiktoken.Encoding(**to_tiktoken(rich))
        assert ids.tolist() == theirs.encode_ordinary(data.decode())
    else:
        reference(monkeypatch)
        plain = Tokenizer(rich.merges, pattern=rich.pattern)
        assert ids.tolist() == plain.encode(data)


def test_what_is_known_is_bounded_and_changes_nothing(rich, play, monkeypatch) -> None:
    text = play[:300_000] + "中文字符 ".encode() * 50
    expected = rich.encode(text)
    monkeypatch.setattr(bpe_fast, "_MOST_ENTRIES", 1 << 12)
    small = Tokenizer(rich.merges, pattern=rich.pattern)
    assert small.encode(text) == expected
    assert len(small._coder._desk.arrays[desk.TABLE]) <= 4 << 14


def test_threads_may_share_a_tokenizer(play) -> None:
    shared = Tokenizer.train([play], vocab_size=1000)
    texts = [play[i : i + 30_000] for i in range(0, 600_000, 30_000)]
    expected = Tokenizer(shared.merges).encode_batch(texts)
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


def test_a_later_process_needs_no_compiler(play) -> None:
    build.kernels()  # kept, if it was not
    code = "import sys\nfrom model.bpe import Tokenizer\n"
    code += "print(Tokenizer([]).encode('ab'), [m for m in sys.modules if m == 'numba'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("[65, 66] []\n", "")


@pytest.fixture
def alone(monkeypatch, tmp_path) -> Path:
    """A machine that keeps nothing yet, whose compiler is quick: it gives the code made before."""
    name = f"{build._digest()}.kernels"
    build.kernels()
    code = next(filter(None, (build._read(folder / name) for folder in build._caches())))
    monkeypatch.setattr(build, "_compile", lambda: code)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


def load() -> None:
    build.kernels.__wrapped__()


def test_code_is_kept_and_the_compiler_speaks_once(alone, capsys) -> None:
    load()
    assert "compiling the tokenizer, once on this machine" in capsys.readouterr().err
    load()
    assert capsys.readouterr().err == ""
    kept = sorted(path.parent.parent.name for path in alone.rglob("*.kernels"))
    assert kept == ["cache", f"ignite-llm-{os.getuid()}"]


@pytest.mark.parametrize("damage", ["cut", "changed", "not ours"])
def test_damaged_or_foreign_code_is_not_run(alone, capsys, damage) -> None:
    load()
    for path in alone.rglob("*.kernels"):
        whole = path.read_bytes()
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "changed":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        else:
            path.parent.chmod(0o777)
    capsys.readouterr()
    load()
    assert "compiling" in capsys.readouterr().err


def test_nowhere_to_keep_code_is_no_error(alone, capsys) -> None:
    for name in ("cache", "temporary"):
        (alone / name).write_text("a file, not a folder")
    load()
    assert "no folder to keep it in: let IGNITE_CACHE name one" in capsys.readouterr().err


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
