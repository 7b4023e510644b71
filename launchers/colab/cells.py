"""What the cells of the notebook call: short, and of Python's own library alone.

This runs in the notebook's kernel, before anything is installed. The work is done by a process of
its own (session.py), so that the kernel stays free to show it and to be interrupted. Secrets go
from Colab's own store of secrets into this kernel's environment, which that process inherits, and
nowhere else.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOM = Path(__file__).resolve().parents[2]  # the unpacked bundle
INTERRUPTED, UNSAVED, UNHEALTHY = 75, 74, 69  # exit codes of a session; 74: see session.py
_KEY = "click the key on the left (Secrets)"
_WHY = {
    UNHEALTHY: "this machine will not do, see above. Without a GPU: Runtime > Change runtime type. "
    "Else Runtime > Disconnect and delete runtime, and then Run all, on another machine",
    UNSAVED: "not all that was made is on Drive, see above. It is on this machine, so keep that: "
    "make room on Drive, and Run all",
}


@dataclass(frozen=True)
class Ended:
    """How a session ended: its exit code, and whether somebody here pressed stop."""

    code: int
    pressed: bool


def secrets(ways: Iterable[Iterable[str]], others: Iterable[str]) -> None:
    """Take the store's credentials from this account's secrets into the environment.

    ``ways`` are sets of names of which one is needed; ``others`` are used if they are there. Raises
    ValueError that says how to add one.
    """
    ways = [list(names) for names in ways]
    for name in dict.fromkeys(name for names in ways for name in names):
        if value := _secret(name):
            os.environ[name] = value
    for name in others:
        try:
            value = _secret(name)
        except ValueError as error:
            print(f"going on without {name}: {error}")
            continue
        if value:
            os.environ[name] = value
    if not any(all(map(os.environ.get, names)) for names in ways):
        wanted = ", or ".join(" and ".join(names) for names in ways)
        raise ValueError(
            f"the store needs {wanted}, and there is no such secret. Do this once: {_KEY}, Add new "
            "secret, of exactly these names, and switch on Notebook access beside each; then "
            "Runtime > Run all. Give keys that open this one store and nothing else"
        )


def _secret(name: str) -> str | None:
    """The secret of that name; None if there is none."""
    from google.colab import userdata

    try:
        return userdata.get(name)
    except userdata.SecretNotFoundError:
        return None
    except userdata.NotebookAccessError:
        raise ValueError(
            f"there is a secret {name}, and this notebook may not read it: {_KEY}, switch on "
            f"Notebook access beside {name}, then Runtime > Run all"
        ) from None
    except getattr(userdata, "TimeoutException", TimeoutError):  # older ones wait for ever
        raise ValueError(
            f"Colab did not answer when asked for the secret {name}: it asks the browser, so keep "
            "this tab open, and Runtime > Run all"
        ) from None


def mount(root: str) -> None:
    """Mount Drive; nothing if it is mounted."""
    from google.colab import drive

    drive.mount(f"{root}/drive")


def train(told: Mapping[str, Any], root: str, minutes: float = 5.0) -> Ended:
    """Go on with the run until it ends, is interrupted, or fails, which raises RuntimeError.

    The stop button lets it save all first. ``minutes`` lie between two copies to Drive.
    """
    errand = _errand(told, root)
    words = ["train", str(errand)]
    if told["drive"]:
        words += [f"{root}/drive/MyDrive/{told['drive']}/{told['launch']}", str(60 * minutes)]
    ended = _streamed(_session(words))
    if ended.code not in (0, INTERRUPTED):
        why = _WHY.get(ended.code, "what went wrong is said above; mend it, and Run all goes on")
        raise RuntimeError(f"the run ended with exit code {ended.code}: {why}")
    return ended


def _errand(told: Mapping[str, Any], root: str) -> Path:
    """Write down what is to be done, as any box is told it."""
    folder = Path(root, told["launch"])
    folder.mkdir(parents=True, exist_ok=True)
    store = told["store"] or str(folder / "store")
    errand = {"name": told["launch"], "attempt": 0, "store": store, "bundle": told["bundle"]}
    (folder / "order.json").write_text(told["order"], encoding="utf-8")
    file = folder / "errand.json"
    file.write_text(json.dumps({**errand, "seconds": None}), encoding="utf-8")
    return file


def _session(words: list[str]) -> subprocess.Popen:
    """Start session.py in a session of its own: the stop button must not reach it by itself."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "launchers.colab.session", *words],
        cwd=ROOM,
        env={**os.environ, "PYTHONPATH": str(ROOM), "IGNITE_AGAIN": "Runtime > Run all"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _streamed(process: subprocess.Popen) -> Ended:
    """Show what it prints until it ends."""
    pressed = False
    assert process.stdout is not None
    while True:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
            return Ended(process.wait(), pressed)
        except KeyboardInterrupt:
            print("stopping as soon as all is saved", flush=True)
            process.send_signal(signal.SIGTERM)
            pressed = True


def finish(told: Mapping[str, Any], root: str, ended: Ended, free: bool) -> None:
    """Show how far it is and what it writes, flush Drive, and give the machine back.

    It is kept if somebody pressed stop: they are here, and may want to look around.
    """
    words = ["show", str(Path(root, told["launch"], "errand.json"))]
    _streamed(_session([*words, "samples"] if ended.code == 0 else words))
    if os.path.isdir(f"{root}/drive/MyDrive"):
        from google.colab import drive

        drive.flush_and_unmount()
    if ended.pressed or not free:
        print("this machine is still yours: Runtime > Disconnect and delete runtime gives it back")
        return
    print("giving this machine back: all is saved", flush=True)
    give_back()


def give_back() -> None:
    """Nothing on this machine is left after it, and it uses no more of anybody's units."""
    from google.colab import runtime

    runtime.unassign()
