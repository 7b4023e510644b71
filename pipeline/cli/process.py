"""How a command line behaves as a process: signals, exit codes, and errors as one message."""

import contextlib
import os
import shlex
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from model.shortage import short_of_memory
from pipeline.redact import redacted

EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: the same command goes on
TWICE = 0.5  # seconds within which two signals are one: timeout(1) and others send each twice
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HANGUP = getattr(signal, "SIGHUP", None)  # the terminal is gone; Windows has none


@contextlib.contextmanager
def signals(handle: Callable[[int, Any], None] | None = None) -> Iterator[None]:
    """Let ``handle`` have Ctrl-C and SIGTERM inside the block; whoever had them before has them
    again behind it, also if the block itself gives them to somebody."""
    kept = _SIGNALS if _HANGUP is None else (*_SIGNALS, _HANGUP)
    before = {number: signal.getsignal(number) for number in kept}
    try:
        for number in _SIGNALS if handle is not None else ():
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Asked:
    """How often somebody asked to stop: 0, 1, or 2 for at once. A context manager.

    ``again`` tells what a second Ctrl-C does, ``twice`` does it, and may raise; ``second`` are the
    signals that count as one.
    """

    def __init__(
        self,
        again: str = "at once",
        twice: Callable[[], None] = lambda: None,
        second: tuple[int, ...] = (signal.SIGINT,),
    ) -> None:
        self.again, self.twice, self.second = again, twice, second
        self.times, self._first = 0, 0.0

    def __enter__(self) -> "Asked":
        self._signals = signals(self.handle)
        self._signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__(None, None, None)

    def handle(self, number: int, _: Any) -> None:
        """Count a signal."""
        if not self.times:
            self.times, self._first = 1, time.monotonic()
            words = f"\nstopping as soon as all is saved (Ctrl-C again: {self.again})\n"
            with contextlib.suppress(OSError):  # nobody may hear it any more
                os.write(2, words.encode())
        elif number in self.second and time.monotonic() - self._first > TWICE:
            self.times = 2
            self.twice()


def stop_on_signals() -> Callable[[], bool]:
    """Ctrl-C, SIGTERM and a terminal that goes away set a flag that the work looks at; a second
    Ctrl-C ends it at once. Under nohup, which ignores that the terminal goes, it is ignored."""
    asked = Asked(twice=end_at_once)
    for number in _SIGNALS:
        signal.signal(number, asked.handle)
    if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
        signal.signal(_HANGUP, lambda *told: (_say_nothing_more(), asked.handle(*told)))
    return lambda: asked.times > 0


def _say_nothing_more() -> None:
    """But to files. The terminal is gone, and what we are piped to goes with it: each word would be
    an error, and end us before all is saved."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.fstat(number).st_mode):
                os.dup2(nowhere, number)


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
        if short_of_memory(error) or "OutOfMemoryError: " in message:  # another process's
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
