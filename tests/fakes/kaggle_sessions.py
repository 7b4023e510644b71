"""The sessions of FakeKaggle: each is a process that has what a session has, and nothing more."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MARK = "FAKE_KAGGLE_SESSION"
STUB = """
class CredentialError(Exception):
    pass


class BackendError(Exception):
    pass


class UserSecretsClient:
    def get_secret(self, label):
        import json, pathlib

        known = json.loads(pathlib.Path(__file__).with_name("secrets.json").read_text())
        if label not in known:
            raise BackendError("Unexpected response from the service.")
        return known[label]
"""


@dataclass
class Session:
    """A version of a kernel and the session that it runs in."""

    slug: str
    number: int
    request: dict[str, Any]
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "QUEUED"
    why: str = ""
    begun: float = field(default_factory=time.time)
    killed: str = ""  # why it is to be killed, or was
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def working(self) -> Path:
        return self.folder / "kaggle" / "working"

    @property
    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def run(session: Session, fake: Any) -> None:
    """Queue, run and end it as ``fake`` says."""
    time.sleep(fake.queue)
    process, start = _start(session, fake), time.monotonic()
    session.state = "RUNNING"
    most = min(fake.limit, session.request.get("sessionTimeoutSeconds") or fake.limit)
    while process.poll() is None:
        time.sleep(0.02)
        if (time.monotonic() - start) * fake.speed > most and not session.killed:
            session.killed = "Your notebook was stopped: it exceeded the time limit"
        if session.killed:
            kill(session.mark)
            process.wait()
    kill(session.mark)
    with fake.lock:
        fake.used += (time.monotonic() - start) * fake.speed
    if session.killed and not fake.keeps_output:
        shutil.rmtree(session.working)
    failed = session.killed or process.returncode
    if failed:
        session.why = session.killed or f"Your notebook failed ({process.returncode})"
    session.state = "ERROR" if failed else "COMPLETE"
    session.ended.set()


def _start(session: Session, fake: Any) -> subprocess.Popen:
    session.working.mkdir(parents=True)
    inputs = session.folder / "kaggle" / "input"
    inputs.mkdir()
    for ref in session.request.get("datasetDataSources", []):
        owner, slug = ref.split("/")
        where = inputs / slug if fake.layout == "old" else inputs / "datasets" / owner / slug
        where.mkdir(parents=True)
        versions = fake.datasets[slug].versions
        for name, data in versions[-2 if fake.stale_mounts and len(versions) > 1 else -1]:
            (where / name).write_bytes(data)
    text = session.request["text"]
    for each in ("/kaggle/working", "/kaggle/input"):
        text = text.replace(each, str(session.folder) + each)
    code = session.folder / "script.py"
    code.write_text(text, encoding="utf-8")
    home = session.folder / "home"
    home.mkdir()
    (fake.folder / "stub" / "secrets.json").write_text(json.dumps(fake.secrets))
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment |= {"HOME": str(home), "PYTHONPATH": str(fake.folder / "stub")}
    environment |= fake.env
    environment |= {_MARK: session.mark, "OMP_NUM_THREADS": "1", "IGNITE_TELL_EVERY": "0.5"}
    with (session.folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-u", str(code)],
            cwd=session.working,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(mark: str) -> None:
    """Kill every process that a session has started, also those that have left its group."""
    wanted = f"{_MARK}={mark}".encode()
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (each / "environ").read_bytes().split(b"\0"):
                os.kill(int(each.name), signal.SIGKILL)
