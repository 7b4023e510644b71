"""The same without a browser: Google's own program ``colab`` (google-colab-cli) rents, runs, ends.

    colab new -s NAME --gpu T4              a machine of this account
    colab upload -s NAME ...                the credentials for the store, as a file there
    colab exec -s NAME -f SCRIPT            the notebook's cells as one script
    colab stop -s NAME                      whatever has happened before

Colab's own secrets cannot be had without a browser, and ``--env NAME=VALUE`` would be seen in the
list of processes and kept in that program's history. So the credentials (those that a box gets: for
this store alone, and for a time) travel in a file that has no name here, which the script removes
there before it does anything else; the machine goes afterwards. That program's exit code does not
tell how a script ended, so the store is asked.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from launchers.colab.notebook import Told, sources
from launchers.credentials import box_secrets
from launchers.launches import Launch
from pipeline.cli.process import EXIT_INTERRUPTED, Asked
from pipeline.errors import StoreError

_DAY = 86_400.0  # seconds that a script may take, if there is no deadline; it is cut off after
_AGAIN = 5.0  # seconds between two wishes that the box stop
_TRIES, _PAUSE = 5, 3.0  # of giving the machine back


class Unattended:
    """One session of a launch through that program."""

    def __init__(self, told: Told, credentials: Path | None, mine: bool) -> None:
        self.told, self.name = told, told.order.name
        self._given = (credentials, mine)

    @property
    def _secret(self) -> str:
        """Where the credentials lie on the machine, for as long as it takes to start."""
        return f"content/{self.name}.json"

    def check(self) -> None:
        """Raises ValueError if that program is missing, or there are no credentials to give."""
        if shutil.which("colab") is None:
            raise ValueError(
                "--via colab-cli needs Google's program `colab`, which is not on the PATH: "
                "pip install google-colab-cli (Python 3.12 or later), and log in with `colab new`"
            )
        self.secrets()

    def secrets(self) -> Mapping[str, str]:
        credentials, mine = self._given
        return box_secrets(self.told.store, self.told.order.seconds, credentials, mine=mine).values

    def described(self) -> list[list[str]]:
        """Every call of that program, as words; nothing in them is a secret."""
        own = ["-s", self.name]
        seconds = self.told.order.seconds or _DAY
        return [
            ["colab", "new", *own, "--gpu", self.told.gpu],
            ["colab", "upload", *own, "CREDENTIALS", self._secret],
            ["colab", "exec", *own, "-f", "SCRIPT", "--timeout", f"{seconds:.0f}"],
            ["colab", "stop", *own],
        ]

    def run(self, launch: Launch) -> int:
        """Run it to its end; the exit code. The machine goes, however it ends."""
        new, upload, execute, _ = self.described()
        if self._listed():
            raise ValueError(
                f"there is a machine of {self.name} already, with which somebody may work: `launch "
                f"logs -f {self.name}` shows it. `colab stop -s {self.name}` gives it back"
            )
        before = len(launch.events())
        with Passing(launch) as asked:
            try:
                self._call(new, "rent a machine")
                if not asked.times:
                    self._upload(upload)
                    self._execute(execute, asked)
            finally:
                gone = self._stop()
        return self._ended(launch, before) if gone else 1

    def _call(self, words: list[str], what: str, **more: Any) -> None:
        """Raises ValueError if that program fails."""
        code = subprocess.run(words, start_new_session=True, **more).returncode
        if code:
            raise ValueError(f"`colab` could not {what}, see above: {' '.join(words[:2])} ({code})")

    def _upload(self, words: list[str]) -> None:
        """Send the credentials in a file without a name, which ends with this process."""
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(dict(self.secrets())).encode())
            file.seek(0)
            path = f"/dev/fd/{file.fileno()}"
            given = [path if word == "CREDENTIALS" else word for word in words]
            self._call(given, "send the credentials", pass_fds=(file.fileno(),))

    def _execute(self, words: list[str], asked: "Passing") -> None:
        """Run the script, and stay with it; what it prints is shown by that program."""
        with tempfile.TemporaryDirectory(prefix="ignite-") as folder:
            file = Path(folder, "train.py")
            file.write_text(script(self.told, f"/{self._secret}"), encoding="utf-8")
            given = [str(file) if word == "SCRIPT" else word for word in words]
            process = subprocess.Popen(given, start_new_session=True)
            while process.poll() is None and asked.times < 2:
                asked.pass_on()
                time.sleep(0.2)
            process.kill()
            process.wait()

    def _stop(self) -> bool:
        """Give the machine back, until that program does not list it any more."""
        for round_ in range(_TRIES):
            subprocess.run(["colab", "stop", "-s", self.name], start_new_session=True)
            if self._listed() is False:
                return True
            time.sleep(_PAUSE if round_ else 0.2)
        click.echo(
            f"error: the machine may still be yours, and use up your units: colab stop -s "
            f"{self.name}, or Runtime > Manage sessions at https://colab.research.google.com",
            err=True,
        )
        return False

    def _listed(self) -> bool | None:
        """Is there a machine of this launch? None if that program cannot tell."""
        listed = subprocess.run(
            ["colab", "sessions"], capture_output=True, text=True, start_new_session=True
        )
        return None if listed.returncode else self.name in listed.stdout

    def _ended(self, launch: Launch, before: int) -> int:
        """What the box has said in the store of how it ended."""
        begun = [each.attempt for each in launch.events()[before:] if each.kind == "created"]
        word = launch.box(begun[-1]) if begun else {}
        if word.get("state") == "ended":
            return int(word["code"])
        where = f"launch colab ... goes on; see `launch logs {self.name}`"
        click.echo(f"the session ended without a word: {where}", err=True)
        return EXIT_INTERRUPTED if begun else 1


class Passing(Asked):
    """The first signal is passed on through the store, a second one of any kind does not wait."""

    def __init__(self, launch: Launch) -> None:
        super().__init__(second=(signal.SIGINT, signal.SIGTERM))
        self.launch, self._next = launch, 0.0

    def pass_on(self) -> None:
        """Ask the box, and again every few seconds: one that begins takes back what was asked
        before."""
        if self.times and time.monotonic() > self._next:
            self._next = time.monotonic() + _AGAIN
            with contextlib.suppress(StoreError):
                self.launch.stop("Ctrl-C where it was started")


def script(told: Told, secret: str) -> str:
    """The notebook's cells as one script, which takes its credentials from a file. However it
    ends, it gives the machine back: whoever started it may be gone."""
    cells = sources(told)
    parts = [
        "import json, os",
        f"with open({secret!r}) as file:\n    found = json.load(file)",
        f"os.remove({secret!r})\nos.environ.update({dict(told.environment)!r} | found)\ndel found",
        *(cells[name] for name in ("settings", "program", "unpack")),
        "try:",
        *(textwrap.indent(cells[name], "    ") for name in ("train", "end")),
        "except RuntimeError:\n    cells.give_back()\n    raise",
    ]
    return "\n".join(parts) + "\n"
