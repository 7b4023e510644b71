"""Where the text comes from: what ``--data`` names, as files whose digests are known.

    python-stdlib              the interpreter's own sources: needs no network
    tinyshakespeare            1.1 MB of plays, downloaded once
    a file, a directory, a pattern with * or **, or any URL that fsspec reads

The digest of a source is that of its files' bytes and formats, in order. Names and places are not
part of it: the same bytes in another directory are the same data. Digests are remembered by the
memo, so that naming 700 files costs 700 calls of ``stat``; of a remote source they are remembered
beside the download (``download.py``). How bytes become documents is said in ``documents.py``.
"""

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import hashing
from pipeline.memo import Memo

Progress = Callable[[int, int | None, str], None]

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}  # all else is text
DATASETS = ("python-stdlib", "tinyshakespeare")
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# what distributions of Python package apart, and what installing one writes
NOT_STDLIB = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "sitecustomize.py")
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. ``path`` is None while it is remote and not fetched."""

    name: str  # for messages and the order
    path: Path | None
    digest: str | None  # sha256 of the file's bytes; None while only fetching could tell
    kind: str  # text, jsonl or parquet
    compression: str  # "", gz or zst


@dataclass(frozen=True)
class Source:
    """All files of a source, in the order in which they are read."""

    label: str  # short, for people
    files: tuple[SourceFile, ...]
    single: bool  # exactly one text: split by its bytes; else by the documents' hashes
    digest: str | None  # None while that of any file is
    left_out: int = 0  # files of python-stdlib that are not UTF-8


def resolve(
    spec: str, store_root: Path, memo: Memo, *, fetch: bool, progress: Progress | None = None
) -> Source:
    """The files that ``spec`` names; with ``fetch``, remote ones are downloaded first.

    ``progress(done, total, "B")`` is called while bytes arrive and may raise to stop; the next
    call goes on from there. Raises ValueError with the fix: no such source, nothing in it, not
    readable, not to be downloaded; StoreError where the download cannot be written.
    """
    if spec == "python-stdlib":
        return _python_stdlib(memo)
    if spec == "tinyshakespeare":
        remote = _Remote(SHAKESPEARE_URL, spec, SHAKESPEARE_SHA256)
        return _downloaded(remote, store_root, memo, fetch, progress)
    for scheme in ("file://", "local://"):
        if spec.startswith(scheme):
            return _local(spec.removeprefix(scheme), memo)
    if "://" in spec:
        return _downloaded(_Remote(spec, None, None), store_root, memo, fetch, progress)
    return _local(spec, memo)


def _source(label: str, files: list[SourceFile], left_out: int = 0) -> Source:
    content = [(file.kind, file.compression, file.digest) for file in files]
    known = files and all(file.digest for file in files)
    return Source(
        label=label,
        files=tuple(files),
        single=len(files) == 1 and files[0].kind == "text",
        digest=hashing.digest(hashing.canonical(content)) if known else None,
        left_out=left_out,
    )


def _format(name: str) -> tuple[str, str]:
    """(kind, compression) of a file, by its name."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop()[1:] if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    kind = KINDS.get(suffixes[-1], "text") if suffixes else "text"
    if kind == "parquet" and compression:
        raise ValueError(
            f"{name}: parquet is compressed inside and cannot be read through .{compression}: "
            "decompress the file and give that"
        )
    return kind, compression


# local files


def _local(spec: str, memo: Memo) -> Source:
    path = Path(os.path.expanduser(spec))
    if spec and path.is_dir():
        label, found = path.resolve().name or spec, sorted(_walk(str(path)))
    elif spec and path.is_file():
        label, found = path.name, [(path.name, str(path))]
    elif spec and path.exists():
        raise ValueError(f"{spec} is neither a file nor a directory: copy its text into a file")
    elif glob.has_magic(spec):
        label, found = spec, _matches(str(path))
    else:
        raise ValueError(_missing(spec, path))
    if not found:
        where = "no file matches the pattern" if glob.has_magic(spec) else "there is no file in"
        raise ValueError(
            f"{where} {spec} (hidden files do not count): give a file, a directory or a pattern "
            "such as 'texts/**/*.txt', in quotes"
        )
    return _source(label, [_file(name, Path(place), memo) for name, place in found])


