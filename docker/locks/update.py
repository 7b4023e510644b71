"""Write the lock files beside this one: each package of the image with the sha256 of its files.

    uv run --no-project docker/locks/update.py      needs uv (https://docs.astral.sh/uv)

    base.txt             what every variant needs, with the extras that a run may ask for
    torch-<variant>.txt  torch and, for CUDA, the libraries that it brings along
    test.txt             what the tests need besides
    build.txt            what makes the project's own wheel

constraints.txt decides the versions. The builds of torch for the CPU and for CUDA 12.6 are not on
PyPI: their hashes are those that https://download.pytorch.org/whl/<variant>/torch/ lists, and they
stand in this file, as does what the CUDA 12.6 build says that it requires.
"""

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
EXTRAS = ("data", "report", "s3", "gcs", "azure", "hf", "sftp")
TORCH = "2.13.0"
OF_TORCH = re.compile(r"(torch|triton|nvidia-|cuda-)")  # what only torch asks for
CPU_HASHES = (  # Linux, x86_64 and aarch64, Python 3.11 to 3.14
    "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
    "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
    "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
    "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
    "d20fa53ee744502fa4c69818a720b05ca0d37abd055d4f6e66cae155114bc691",
    "ca021f9eb2f8345c83fa03e3a04587308afb8df71bd472670b3ece00df58621c",
)
CU126_HASHES = (  # Linux, x86_64 and aarch64, Python 3.13 and 3.14
    "4198c8d7478ab47ad2569309387d88b21fb553a1cf8ab06260fbd5a6ab9b9712",
    "b2618235bacb29eea37357ce660aab5296d9729eacfd4629d50327382da11f7f",
    "affd3b49a4e48aef895ffd9e196181bd505422d7c37b4a6f9afa76899d2acd3d",
    "a1b8a5bfe240d8dfdf2d4f0b70530552e1935050ccd57d4503f91829e3773370",
)
CU126_REQUIRES = """
cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==12.6.3
cuda-bindings==12.9.10
nvidia-cudnn-cu12==9.10.2.21
nvidia-cusparselt-cu12==0.7.1
nvidia-nccl-cu12==2.29.3
nvidia-nvshmem-cu12==3.4.5
triton==3.7.1
"""


def compiled(source: str, *options: str) -> dict[str, str]:
    """Package -> its lines in a lock, as uv resolves what ``source`` names."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate"]
    given = source if source == "-" or source.endswith(".toml") else "-"
    text = subprocess.run(
        [*command, given, *options],
        input=source,
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    blocks = re.findall(r"^[^\s#].*(?:\n +.*)*", text, re.MULTILINE)
    return {re.split(r"[=\[ ]", block)[0]: block for block in blocks}


def pinned(version: str, hashes: tuple[str, ...]) -> str:
    """Torch's lines in a lock."""
    lines = (f"    --hash=sha256:{digest}" for digest in sorted(hashes))
    return " \\\n".join([f"torch=={version}", *lines])


def first(block: str) -> str:
    """The version of a package; which systems want it may depend on who else does."""
    return re.split(r"[ ;]", block)[0]


def write(name: str, blocks: dict[str, str]) -> None:
    """Write one lock file."""
    text = "".join(f"{block}\n" for _, block in sorted(blocks.items()))
    (HERE / name).write_text(f"# written by update.py\n{text}")


def main() -> None:
    """Write all of them."""
    wanted = [word for extra in EXTRAS for word in ("--extra", extra)]
    project = compiled("pyproject.toml", "--constraint", "constraints.txt", *wanted)
    base = {name: block for name, block in project.items() if not OF_TORCH.match(name)}
    tests = compiled("pyproject.toml", "--constraint", "constraints.txt", "--extra", "dev")
    left = {name: block for name, block in tests.items() if not OF_TORCH.match(name)}
    assert all(first(left[name]) == first(block) for name, block in base.items()), "two versions"
    write("base.txt", base)
    write("test.txt", {name: block for name, block in left.items() if name not in base})
    write("torch-cu130.txt", {name: block for name, block in project.items() if name not in base})
    write("build.txt", compiled("hatchling==1.33.0"))
    write("torch-cpu.txt", {"torch": pinned(f"{TORCH}+cpu", CPU_HASHES)})
    cuda = compiled(CU126_REQUIRES)
    write("torch-cu126.txt", cuda | {"torch": pinned(f"{TORCH}+cu126", CU126_HASHES)})


if __name__ == "__main__":
    main()
