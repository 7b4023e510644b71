"""What ``--data`` names: which files, in which order, with which digest."""

import sys
from pathlib import Path

import pytest

from pipeline.data import sources
from pipeline.data.sources import Source, resolve
from pipeline.memo import Memo


@pytest.fixture
def texts(tmp_path) -> Path:
    """A directory of texts with what should be passed over."""
    root = tmp_path / "texts"
    for name in ("b.txt", "a.md", "sub/c.jsonl", "sub/deep/d.txt.GZ", "sub.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in (".hidden", ".git/config", "__pycache__/a.pyc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def found(spec: object, tmp_path: Path) -> Source:
    return resolve(str(spec), tmp_path / "store", Memo(tmp_path / "memo"), fetch=False)


def names(source: Source) -> list[str]:
    return [file.name for file in source.files]


def test_a_file(texts, tmp_path):
    source = found(texts / "b.txt", tmp_path)
    assert (source.label, source.single, names(source)) == ("b.txt", True, ["b.txt"])


def test_a_directory_is_read_whole_in_order_but_for_what_is_hidden(texts, tmp_path):
    source = found(texts, tmp_path)
    assert names(source) == ["a.md", "b.txt", "sub.txt", "sub/c.jsonl", "sub/deep/d.txt.GZ"]
    assert source.label == "texts" and not source.single


def test_a_directory_with_one_text_is_one_text(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    assert found(tmp_path / "texts", tmp_path).single


def test_patterns(texts, tmp_path):
    assert len(found(texts / "*.txt", tmp_path).files) == 2
    assert len(found(texts / "**" / "*.txt", tmp_path).files) == 2
    assert len(found(texts / "*", tmp_path).files) == 3


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("a")
    assert names(found(tmp_path / "a[1].txt", tmp_path)) == ["a[1].txt"]


def test_a_file_url_is_read_in_place(texts, tmp_path):
    source = found(f"file://{texts}/b.txt", tmp_path)
    assert source.files[0].path == texts / "b.txt"


def test_a_name_relative_to_home(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(texts))
    assert found("~/b.txt", tmp_path).files[0].path == texts / "b.txt"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ("text", "")),
        ("a", ("text", "")),
        ("a.json", ("text", "")),
        ("a.txt.gz", ("text", "gz")),
        ("a.jsonl", ("jsonl", "")),
        ("a.v1.NDJSON.zst", ("jsonl", "zst")),
        ("a.parquet", ("parquet", "")),
        ("a.gz", ("text", "gz")),
    ],
)
def test_formats_by_name(name, expected):
    assert sources._format(name) == expected


def test_parquet_within_gz_is_refused(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.parquet\.gz.*decompress"):
        found(tmp_path / "a.parquet.gz", tmp_path)


# the digest


def test_the_digest_is_of_bytes_and_not_of_places(texts, tmp_path):
    moved = tmp_path / "moved"
    texts_digest = found(texts, tmp_path).digest
    texts.rename(moved)
    assert found(moved, tmp_path).digest == texts_digest


def test_the_digest_knows_formats_and_order(tmp_path):
    for name in ("a.txt", "a.jsonl", "two/1", "two/2", "owt/1", "owt/2"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x" if name in ("two/1", "owt/2") else "y")
    digests = {found(tmp_path / name, tmp_path).digest for name in ("a.txt", "a.jsonl")}
    digests |= {found(tmp_path / name, tmp_path).digest for name in ("two", "owt")}
    assert len(digests) == 4


def test_the_digest_follows_an_edit(texts, tmp_path):
    before = found(texts, tmp_path).digest
    (texts / "b.txt").write_text("edited")
    assert found(texts, tmp_path).digest != before


def test_digests_are_remembered(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.memo._RACY_NS", -1)
    memo = Memo(tmp_path / "memo")
    before = resolve(str(texts), tmp_path, memo, fetch=False)
    monkeypatch.setattr("pipeline.hashing.file_digest", None)
    assert resolve(str(texts), tmp_path, memo, fetch=False) == before


# mistakes


def test_a_misspelt_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"did you mean tinyshakespeare\?.*python-stdlib"):
        found("tinyshakespear", tmp_path)


def test_a_misspelt_file(texts, tmp_path):
    with pytest.raises(ValueError, match=r"did you mean .*texts/sub\.txt"):
        found(texts / "sup.txt", tmp_path)


def test_a_name_like_nothing_that_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"no data 'x/y/z'\. Give a data set"):
        found("x/y/z", tmp_path)


def test_no_name(tmp_path):
    with pytest.raises(ValueError, match="no data ''"):
        found("", tmp_path)


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no file in"):
        found(tmp_path / "empty", tmp_path)
    with pytest.raises(ValueError, match="no file matches the pattern"):
        found(tmp_path / "*.nothing", tmp_path)


def test_neither_file_nor_directory(tmp_path):
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        found("/dev/null", tmp_path)


# the interpreter's own sources


@pytest.fixture
def stdlib(tmp_path, monkeypatch) -> Path:
    """A small standard library as the interpreter would have it."""
    root = tmp_path / "lib"
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(root))
    for name in (
        "os.py",
        "json/__init__.py",
        "idlelib/help.py",
        "idlelib/idle_test/test_help.py",
        "site-packages/numpy.py",
        "dist-packages/apt.py",
        "test/test_os.py",
        "lib2to3/tests/test_x.py",
        "_sysconfigdata__linux.py",
        "config-3.11/python-config.py",
        "LICENSE.txt",
        "__pycache__/os.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_python_stdlib_is_what_every_packaging_of_python_has(stdlib, tmp_path):
    source = found("python-stdlib", tmp_path)
    assert names(source) == ["idlelib/help.py", "json/__init__.py", "os.py"]
    assert source.label == "python-stdlib" and not source.single


def test_python_stdlib_leaves_out_what_is_not_utf8(stdlib, tmp_path):
    (stdlib / "latin.py").write_bytes(b"# \xe9")
    (stdlib / "binary.py").write_bytes(b"# \0")
    source = found("python-stdlib", tmp_path)
    assert len(source.files) == 3 and source.left_out == 2


def test_an_interpreter_without_sources(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "lib"))
    with pytest.raises(ValueError, match="no readable sources"):
        found("python-stdlib", tmp_path)


def test_this_interpreter_has_sources_enough_to_train_on(tmp_path):
    source = found("python-stdlib", tmp_path)
    assert sum(file.path.stat().st_size for file in source.files) > 5_000_000
    assert {"argparse.py", "json/decoder.py"} <= set(names(source))


def test_naming_local_data_imports_nothing_large():
    import subprocess

    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.memo import Memo; from pipeline.data.sources import resolve\n"
        "resolve('python-stdlib', Path('nowhere'), Memo(Path('nowhere')), fetch=False)\n"
        "print([m for m in ('fsspec', 'numpy', 'pyarrow', 'torch') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*.txt"])
def test_a_link_that_leads_nowhere_is_not_left_out_in_silence(tmp_path, pattern):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("one")
    (folder / "two.txt").symlink_to(tmp_path / "two.txt")
    with pytest.raises(ValueError, match=r"two\.txt is a link to .*two\.txt, which is not there"):
        sources.resolve(f"{folder}{pattern}", tmp_path, Memo(tmp_path / "memo"), fetch=False)
    (tmp_path / "two.txt").write_text("two")
    found = sources.resolve(f"{folder}{pattern}", tmp_path, Memo(tmp_path / "memo"), fetch=False)
    assert len(found.files) == 2
