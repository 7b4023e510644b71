"""An instance of the stand-in for Vast.ai: a process of this machine, and what it costs.

    null -> created -> loading -> running -> exited      destroyed, from anywhere
                                          -> stopped, offline

Its disk bills from the first moment until it is destroyed, its GPU while it is running or exited.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_GPU_BILLS = ("running", "exited")
_WAITS = (None, "created", "loading")
_MARK = "FAKE_VAST_BOX"  # in the environment of all that a box runs


class Box:
    """One instance. The stand-in's lock is held in all calls."""

    def __init__(
        self, id: int, offer: Mapping[str, Any], body: Mapping[str, Any], folder: Path
    ) -> None:
        self.id, self.offer, self.body, self.folder = id, offer, body, folder
        self.key = f"box-key-{secrets.token_hex(8)}"  # CONTAINER_API_KEY
        self.status: str | None = None  # as actual_status has it; "destroyed" is ours alone
        self.halted = False  # outbid, or told to stop
        self.message: str | None = None
        self.began = time.monotonic()  # real seconds: of the boot, then of the run
        self.started: float | None = None  # seconds since 1970
        self.spent, self._billed_to = 0.0, 0.0
        self.returns: float | None = None  # when it is back after having been destroyed
        self.disk = 0  # a new one after it was destroyed
        self.lives = 0  # how often its container was started
        self._mark = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None

    # money

    @property
    def disk_hour(self) -> float:
        return float(self.offer["storage_cost"]) * float(self.body["disk"]) / 720

    @property
    def gpu_hour(self) -> float:
        return float(self.body.get("price") or self.offer["dph_base"])

    @property
    def per_hour(self) -> float:
        """Dollars that it costs now."""
        if self.status == "destroyed":
            return 0.0
        return self.disk_hour + (self.gpu_hour if self.status in _GPU_BILLS else 0.0)

    def bill(self, now: float) -> None:
        """Charge until ``now``, in virtual seconds; to be called before each change."""
        self.spent += max(0.0, now - self._billed_to) / 3600 * self.per_hour
        self._billed_to = now

    def open_account(self, now: float) -> None:
        self._billed_to = now

    # its container

    def start(self, environment: Mapping[str, str]) -> None:
        """Run what the request said, as a container of an image without an entrypoint would."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"disk-{self.disk}"  # stays as it is when it is paused
        temporary.mkdir(exist_ok=True)
        variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "IGNITE_LOOK": "0",  # nobody reads the log of one that failed
            "CONTAINER_ID": str(self.id),
            "CONTAINER_API_KEY": self.key,
            "VAST_CONTAINERLABEL": f"C.{self.id}",
            "GPU_COUNT": str(self.offer["num_gpus"]),
            **environment,
            **{name: str(value) for name, value in self.body["env"].items()},
            _MARK: self._mark,
        }
        with open(self.folder / "output.txt", "ab") as output:
            self._process = subprocess.Popen(
                self.body["args"],
                cwd=self.folder,
                env={name: value for name, value in variables.items() if value},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.status, self.message, self.lives = "running", "success, running", self.lives + 1
        self.began, self.started = time.monotonic(), time.time()

    def ended(self) -> int | None:
        """The exit code of its first process, after which a container ends."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """What becomes of a container's processes when the container goes: none is left."""
        if self._process is not None:
            self._process.kill()
        while living := [*_marked(self._mark)]:
            for each in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            time.sleep(0.01)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def printed(self) -> str:
        try:
            return (self.folder / "output.txt").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def processes(self) -> list[int]:
        """All that it runs now, for tests that kill one of them."""
        return [*_marked(self._mark)]

    @property
    def boots(self) -> bool:
        return not self.halted and self.status in _WAITS

    # as the service lists it

    def row(self) -> dict[str, Any]:
        stopped, fresh = self.halted, self.status in _WAITS
        state = "stopped" if stopped else "running"
        offer, names = self.offer, ("machine_id", "host_id", "gpu_name", "num_gpus", "geolocation")
        return {
            "id": self.id,
            "label": self.body.get("label"),
            "actual_status": self.status,
            "cur_state": state,
            "next_state": state,
            "intended_status": state,
            "status_msg": self.message,
            "image_uuid": self.body["image"],
            "image_runtype": self.body.get("runtype"),
            "image_args": self.body.get("args"),
            "extra_env": None if fresh else [[*pair] for pair in self.body["env"].items()],
            "start_date": self.started,
            "uptime_mins": None,
            "is_bid": "price" in self.body,
            "disk_space": self.body["disk"],
            "storage_cost": offer["storage_cost"],
            "storage_total_cost": self.disk_hour,
            "dph_base": self.gpu_hour,
            "dph_total": self.gpu_hour + self.disk_hour,
            "reliability2": offer["reliability"],
            **{name: offer[name] for name in names},
        }


def _marked(mark: str) -> Iterator[int]:
    """The processes with that mark, but for those that are dead and not yet fetched."""
    wanted = f"{_MARK}={mark}".encode()
    for each in os.listdir("/proc"):
        if each.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"):
                    yield int(each)
