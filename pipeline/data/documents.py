"""Read a source as documents: valid UTF-8, one ``bytes`` each, in a fixed order.

    text       one document a file; a byte order mark at its start is dropped
    jsonl      one document a line: a string field of a JSON object
    parquet    one document a row: a string column

Each may be compressed (gz, zst; parquet is so inside). Line ends and everything else in a document
stay as they are. Documents without a byte are passed over. A text file is held in memory whole;
of the other formats, one line or a few hundred rows are.

A file is hashed before it is read, and looked at again after: what is trained on is what the
stage's key says, even if somebody edits the file in between. This costs a second per GiB or so.
"""

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.hashing import file_digest

if TYPE_CHECKING:  # where the files come from has no say in what stands in them
    from pipeline.data.sources import Source, SourceFile
    from pipeline.recipe import DataConfig

CHUNK = 1 << 20
ROWS = 256  # of a parquet file at a time
BOM = codecs.BOM_UTF8
EXTRA = "pip install 'ignite-llm[data]'"


@dataclass
class Tally:
    """What was passed over or changed on the way; ``documents`` counts those that were given."""

    documents: int = 0
    empty: int = 0
    skipped: int = 0
    replaced: int = 0


def documents(source: "Source", config: "DataConfig", tally: Tally) -> Iterator[bytes]:
    """The documents of a source whose files are all here (``resolve(..., fetch=True)``).

    Raises ValueError that names the file, the place in it and the fix: text that is binary or not
    UTF-8 (``config.on_invalid`` decides), damaged files, lines that are no JSON, a missing field
    or column, a file that changed since it was resolved.
    """
    readers = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}
    for file in source.files:
        assert file.path is not None, f"{file.name} was not fetched"
        with _unchanged(file):
            for document in readers[file.kind](file, config, tally):
                if document:
                    tally.documents += 1
                    yield document
                else:
                    tally.empty += 1


@contextlib.contextmanager
def _unchanged(file: "SourceFile") -> Iterator[None]:
    try:
        before = _mark(file.path)
        same = file_digest(file.path) == file.digest
        if same:
            yield
            same = _mark(file.path) == before
    except OSError as error:
        raise ValueError(f"cannot read {file.path}: {error.strerror or error}") from error
    if not same:
        raise ValueError(
            f"{file.path} changed while it was read: run the same command again when "
            "nobody writes to it"
        )


def _mark(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


# formats


def _text(file: "SourceFile", config: "DataConfig", tally: Tally) -> Iterator[bytes]:
    data = b"".join(_bytes(file)) if file.compression else file.path.read_bytes()
    if (at := data.find(0)) >= 0:
        if config.on_invalid == "skip":
            tally.skipped += 1
            return
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise ValueError(
            f"{file.path} is not plain text: byte {at:,} is NUL. "
            + (
                "It looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"
                if utf16
                else "Leave binary files out, with a pattern such as --data 'texts/**/*.txt' or "
                "with --set data.on_invalid=skip"
            )
        )
    valid = _valid(data, str(file.path), 0, 1, config, tally)
    if valid is not None:
        yield valid[len(BOM) :] if valid.startswith(BOM) else valid


def _jsonl(file: "SourceFile", config: "DataConfig", tally: Tally) -> Iterator[bytes]:
    offset = 0
    for number, line in enumerate(_lines(_bytes(file)), start=1):
        valid = _valid(line, str(file.path), offset, number, config, tally)
        offset += len(line) + 1
        if valid is None:
            continue
        if number == 1 and valid.startswith(BOM):
            valid = valid[len(BOM) :]
        if not valid.strip():
            continue
        text = _field(valid, f"{file.path} line {number}", config)
        try:
            yield text.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone half of a surrogate pair, as \ud83d
            if config.on_invalid == "error":
                raise ValueError(
                    f"{file.path} line {number}: character {error.start:,} of the text is half of "
                    f"a surrogate pair and no character{_choices('line')}"
                ) from error
            if config.on_invalid == "skip":
                tally.skipped += 1
                continue
            tally.replaced += 1
            yield re.sub("[\ud800-\udfff]", "\ufffd", text).encode("utf-8")


def _field(line: bytes, place: str, config: "DataConfig") -> str:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place} is not valid JSON: {error}. A .jsonl file has one object a line, such as "
            f'{{"{config.text_field}": "..."}}'
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{place} is not a JSON object but a {type(record).__name__}")
    if config.text_field not in record:
        raise _no_field(place, "field", config.text_field, record)
    text = record[config.text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: field {config.text_field!r} is not a string but a {type(text).__name__}: "
            "name the field that holds the text with --set data.text_field=NAME"
        )
    return text


