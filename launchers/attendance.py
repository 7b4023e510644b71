"""Stay with a launch until it is over: show what its boxes print, and pass on that it is to stop.

Nothing depends on this process. If it is killed, or its network goes, the box goes on and ends by
itself; what needs somebody here is only that a box which is lost is replaced. The first Ctrl-C asks
the box to save all and end, a second one leaves without waiting.
"""

import signal
import time

import click

from launchers.census import blamed, known
from launchers.history import FINISHED, STOPPED, history
from launchers.launches import Launch
from launchers.lifecycle import Keeper, Needed
from launchers.target import Target
from pipeline.cli.process import EXIT_INTERRUPTED, Asked
from pipeline.errors import StoreAway

EXIT = {FINISHED: 0, STOPPED: EXIT_INTERRUPTED}
_LEFT = 128 + signal.SIGINT


class Output:
    """What the boxes of a launch print, shown here line by line, each byte once."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.attempt, self.piece, self.shown = 0, 0, 0

    def show(self, attempt: int) -> None:
        """Show what is new of an attempt; of an earlier one nothing more."""
        if attempt != self.attempt:
            self.attempt, self.piece, self.shown = attempt, 0, 0
        while (data := self.launch.printed(attempt, self.piece)) is not None:
            click.echo(data[self.shown :].decode("utf-8", "replace"), nl=False)
            self.shown = len(data)
            if self.launch.printed(attempt, self.piece + 1) is None:
                return
            self.piece, self.shown = self.piece + 1, 0


class Leave(BaseException):
    """The person here does not want to wait. No library is to take that for an error."""


class There(Exception):
    """A box is there, and that is all that was to be waited for."""


class Attendance:
    """One keeper in the foreground; a context manager that takes Ctrl-C and SIGTERM.

    With ``detach`` it stays until a box is there, unless it is asked to stop before.
    """

    def __init__(self, launch: Launch, target: Target, detach: bool = False) -> None:
        self.launch, self.keeper, self.detach = launch, keeper(launch, target), detach
        self.output = Output(launch)
        self.keeper.pass_on = self._pass_on
        self.asked, self._passed_on = Asked("leave it alone", self._leave), False

    def __enter__(self) -> "Attendance":
        self.asked.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.__exit__()

    def _leave(self) -> None:
        raise Leave  # wherever it is: a keeper may be killed between any two requests

    def run(self) -> int | None:
        """Until it is over and nothing bills; the exit code, None if it has only begun."""
        try:
            return EXIT.get(self.keeper.run(self._pause), 1)
        except There:
            return None
        except Needed as error:
            click.echo(f"launch: {self.launch.name} waits for you: {error}", err=True)
            return EXIT_INTERRUPTED
        except Leave:
            name = self.launch.name
            click.echo(
                f"{name} goes on without being watched, within its limits.\n"
                f"  see to it again: launch watch {name}\n  end it: launch stop {name}",
                err=True,
            )
            return _LEFT

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                self._look()
            except StoreAway as error:
                self.keeper.once(f"the store cannot be asked, trying again: {error}")
            if (left := until - time.monotonic()) <= 0:
                return
            asked = self.asked.times
            while self.asked.times == asked and (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))

    def _pass_on(self) -> None:
        if self.asked.times and not self._passed_on:
            self.launch.stop("Ctrl-C where it is watched")
            self._passed_on = True

    def _look(self) -> None:
        self._pass_on()
        told = history(self.launch.events())
        if self.detach and not self.asked.times and told.current is not None and told.current.id:
            raise There
        if told.attempts and told.attempts[-1].id:
            self.output.show(told.attempts[-1].number)


def _say(line: str) -> None:
    click.echo(f"launch: {line}", err=True)


def keeper(launch: Launch, target: Target) -> Keeper:
    """Who sees to a launch here, and avoids machines that have failed others of this store."""
    avoid = blamed(known(launch.store), launch.order().target, time.time())
    return Keeper(launch, target, _say, avoid=avoid)


def attended(launch: Launch, target: Target, detach: bool = False) -> int | None:
    """See to it in the foreground; the exit code, None if it goes on without anybody."""
    with Attendance(launch, target, detach) as attendance:
        return attendance.run()