def _file(name: str, path: Path, memo: Memo) -> SourceFile:
    kind, compression = _format(name)
    try:
        digest = memo.get("sha256", path, hashing.file_digest)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return SourceFile(name, path, digest, kind, compression)


def _walk(
    folder: str, above: str = "", skipped: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """(name relative to the top with /, path) of all files below; links to directories are not
    followed, hidden names and Python's caches are left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f"cannot read {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name in skipped:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{above}{entry.name}/", skipped)
        elif entry.is_file():
            yield above + entry.name, entry.path
        elif not skipped:  # whoever named this directory wants all of it
            _refuse_dangling(entry.path)


def _matches(pattern: str) -> list[tuple[str, str]]:
    matches = set(glob.glob(pattern, recursive=True))
    for place in matches:
        _refuse_dangling(place)
    files = filter(os.path.isfile, matches)
    return sorted((Path(place).as_posix(), place) for place in files)


def _refuse_dangling(place: str) -> None:
    if os.path.islink(place) and not os.path.exists(place):
        raise ValueError(
            f"{place} is a link to {os.readlink(place)}, which is not there: bring it, or remove "
            "the link (in a container only what lies below DATA is there)"
        )


def _missing(spec: str, path: Path) -> str:
    from difflib import get_close_matches

    try:
        beside = os.listdir(path.parent)
    except OSError:
        beside = []
    near = get_close_matches(spec, DATASETS, n=1)
    near += [str(path.parent / name) for name in get_close_matches(path.name, beside, n=2)]
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    return (
        f"there is no data {spec!r}{hint} Give a data set ({', '.join(DATASETS)}), a file, a "
        "directory, a pattern in quotes such as 'texts/**/*.txt', or a URL; see --data"
    )


def _python_stdlib(memo: Memo) -> Source:
    """The interpreter's own Python sources, without what differs from one packaging to another.

    Left out are tests, installed packages and what is written when Python is built
    (``_sysconfigdata``, ``config-*``), so that two installations of one version agree where their
    distributors allow it. Files that are not UTF-8 are left out and counted.
    """
    import sysconfig

    root = sysconfig.get_path("stdlib")
    found = sorted(
        (name, place)
        for name, place in _walk(root, skipped=NOT_STDLIB)
        if name.endswith(".py") and not name.startswith(("_sysconfigdata", "config-"))
    )
    if not found:
        raise ValueError(
            f"this Python has no readable sources in {root}: choose other data, such as "
            "--data tinyshakespeare"
        )
    digests = {name: memo.get("python source", Path(place), _text_digest) for name, place in found}
    files = [
        SourceFile(name, Path(place), digests[name], "text", "")
        for name, place in found
        if digests[name]
    ]
    return _source("python-stdlib", files, left_out=len(found) - len(files))


def _text_digest(path: Path) -> str | None:
    """sha256 of a file that holds UTF-8 and no NUL byte; None for any other."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if b"\0" in data else hashing.digest(data)


# remote files


@dataclass(frozen=True)
class _Remote:
    url: str
    label: str | None  # None: the name at the end of the URL
    sha256: str | None  # None: unknown before the first download


def _downloaded(
    remote: _Remote, store_root: Path, memo: Memo, fetch: bool, progress: Progress | None
) -> Source:
    from pipeline.data import download

    listing = download.listing(remote.url, store_root, fetch=fetch)
    label = remote.label or download.name_of(remote.url)
    if listing is None:
        return _source(label, [])
    files = []
    for url, target in listing:
        name = download.name_of(url)
        kind, compression = _format(name)
        digest = remote.sha256 or download.recorded(target)
        present = digest is not None and target.is_file()
        if present and memo.get("sha256", target, hashing.file_digest) != digest:
            present = False  # damaged since, or another version's: it is fetched again
        if fetch and not present:
            digest, present = download.fetch(url, target, digest, progress), True
        files.append(SourceFile(name, target if present else None, digest, kind, compression))
    return _source(label, files)
