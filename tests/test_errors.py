"""What people read: no secrets, and the fix."""

from pathlib import Path

import click
import pytest
import torch

from model.shortage import short_of_memory
from pipeline.cli.duration import duration, spelled
from pipeline.cli.process import run_command
from pipeline.machine import Machine, resolve_device
from pipeline.redact import redacted
from pipeline.ui import human_bytes, human_seconds
from pipeline.workers import how_it_ended

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a.txt", "https://host/a.txt"),
        ("https://me:word@host/a.txt", "https://host/a.txt"),
        ("https://me:w@rd@host/a.txt", "https://host/a.txt"),
        ("https://token@host/a.txt", "https://host/a.txt"),
        ("https://host/a.txt?sig=word&x=1", "https://host/a.txt?..."),
        ("https://host?email=a@b", "https://host?..."),
        ("https://host/@me/a.txt", "https://host/@me/a.txt"),
        ("zip://*.txt::https://me:word@host/a?sig=word", "zip://*.txt::https://host/a?..."),
        ("run --data 'https://host/a?sig=word' -n", "run --data 'https://host/a?...' -n"),
        ("no url, a@b, what?", "no url, a@b, what?"),
        ("/a//b@c?d", "/a//b@c?d"),
    ],
)
def test_secrets_are_taken_out_of_urls(text, shown):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5s", 1.5), ("5m", 300), ("1h30m", 5400), ("0", 0), ("2h", 7200)],
)
def test_durations(text, seconds):
    assert duration(text) == duration(spelled(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (60, "1m"), (5400, "1h30m"), (90.5, "1m30.5s"), (1.1 * 3600, "1h6m")],
)
def test_durations_are_spelled_as_they_are_read(seconds, text):
    assert spelled(seconds) == text


@pytest.mark.parametrize("text", ["", "soon", "-5", "5d", "m", "1m1h", "1e3", "5 m"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration: write it as 90s, 5m or 1h30m"):
        duration(text)


@pytest.mark.parametrize("name", ["", "tpu", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"])
def test_what_is_no_device(name):
    with pytest.raises(ValueError, match="it must be auto, cpu, cuda, cuda:N or mps"):
        Machine(device=name)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=r"sees no such device here. Use --device cpu"):
            resolve_device(name)


def test_a_device_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="--device cuda:2: here they end at cuda:1"):
        resolve_device("cuda:2")


def test_numbers_as_people_read_them():
    assert [human_bytes(n) for n in (0, 1023, 1024, 1536, 5 << 30, 7 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 GiB",
        "7168.0 TiB",
    ]
    assert [human_seconds(s) for s in (0, 59.9, 61, 3600)] == ["0.0 s", "59.9 s", "1:01", "1:00:00"]


KILLED = how_it_ended(-9, Path("nothing"))


def test_a_killed_process_is_told_of_without_what_torch_says_of_memory():
    assert KILLED == "was killed by signal 9, as systems do that have no memory left"
    assert not short_of_memory(RuntimeError(KILLED))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 B"), True),
        (MemoryError(), True),
        (ValueError("process 2 of 2 has ended: OutOfMemoryError: CUDA out of memory"), True),
        # smaller steps are no help there
        (ValueError(f"worker 1 of 2 {KILLED}"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_who_is_told_to_train_in_smaller_steps(capsys, monkeypatch, error, hint):
    @click.command()
    def fail():
        raise error

    monkeypatch.setattr("sys.argv", ["fail"])
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.reconfigure", lambda **_: None, raising=False)
    with pytest.raises(SystemExit) as ended:
        run_command(fail, "fail")
    said = capsys.readouterr().err
    assert ended.value.code == 1 and ("take a smaller --micro-batch" in said) == hint
    assert str(error) in said
