"""An instance of the stand-in for Vast.ai that is a real container, of the image asked for.

It shares this machine's network, so that services of the tests are where they are for all others,
and runs as root, as it does at Vast.ai.
"""

import secrets
import subprocess
import time
from collections.abc import Mapping

from fakes.vast_box import Box


class ContainerBox(Box):
    """See vast_box.Box; the engine keeps the processes, and the image decides on Python."""

    name: str | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        self.kill()
        self.name = f"fake-vast-{self.id}-{secrets.token_hex(3)}"
        variables = {
            "CONTAINER_ID": str(self.id),
            "CONTAINER_API_KEY": self.key,
            "GPU_COUNT": str(self.offer["num_gpus"]),
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **environment,
            **{name: str(value) for name, value in self.body["env"].items()},
        }
        told = [f"--env={name}={value}" for name, value in variables.items() if value]
        options = ["--detach", "--network=host", "--user=0:0", f"--name={self.name}", *told]
        _docker("run", *options, self.body["image"], *self.body["args"])
        self.status, self.message, self.lives = "running", "success, running", self.lives + 1
        self.began, self.started = time.monotonic(), time.time()

    def ended(self) -> int | None:
        if self.name is None:
            return None
        told = _docker("inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", self.name)
        runs, code = told.split()
        return None if runs == "true" else int(code)

    def kill(self) -> None:
        if self.name is not None:
            self.text = self.printed()
            _docker("rm", "--force", "--volumes", self.name)
            self.name = None

    text = ""  # what its containers before this one printed

    def printed(self) -> str:
        if self.name is None:
            return self.text
        return self.text + _docker("logs", self.name, error=subprocess.STDOUT)


def _docker(*words: str, error: int = subprocess.DEVNULL) -> str:
    done = subprocess.run(
        ["docker", *words], stdout=subprocess.PIPE, stderr=error, text=True, check=True, timeout=120
    )
    return done.stdout
