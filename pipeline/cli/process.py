"""How a command line behaves as a process: signals, exit codes, and errors as one message."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from pipeline.redact import redacted

EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: the same command goes on
TWICE = 0.5  # seconds within which two signals are one: timeout(1) and others send each twice
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")  # as torch says it


def stop_on_signals() -> Callable[[], bool]:
    """Ctrl-C and SIGTERM set a flag that the work looks at; a second Ctrl-C ends it at once."""
    asked, first = threading.Event(), 0.0

    def handle(number: int, _: Any) -> None:
        nonlocal first
        if not asked.is_set():
            first = time.monotonic()
            asked.set()
            os.write(2, b"\nstopping as soon as all is saved (Ctrl-C again: at once)\n")
        elif number == signal.SIGINT and time.monotonic() - first > TWICE:
            end_at_once()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return asked.is_set


def end_at_once() -> None:
    """End like a killed process: nothing is waited for, and others see at once that we are gone."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a live line hides the cursor
    os._exit(128 + signal.SIGINT)


def program() -> str:
    """How this program can be called again: by its name, if that finds it, else by its path."""
    called = Path(sys.argv[0])
    found = shutil.which(called.name)
    return called.name if not called.exists() or (found and called.samefile(found)) else str(called)


def again() -> str:
    """The command that goes on with this one; a container is told what it is called outside."""
    return redacted(os.environ.get("IGNITE_AGAIN") or shlex.join([program(), *sys.argv[1:]]))


def run_command(command: click.Group, name: str) -> None:
    """Run a command line; what its user can mend becomes one message and exit code 1."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # a terminal may not know what a model writes
    try:
        code = command(prog_name=name, standalone_mode=False)
        raise SystemExit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.message = redacted(error.message)  # it may repeat what was typed
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        click.echo("Aborted!", err=True)
        raise SystemExit(1) from None
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = str(error)
        if os.environ.get("IGNITE_DEBUG"):
            _crash()
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(message):
            message = (
                "not enough memory: take a smaller --micro-batch, --size or model.context "
                f"({message.splitlines()[0] if message else 'MemoryError'})"
            )
        elif isinstance(error, RuntimeError):
            _crash()
        click.echo(f"error: {redacted(message)}", err=True)
        _give_up_on(sys.stdout)
        raise SystemExit(1) from None
    except Exception:
        _crash()


def _crash() -> NoReturn:
    """End with the whole story, for whoever mends it; what it was about may be a secret."""
    click.echo(redacted(traceback.format_exc()), err=True, nl=False)
    _give_up_on(sys.stdout)
    raise SystemExit(1) from None


def _give_up_on(stream: TextIO | None) -> None:
    """Close an output that takes nothing more, so that Python does not complain of it at exit."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            stream.close()
