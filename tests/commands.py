"""Running the command lines as a user would: in this process where that is the same, else not."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pipelines import SETTINGS

from launchers import cli as launch_cli
from pipeline.cli import main as pipeline_cli
from pipeline.cli.process import signals

ROOT = Path(__file__).parents[1]
# the toy pipeline and machine of pipelines.py on the command line
TOY_RECIPE = [word for setting in SETTINGS for word in ("--set", setting)]
TOY = [*TOY_RECIPE, "--device", "cpu", "--precision", "fp32", "--threads", "1"]
TOY += ["--micro-batch", "2", "--checkpoint-steps", "2"]


@dataclass(frozen=True)
class Told:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def pipeline(*words: object) -> Told:
    """``pipeline ...`` in this process: saves importing torch again."""
    return _called(pipeline_cli.main, "pipeline", words)


def launch(*words: object) -> Told:
    """``launch ...`` in this process."""
    return _called(launch_cli.main, "launch", words)


def _called(main: Callable[[], None], name: str, words: tuple[object, ...]) -> Told:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    code = 0
    with (
        mock.patch.object(sys, "argv", [name, *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        signals(),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Told(code, *(_text(stream) for stream in (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def start(*words: object, program: str = "pipeline.cli.main", **options) -> subprocess.Popen:
    """``pipeline ...`` as a process of its own, its output in text pipes."""
    name = {"pipeline.cli.main": "pipeline", "launchers.cli": "launch"}[program]
    source = f"import sys; sys.argv[0] = {name!r}; from {program} import main; main()"
    command = [sys.executable, "-c", source, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **{**pipes, **options})
