"""Colab as far as a notebook sees it, and Google's program ``colab`` as far as a launcher does.

A *machine* is a folder that stands for /content. The package google.colab of the kernel (under
colab_stub/) reads from ``COLAB_FAKE``, a folder, what secrets the account has, and writes there
what it was asked. Drive is a folder that outlives machines.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

STUB = Path(__file__).parent / "colab_stub"
_PROGRAM = Path(__file__).parent / "colab_program.py"


class Taken(Exception):
    """The machine is gone."""


class Colab:
    """An account: secrets, a Drive, and one machine at a time."""

    def __init__(self, folder: Path, patch) -> None:
        self.folder, self.root = folder, folder / "content"
        for each in ("account", "drive/MyDrive", "content"):
            (folder / each).mkdir(parents=True)
        self.account = folder / "account"
        patch.setenv("COLAB_FAKE", str(self.account))
        patch.setenv("PYTHONPATH", str(STUB))
        patch.setenv("IGNITE_TELL_EVERY", "0.2")
        patch.setenv("IGNITE_CACHE", str(self.root / "cache"))

    @property
    def drive(self) -> Path:
        """My Drive, whether it is mounted or not."""
        return self.folder / "drive" / "MyDrive"

    def allow(self, **secrets: str | None) -> None:
        """Let the account have secrets; None is one that no notebook may read."""
        (self.account / "secrets.json").write_text(json.dumps(secrets))

    def asked(self) -> list[str]:
        """What google.colab was asked, in order."""
        file = self.account / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def open(self, notebook: str, **settings: object) -> NotebookClient:
        """A notebook as it is uploaded, with settings changed by hand."""
        node = nbformat.reads(notebook.replace("/content", str(self.root)), as_version=4)
        (cell,) = (cell for cell in node.cells if cell.id == "settings")
        for name, value in settings.items():
            cell.source += f"\n{name} = {value!r}"
        return NotebookClient(node, timeout=120, kernel_name="python3")

    def environment(self) -> dict[str, str]:
        """Of the machine: it has none of the credentials that the test itself may have."""
        secret = ("KEY", "KEY_ID", "SECRET", "TOKEN")
        return {k: v for k, v in os.environ.items() if not k.endswith(secret)}

    def run_all(self, notebook: str, **settings: object) -> str:
        """Run all cells; what they printed. Raises CellExecutionError."""
        client = self.open(notebook, **settings)
        client.execute(env=self.environment())
        return printed(client)

    def run_until(
        self, notebook: str, reached, number=signal.SIGKILL, only_the_kernel=False, **settings
    ) -> str:
        """Run all cells until something is so. Then the machine is taken away, as Colab does it,
        every process of it in one instant; or only the kernel gets a signal. What was printed.
        Raises Taken if the kernel is gone then."""
        client = self.open(notebook, **settings)
        ended = threading.Event()

        def strike() -> None:
            while not ended.wait(0.1):
                if reached():
                    kernel = client.km.provisioner.pid
                    if only_the_kernel or number != signal.SIGKILL:
                        os.kill(kernel, number)
                    else:
                        kill(kernel)
                    return

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            client.execute(env=self.environment())
        except DeadKernelError:
            raise Taken from None
        finally:
            ended.set()
            thread.join()
        return printed(client)

    def calls(self) -> list[list[str]]:
        """How the program ``colab`` was called."""
        lines = (self.account / "calls").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def wipe(self) -> None:
        """The next machine is another one, with an empty disk."""
        (self.root / "drive").unlink(missing_ok=True)
        shutil.rmtree(self.root)
        self.root.mkdir()

    def program(self, patch) -> None:
        """Put a ``colab`` on the PATH, and a secret-free record of its calls beside the account."""
        place = self.folder / "bin"
        place.mkdir()
        file = place / "colab"
        file.write_text(f"#!{sys.executable}\n{_PROGRAM.read_text()}")
        file.chmod(0o755)
        patch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("COLAB_ROOT", str(self.root))


def printed(client: NotebookClient) -> str:
    outputs = [each for cell in client.nb.cells for each in cell.get("outputs", [])]
    return "".join(each.get("text", "") for each in outputs)


def kill(process: int) -> None:
    """Kill a process and all that come from it, the parents first, so that nobody can react."""
    tree = descendants(process)
    for each in tree:
        os.kill(each, signal.SIGSTOP)
    for each in {*tree, *descendants(process)}:
        os.kill(each, signal.SIGKILL)


def descendants(process: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(each.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found