def _no_field(place: str, what: str, name: str, seen: Any) -> ValueError:
    there = ", ".join(repr(each) for each in seen) or "none"
    return ValueError(
        f"{place} has no {what} {name!r}; it has {there}. Name the one that holds the text with "
        "--set data.text_field=NAME"
    )


def _parquet(file: "SourceFile", config: "DataConfig", tally: Tally) -> Iterator[bytes]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{file.path} is parquet, which needs pyarrow: {EXTRA}") from error
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            _check_column(file.path, table.schema_arrow, config.text_field)
            for batch in table.iter_batches(batch_size=ROWS, columns=[config.text_field]):
                # as bytes, because nothing has checked that they are UTF-8
                for text in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                    row += 1
                    valid = _valid(text or b"", f"{file.path} row {row:,}", 0, 1, config, tally)
                    if valid is not None:
                        yield valid
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the disk's fault, not the file's
            raise
        raise _damaged(file, str(error)) from error


def _check_column(path: Path, schema: Any, name: str) -> None:
    if name not in schema.names:
        raise _no_field(str(path), "column", name, schema.names)
    if (kind := str(schema.field(name).type)) not in ("string", "large_string"):
        raise ValueError(
            f"{path}: column {name!r} is not text but {kind}: name the column that holds the text "
            "with --set data.text_field=NAME"
        )


# bytes


def _bytes(file: "SourceFile") -> Iterator[bytes]:
    """The file's content, decompressed, in pieces."""
    opened = {"": _plain, "gz": _gz, "zst": _zst}[file.compression]
    return opened(file)


def _plain(file: "SourceFile") -> Iterator[bytes]:
    with file.path.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            yield chunk


def _gz(file: "SourceFile") -> Iterator[bytes]:
    import gzip
    import zlib

    try:
        with gzip.open(file.path, "rb") as opened:
            while chunk := opened.read(CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(file, str(error)) from error


def _zst(file: "SourceFile") -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(f"{file.path} is .zst, which needs zstandard: {EXTRA}") from error
    # the library's own file object takes the middle of a frame for the end of the file
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame, inside = decompressor.decompressobj(), False
    try:
        for chunk in _plain(file):
            while chunk:
                yield frame.decompress(chunk)
                chunk, inside = frame.unused_data, not frame.eof
                if frame.eof:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise _damaged(file, str(error)) from error
    if inside:
        raise _damaged(file, "it ends in the middle of a frame")


def _damaged(file: "SourceFile", reason: str) -> ValueError:
    kind = file.compression or file.kind
    return ValueError(
        f"{file.path} is damaged, or no {kind} file: {reason}. Make or fetch it again"
    )


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the line that is not over
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join((*parts, line))
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


# UTF-8


def _valid(
    data: bytes, place: str, offset: int, line: int, config: "DataConfig", tally: Tally
) -> bytes | None:
    """The data if it is UTF-8; else what ``on_invalid`` says, None to skip it.

    ``offset`` and ``line`` are where the data begins in the file, for the message.
    """
    at = _first_invalid(data)
    if at is None:
        return data
    if config.on_invalid == "skip":
        tally.skipped += 1
        return None
    if config.on_invalid == "replace":
        tally.replaced += 1
        return data.decode("utf-8", "replace").encode("utf-8")
    raise ValueError(
        f"{place} is not valid UTF-8: byte 0x{data[at]:02X} at offset {offset + at:,} (line "
        f"{line + data.count(10, 0, at):,}). If you know its encoding, convert the file, for "
        f"example with `iconv -f ISO-8859-1 -t UTF-8`{_choices('document')}"
    )


def _choices(what: str) -> str:
    return (
        "; or put U+FFFD in its place with --set data.on_invalid=replace, or leave such a "
        f"{what} out with --set data.on_invalid=skip"
    )


def _first_invalid(data: bytes) -> int | None:
    """Offset of the first byte that is not UTF-8, in pieces: a decoded copy may be 4x as large."""
    if data.isascii():
        return None
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    for start in range(0, len(data), CHUNK):
        held = len(decoder.getstate()[0])  # bytes of a character that the last piece began
        try:
            decoder.decode(view[start : start + CHUNK], final=start + CHUNK >= len(data))
        except UnicodeDecodeError as error:
            return start - held + error.start
    return None
