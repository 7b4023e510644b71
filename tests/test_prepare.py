"""The two splits: who goes where, that nothing is lost, and what is written."""

import hashlib
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sources import resolve
from pipeline.data.splits import Split, SplitWriter
from pipeline.memo import Memo
from pipeline.recipe import DataConfig
from pipeline.stages import prepare


def prepared(spec: Path, out: Path, progress=lambda *_: None, **given) -> dict[str, object]:
    out.mkdir(exist_ok=True)
    source = resolve(str(spec), out, Memo(out / "memo"), fetch=True)
    recipe = SimpleNamespace(data=DataConfig(**given))
    return prepare.run(SimpleNamespace(source=source, recipe=recipe, out=out, progress=progress))


def split(out: Path, name: str) -> list[bytes]:
    return list(Split(out / f"{name}.text", out / f"{name}.ends"))


def write(folder: Path, *texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_bytes(text.encode())
    return folder


def place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


# one text


def test_tinyshakespeare_is_cut_where_everybody_cuts_it(shakespeare, tmp_path):
    metrics = prepared(shakespeare, tmp_path)
    assert (metrics["train_bytes"], metrics["validation_bytes"]) == (1_003_854, 111_540)
    text = (tmp_path / "train.text").read_bytes() + (tmp_path / "validation.text").read_bytes()
    assert text == shakespeare.read_bytes()


def test_one_text_is_one_document_on_each_side(tmp_path):
    metrics = prepared(write(tmp_path / "in", "0123456789"), tmp_path / "out")
    assert metrics == {
        "documents": 1,
        "train_documents": 1,
        "validation_documents": 1,
        "train_bytes": 9,
        "validation_bytes": 1,
        "skipped": 0,
        "replaced": 0,
        "empty": 0,
    }
    assert split(tmp_path / "out", "train") == [b"012345678"]


@settings(deadline=None, derandomize=True)
@given(st.text(min_size=2), st.floats(0.001, 0.999))
def test_a_text_is_cut_between_characters_with_text_on_both_sides(text, validation):
    data = text.encode("utf-8", "replace")
    at = prepare._cut(data, validation)
    assert data[:at].decode() and data[at:].decode()
    assert at >= int(len(data) * (1 - validation)) or data[at:].decode()[1:] == ""


@pytest.mark.parametrize("text", ["a", "€", "😀"])
def test_one_character_cannot_be_split(tmp_path, text):
    with pytest.raises(ValueError, match="too short to be split"):
        prepared(write(tmp_path / "in", text), tmp_path / "out")


def test_a_file_of_one_json_line_is_one_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "0123456789"}\n')
    prepared(tmp_path / "a.jsonl", tmp_path / "out")
    assert split(tmp_path / "out", "validation") == [b"9"]


def test_one_text_among_empty_and_skipped_files_is_one_text(tmp_path):
    folder = write(tmp_path / "in", "", "0123456789", "")
    (folder / "z.bin").write_bytes(b"\0")
    metrics = prepared(folder, tmp_path / "out", on_invalid="skip")
    assert (metrics["documents"], metrics["empty"], metrics["skipped"]) == (1, 2, 1)
    assert split(tmp_path / "out", "train") == [b"012345678"]


# many documents


def test_each_document_goes_where_its_own_hash_says(tmp_path):
    texts = [f"document {number}" for number in range(200)]
    metrics = prepared(write(tmp_path / "in", *texts), tmp_path / "out", validation=0.3)
    held_out = [text.encode() for text in texts if place(text) < 0.3]
    assert split(tmp_path / "out", "validation") == held_out
    assert split(tmp_path / "out", "train") == [
        text.encode() for text in texts if place(text) >= 0.3
    ]
    assert metrics["validation_documents"] == len(held_out)


def test_more_documents_move_none(tmp_path):
    texts = [f"document {number}" for number in range(100)]
    prepared(write(tmp_path / "few", *texts[:50]), tmp_path / "out_few")
    prepared(write(tmp_path / "many", *texts), tmp_path / "out_many")
    for name in ("train", "validation"):
        few = split(tmp_path / "out_few", name)
        assert split(tmp_path / "out_many", name)[: len(few)] == few


def test_duplicates_lie_on_one_side(tmp_path):
    texts = [f"document {number % 20}" for number in range(100)]
    prepared(write(tmp_path / "in", *texts), tmp_path / "out", validation=0.5)
    sides = [set(split(tmp_path / "out", name)) for name in ("train", "validation")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize(("validation", "end"), [(1e-9, min), (1 - 1e-9, max)])
def test_no_side_stays_empty(tmp_path, validation, end):
    texts = [f"document {number % 5}" for number in range(10)]  # each twice
    prepared(write(tmp_path / "in", *texts), tmp_path / "out", validation=validation)
    moved = end(texts, key=place).encode()
    name = "validation" if end is min else "train"
    assert split(tmp_path / "out", name) == [moved, moved]
    other = "train" if end is min else "validation"
    assert len(split(tmp_path / "out", other)) == 8


def test_copies_of_one_document_cannot_be_split(tmp_path):
    with pytest.raises(ValueError, match="all 3 documents of in are the same text"):
        prepared(write(tmp_path / "in", "a", "a", "a"), tmp_path / "out")


# nothing


@pytest.mark.parametrize("texts", [[""], ["", ""]])
def test_no_text_at_all(tmp_path, texts):
    with pytest.raises(ValueError, match="there is no text in in"):
        prepared(write(tmp_path / "in", *texts), tmp_path / "out")


def test_all_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"all that is there was skipped \(1\)"):
        prepared(tmp_path / "a.txt", tmp_path / "out", on_invalid="skip")


# what is written


def test_the_files_are_the_bytes_and_where_they_end(tmp_path):
    texts = [f"dokument é {number}" for number in range(50)]
    prepared(write(tmp_path / "in", *texts), tmp_path / "out", validation=0.5)
    for name in ("train", "validation"):
        ends = (tmp_path / "out" / f"{name}.ends").read_bytes()
        expected = [t.encode() for t in texts if (place(t) < 0.5) == (name == "validation")]
        assert (tmp_path / "out" / f"{name}.text").read_bytes() == b"".join(expected)
        sizes = [len(document) for document in expected]
        cumulated = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        assert struct.unpack(f"<{len(ends) // 8}Q", ends) == tuple(cumulated)


def test_progress_may_stop_the_stage(tmp_path):
    class Stop(Exception):
        pass

    def progress(*_: object) -> None:
        raise Stop

    big = write(tmp_path / "in", *("x" * 3_000_000 + str(number) for number in range(3)))
    with pytest.raises(Stop):
        prepared(big, tmp_path / "out", progress)


def test_a_split_is_read_back(tmp_path):
    with SplitWriter(tmp_path, "train") as writer:
        for document in (b"one", memoryview(b"two"), b"", b"three"):
            writer.add(document)
    read = Split(tmp_path / "train.text", tmp_path / "train.ends")
    assert list(read) == list(read) == [b"one", b"two", b"", b"three"]
    assert (len(read), read.bytes) == (4, 11)
    views = []
    for view in read.views():
        views.append(view)
        read.let_go()
    assert views == [b"one", b"two", b"", b"three"]


def test_a_split_whose_files_do_not_fit_is_refused(tmp_path):
    for name, text in (("train", b"abc"), ("validation", b"ab")):
        with SplitWriter(tmp_path, name) as writer:
            writer.add(text)
    with pytest.raises(ValueError, match="does not belong to"):
        Split(tmp_path / "train.text", tmp_path / "validation.ends")
