"""How large is the image, layer by layer, and how long does a changed line take?

    python bench/image.py           needs a Docker engine and a network

The cpu variant is built and measured: once more with nothing changed, and five times with one line
of the model changed, each followed by a container that prints the sizes. What the CUDA variants add
is not built: it is read from the lock and the package index, wheel by wheel, as it is downloaded
and as it is unpacked (the directory at the end of each wheel says so).
"""

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import fsspec
from common import save, spread

ROOT = Path(__file__).parents[1]
SIMPLE = "https://pypi.org/simple/{}/"
OURS = re.compile(r"-(py3|py2\.py3|cp313)-(none|cp313|abi3)-(any|.*x86_64\.whl)")


def main() -> None:
    """Measure and write the result."""
    result = {"cpu": cpu_variant(), "cuda": {name: cuda(name) for name in ("cu130", "cu126")}}
    print(json.dumps(result, indent=2))
    save("image", result)


def cpu_variant() -> dict[str, Any]:
    """Layers of the image, and the time of a rebuild and a start after one line was changed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "artifacts", "build"))
        shutil.copy(ROOT / ".dockerignore", tree)
        compose("build", "train-tiny", cwd=tree)
        nothing = [timed_start(tree) for _ in range(5)]
        changed = []
        for turn in range(5):
            with (tree / "model" / "config.py").open("a") as file:
                file.write(f"# {turn}\n")
            changed.append(timed_start(tree))
    told = subprocess.run(
        ["docker", "history", "--no-trunc", "--format", "{{json .}}", "ignite-llm:cpu"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    layers = [json.loads(line) for line in reversed(told.splitlines())]
    return {
        "layers": [
            {"size": layer["Size"], "by": layer["CreatedBy"].removeprefix("RUN ")}
            for layer in layers
            if layer["Size"] != "0B"
        ],
        "start, nothing changed (s)": spread(nothing),
        "start, one line changed (s)": spread(changed),
    }


def timed_start(tree: Path) -> float:
    """Seconds of ``docker compose run --rm pipeline sizes``, build included."""
    start = time.monotonic()
    compose("run", "--rm", "--no-TTY", "pipeline", "sizes", cwd=tree)
    return round(time.monotonic() - start, 2)


def compose(*words: str, cwd: Path) -> None:
    """``docker compose ...`` for a machine without a GPU."""
    files = ("-f", "compose.yaml", "-f", "compose.cpu.yaml")
    subprocess.run(["docker", "compose", *files, *words], cwd=cwd, check=True, capture_output=True)


def cuda(variant: str) -> dict[str, Any]:
    """MB of each package that a CUDA variant adds: downloaded, and unpacked."""
    text = (ROOT / "docker" / "locks" / f"torch-{variant}.txt").read_text()
    packages = {}
    for block in re.findall(r"^[^\s#].*(?:\n +.*)*", text, re.MULTILINE):
        name = re.split(r"[=\[ ]", block)[0]
        packages[name] = wheel(name, set(re.findall(r"sha256:([0-9a-f]{64})", block)))
    known = [sizes for sizes in packages.values() if sizes is not None]
    total = {kind: sum(sizes[kind] for sizes in known) for kind in ("download", "unpacked")}
    return {"MB": packages, "total MB, of those that are known": total}


def wheel(name: str, digests: set[str]) -> dict[str, int] | None:
    """The wheel that the image takes; None if it is not on the index (PyTorch's own has it)."""
    request = urllib.request.Request(
        SIMPLE.format(name), headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    files = json.load(urllib.request.urlopen(request, timeout=60))["files"]
    for file in files:
        if file["hashes"].get("sha256") in digests and OURS.search(file["filename"]):
            with fsspec.open(file["url"], block_size=1 << 16) as remote:
                unpacked = sum(each.file_size for each in zipfile.ZipFile(remote).infolist())
            return {"download": round(file["size"] / 1e6), "unpacked": round(unpacked / 1e6)}
    return None


if __name__ == "__main__":
    main()
