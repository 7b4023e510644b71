"""How bytes become documents, and what is said about bytes that cannot."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import documents as module
from pipeline.data.documents import Tally, documents
from pipeline.data.sources import resolve
from pipeline.memo import Memo
from pipeline.recipe import DataConfig


@pytest.fixture
def read(tmp_path):
    """``read(name, content, **settings)`` -> (documents, tally) of a file."""

    def read_file(name: str, content: bytes, **given: str) -> tuple[list[bytes], Tally]:
        (tmp_path / name).write_bytes(content)
        return read_all(tmp_path / name, tmp_path, **given)

    return read_file


def read_all(path: Path, tmp_path: Path, **given: str) -> tuple[list[bytes], Tally]:
    source, tally = resolve(str(path), tmp_path, Memo(tmp_path / "memo"), fetch=True), Tally()
    return list(documents(source, DataConfig(**given), tally)), tally


def jsonl(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# text


def test_a_text_is_one_document_as_it_stands(read):
    assert read("a.txt", b"one\r\ntwo\n\n")[0] == [b"one\r\ntwo\n\n"]


def test_a_byte_order_mark_is_dropped(read):
    assert read("a.txt", "\ufeffé\ufeff".encode())[0] == ["é\ufeff".encode()]


def test_empty_files_are_passed_over_and_counted(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a").write_bytes(b"")
    (tmp_path / "texts" / "b").write_bytes(b" ")
    found, tally = read_all(tmp_path / "texts", tmp_path)
    assert found == [b" "] and (tally.documents, tally.empty) == (1, 1)


def test_a_binary_file_is_refused(read):
    with pytest.raises(ValueError, match=r"a\.png is not plain text: byte 3 is NUL.*pattern"):
        read("a.png", b"PNG\0\x89")


def test_utf16_is_recognised(read):
    with pytest.raises(ValueError, match="iconv -f UTF-16"):
        read("a.txt", "text".encode("utf-16"))


def test_a_binary_file_can_be_skipped(read):
    found, tally = read("a.png", b"PNG\0\x89", on_invalid="skip")
    assert found == [] and tally.skipped == 1


def test_invalid_utf8_is_located(read):
    with pytest.raises(ValueError, match=r"a\.txt.*byte 0xE9 at offset 7 \(line 3\).*iconv"):
        read("a.txt", b"one\n\ncaf\xe9"[:5] + b"ca\xe9")


def test_invalid_utf8_can_be_replaced(read):
    found, tally = read("a.txt", b"ca\xe9!", on_invalid="replace")
    assert found == ["ca\ufffd!".encode()] and tally.replaced == 1


def test_invalid_utf8_can_be_skipped(read):
    found, tally = read("a.txt", b"ca\xe9", on_invalid="skip")
    assert found == [] and tally.skipped == 1


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([b"a", "é".encode(), "€".encode(), "😀".encode(), b"\xe2\x82"])))
def test_the_first_invalid_byte_is_found_across_pieces(parts):
    data = b"".join(parts)
    try:
        data.decode()
        expected = None
    except UnicodeDecodeError as error:
        expected = error.start
    before = module.CHUNK
    module.CHUNK = 3
    try:
        assert module._first_invalid(data) == expected
    finally:
        module.CHUNK = before


def test_a_file_that_changes_after_it_was_named_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    source = resolve(str(path), tmp_path, Memo(tmp_path / "memo"), fetch=True)
    path.write_text("after")
    with pytest.raises(ValueError, match="changed while it was read"):
        list(documents(source, DataConfig(), Tally()))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "a"}, {"text": "b"}))
    source = resolve(str(path), tmp_path, Memo(tmp_path / "memo"), fetch=True)
    reading = documents(source, DataConfig(), Tally())
    next(reading)
    with path.open("ab") as file:
        file.write(jsonl({"text": "c"}))
    with pytest.raises(ValueError, match="changed while it was read"):
        list(reading)


# jsonl


def test_a_line_is_a_document(read):
    content = jsonl({"text": "a"}, {"text": ""}, {"text": None}, {"id": 1, "text": "é\n"})
    found, tally = read("a.jsonl", b"\xef\xbb\xbf" + content + b"\r\n\n" + b'{"text": "end"}')
    assert found == [b"a", "é\n".encode(), b"end"] and tally.empty == 2


def test_another_field_may_hold_the_text(read):
    assert read("a.ndjson", jsonl({"body": "a"}), text_field="body")[0] == [b"a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', r"a\.jsonl line 2 is not valid JSON: .*column"),
        (b'["text"]', r"line 2 is not a JSON object but a list"),
        (b'{"body": "b", "id": 1}', r"line 2 has no field 'text'; it has 'body', 'id'.*--set"),
        (b'{"text": 7}', r"line 2: field 'text' is not a string but a int"),
        (b'{"text": "\xff"}', r"byte 0xFF at offset 24 \(line 2\)"),
        (b'{"text": "\\ud83d"}', r"line 2: character 0 of the text is half of a surrogate"),
        (b"[" * 100_000, r"line 2 is not valid JSON"),
    ],
)
def test_a_bad_line_is_located(read, line, message):
    with pytest.raises(ValueError, match=message):
        read("a.jsonl", jsonl({"text": "a"}) + line + b"\n")


def test_half_characters_can_be_replaced_or_skipped(read):
    content = b'{"text": "a\\ud83d"}\n{"text": "b\xff"}\n{"text": "c"}'
    found, tally = read("a.jsonl", content, on_invalid="replace")
    assert found == ["a\ufffd".encode(), "b\ufffd".encode(), b"c"] and tally.replaced == 2
    found, tally = read("a.jsonl", content, on_invalid="skip")
    assert found == [b"c"] and tally.skipped == 2


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=4)), st.booleans())
def test_lines_do_not_depend_on_the_pieces(chunks, closed):
    chunks += [b"\n"] * closed
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    assert list(module._lines(iter(chunks))) == expected[: -1 if expected[-1] == b"" else None]


# parquet


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name: str, **columns: list) -> Path:
        parquet.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=300)
        return tmp_path / name

    return write


def test_a_row_is_a_document(parquet, tmp_path):
    texts = [f"é{number}" for number in range(1000)]
    path = parquet("a.parquet", id=list(range(1002)), text=[None, "", *texts])
    found, tally = read_all(path, tmp_path)
    assert found == [text.encode() for text in texts] and tally.empty == 2


def test_a_missing_column(parquet, tmp_path):
    with pytest.raises(ValueError, match=r"no column 'text'; it has 'id', 'body'.*--set"):
        read_all(parquet("a.parquet", id=[1], body=["b"]), tmp_path)


def test_a_column_of_numbers(parquet, tmp_path):
    with pytest.raises(ValueError, match="column 'text' is not text but int64"):
        read_all(parquet("a.parquet", text=[1]), tmp_path)


def test_a_row_that_is_not_utf8(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pyarrow.array([b"a", b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet row 2 is not valid UTF-8: byte 0xFF"):
        read_all(tmp_path / "a.parquet", tmp_path)
    assert read_all(tmp_path / "a.parquet", tmp_path, on_invalid="skip")[0] == [b"a"]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no parquet at all"])
def test_a_damaged_parquet_file(parquet, tmp_path, damage):
    path = parquet("a.parquet", text=["a"] * 999)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged, or no parquet file"):
        read_all(path, tmp_path)


def test_parquet_without_its_library(parquet, tmp_path, monkeypatch):
    path = parquet("a.parquet", text=["a"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'ignite-llm\[data\]'"):
        read_all(path, tmp_path)


# compression

LONG = "".join(f"{number} é\n" for number in range(300_000)).encode()


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("zst", zstd)])
class TestCompressed:
    def test_text(self, read, suffix, compress):
        assert read(f"a.txt.{suffix}", compress(LONG))[0] == [LONG]

    def test_jsonl(self, read, suffix, compress):
        content = jsonl({"text": "a"}, {"text": "b"})
        assert read(f"a.jsonl.{suffix}", compress(content))[0] == [b"a", b"b"]

    def test_several_parts_one_after_the_other(self, read, suffix, compress):
        assert read(f"a.txt.{suffix}", compress(b"a") + compress(b"b"))[0] == [b"ab"]

    def test_a_file_cut_off(self, read, suffix, compress):
        with pytest.raises(ValueError, match=f"damaged, or no {suffix} file"):
            read(f"a.txt.{suffix}", compress(LONG)[:-10])

    def test_damaged_inside(self, read, suffix, compress):
        content = bytearray(compress(LONG))
        middle = len(content) // 2
        content[middle : middle + 50] = bytes(50)
        with pytest.raises(ValueError, match=f"damaged, or no {suffix} file"):
            read(f"a.txt.{suffix}", bytes(content))

    def test_not_compressed_at_all(self, read, suffix, compress):
        with pytest.raises(ValueError, match=f"damaged, or no {suffix} file"):
            read(f"a.txt.{suffix}", b"plain text")


def test_zst_without_its_library(read, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"needs zstandard: pip install 'ignite-llm\[data\]'"):
        read("a.txt.zst", b"")
