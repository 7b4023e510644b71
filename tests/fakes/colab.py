"""Colab as far as a notebook sees it, and Google's program ``colab`` as far as a launcher does.

A *machine* is a folder that stands for /content. The package google.colab of the kernel (under
colab_stub/) reads from ``COLAB_FAKE``, a folder, what secrets the account has, and writes there
what it was asked. Drive is a folder that outlives machines.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import nbformat
from nbclient import NotebookClient

STUB = Path(__file__).parent / "colab_stub"
_PROGRAM = Path(__file__).parent / "colab_program.py"


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

    def run_all(self, notebook: str, **settings: object) -> str:
        """Run all cells; what they printed. Raises CellExecutionError."""
        client = self.open(notebook, **settings)
        client.execute()
        return printed(client)

    def run_until(self, notebook: str, reached, **settings: object) -> None:
        """Run all cells until something is so, and take the machine away as Colab does: every
        process of it is killed in one instant."""
        client = self.open(notebook, **settings)
        ended = threading.Event()

        def strike() -> None:
            while not ended.wait(0.02):
                if reached():
                    kill(client.km.provisioner.pid)
                    return

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            client.execute()
        finally:
            ended.set()
            thread.join()

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
