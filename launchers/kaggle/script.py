"""Trains a language model here, with ignite-llm; `launch kaggle` has written this.

All of the program is in this file: its sources are the letters at the end, a .tar.gz as base64.
They are unpacked, held against their sha256, and run. What this session is to do is in ``told``,
above them. There is no secret in this file. If the run's store is elsewhere (a bucket), the
credentials for it are taken from this account's secrets (Add-ons > Secrets), which must be attached
to this notebook. Else all that is made here is left in the output, and the next session goes on
from there.
"""

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

INPUT, WORKING = "/kaggle/input", "/kaggle/working"
INTERRUPTED = 75  # all is saved, and the next session goes on
NOT_ALLOWED = 77  # a person must attach secrets first


class Failed(Exception):
    """Something that a person must mend or, with another ``code`` than 1, time."""

    def __init__(self, why: str, code: int = 1) -> None:
        super().__init__(why)
        self.code = code


def main(told: dict, archive: str) -> int:
    """Do the errand; the exit code of this session, which its last line explains."""
    why, left = "", False
    try:
        environment = {**os.environ, **told["environment"], **secrets(told["secrets"])}
        if told["errand"]["seconds"] is not None:
            environment["IGNITE_ENDS"] = str(time.time() + told["errand"]["seconds"])
        room = unpack(archive, told["errand"]["bundle"])
        environment["PYTHONPATH"] = room
        code, left = work(told, room, environment)
    except Failed as error:
        code, why = error.code, str(error)
        print(f"error: {why}", flush=True)
    print("ignite-llm ended: " + json.dumps({"code": code, "why": why}), flush=True)
    # what is left counts for more than how it ended: of a session that fails, Kaggle may keep none
    return 0 if left or code == INTERRUPTED else code


def secrets(wanted: dict[str, list[str]]) -> dict[str, str]:
    """The secrets of this account that the store needs, by name."""
    if not wanted["needed"] and not wanted["optional"]:
        return {}
    found = {}
    for name in (*wanted["needed"], *wanted["optional"]):
        value = secret(name)
        if value:
            found[name] = value
    missing = [name for name in wanted["needed"] if name not in found]
    if missing:
        raise Failed(
            f"the store needs {', '.join(missing)}, and no such secret is attached to this "
            "notebook. Open it in the editor, choose Add-ons > Secrets, add a secret of each of "
            "these names and tick it, then Save Version > Save & Run All: that goes on with this "
            "run. Give keys that can reach this one store and nothing else",
            NOT_ALLOWED,
        )
    return found


def secret(name: str) -> str | None:
    """A secret of that name; None if there is none, or it is not attached."""
    from kaggle_secrets import BackendError, CredentialError, UserSecretsClient

    try:
        return UserSecretsClient().get_secret(name)
    except (BackendError, CredentialError):
        return None
    except ConnectionError:
        raise Failed("Kaggle's secrets cannot be reached: is the internet on?") from None


def unpack(archive: str, digest: str) -> str:
    """Unpack the program beside the output, not into it; where it is now."""
    data = base64.b64decode(archive)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise Failed(f"the program in this file is damaged: {found[:12]}, and not {digest[:12]}")
    room = tempfile.mkdtemp(prefix="ignite-")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as sources:
        sources.extractall(room, filter="data")
    return room


def work(told: dict, room: str, environment: dict[str, str]) -> tuple[int, bool]:
    """Run the program: (its exit code, is what it made left in the output?)"""
    errand = os.path.join(room, "errand.json")
    with open(errand, "w", encoding="utf-8") as file:
        json.dump(told["errand"], file)
    train = ["launchers.bootstrap", errand]
    if told["order"] is None:  # the store is elsewhere
        return run(train, room, environment), False
    with open(os.path.join(room, "order.json"), "w", encoding="utf-8") as file:
        file.write(told["order"])
    store = told["errand"]["store"]
    code = run(["launchers.kaggle.native", "gather", INPUT, store, told["sent"]], room, environment)
    if code:
        raise Failed("what was sent for this session cannot be used: see above", code)
    code = run(train, room, environment)
    left = run(["launchers.kaggle.native", "leave", store], room, environment) == 0
    return code, left


def run(words: list[str], room: str, environment: dict[str, str]) -> int:
    """Run a module of the program; the exit code. If this session is told to end, so is that."""
    process = subprocess.Popen([sys.executable, "-u", "-m", *words], cwd=room, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    return process.wait()


# what follows was filled in by launchers/kaggle/kernel.py
