"""The memo: what a file gave is remembered until the file changes, and never trusted blindly."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import memo as memo_module
from pipeline.memo import Memo


def counting(memo: Memo, path: Path) -> tuple[int, int]:
    """(the answer, how often it had to be computed)."""
    calls = []

    def compute(file: Path) -> int:
        calls.append(file)
        return len(file.read_bytes())

    return memo.get("size", path, compute), len(calls)


@pytest.fixture
def old_file(tmp_path, monkeypatch):
    """A file that has not been touched for a while."""
    monkeypatch.setattr(memo_module, "time", SimpleNamespace(time_ns=lambda: 1 << 62))
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    return path


def test_what_a_file_gave_is_remembered_until_it_changes(old_file, tmp_path):
    memo = Memo(tmp_path / "memo.json")
    assert [counting(memo, old_file) for _ in range(2)] == [(4, 1), (4, 0)]
    memo.save()
    assert counting(Memo(memo.path), old_file) == (4, 0)
    old_file.write_bytes(b"12345")
    assert counting(Memo(memo.path), old_file) == (5, 1)


def test_a_file_that_was_just_written_is_not_trusted(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    memo = Memo(tmp_path / "memo.json")
    assert [counting(memo, tmp_path / "file") for _ in range(2)] == [(4, 1), (4, 1)]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"7", b"\xff"])
def test_a_damaged_memo_costs_time_and_nothing_else(old_file, tmp_path, damage):
    (tmp_path / "memo.json").write_bytes(damage)
    assert counting(Memo(tmp_path / "memo.json"), old_file) == (4, 1)


def test_a_memo_that_cannot_be_written_leaves_nothing_behind(old_file, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    memo = Memo(tmp_path / "cache" / "memo.json")
    counting(memo, old_file)
    monkeypatch.setattr(memo_module.os, "replace", full)
    memo.save()
    assert os.listdir(tmp_path / "cache") == []
