"""What does it cost to find that there is nothing to do? Ours beside DVC, Snakemake and redun.

    python bench/noop.py [--dvc EXE] [--snakemake EXE] [--redun EXE] [--s3-store s3://bucket/folder]

Every figure is the time of one whole process. All commands are run in turn, round after round, so
that a noisy moment hits all alike. `python -c pass` is the floor of any program in Python.

Ours is the tiny recipe on one text of 11 MB, trained for two steps: every file has its real size.
The others get the same six stages with the same inputs, as a small script that reads its inputs and
writes as many bytes as our stage did; like ours, each stage also watches its code. They are spared
what is not the matter here: DVC does without git and usage reports, and redun does not look for the
user's accounts at AWS and Google (which took it half a second more where gcloud is installed).

Nothing is taken on trust: the first run of each must have run all six stages, every later one must
say that there was nothing to do, and at the end the log that the stages themselves write must still
hold just six lines.

Each of the others wants an environment of its own (`pip install dvc==3.67.*` and so on); one that
is not given is left out. The bucket for `--s3-store` must exist; what is written there, in a new
folder below the one given, stays there. A server to try it with, with invented credentials:

    moto_server -p 5555 &
    export AWS_ENDPOINT_URL=http://127.0.0.1:5555 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x
    python -c "import s3fs; s3fs.S3FileSystem().mkdir('bench')"
"""

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from common import save, spread

from pipeline.stages import STAGES

TAKES = {stage.name: list(stage.upstream) or ["text"] for stage in STAGES}
SHORT = ["--size", "tiny", "--set", "train.steps=2", "--set", "train.warmup=1", "--device", "cpu"]
LOG = "ran.log"  # of the others' stages: one line whenever one runs
STEP = f'''\
"""python step.py STAGE BYTES INPUT...: write that many bytes, which depend on every input."""

import hashlib
import sys
from pathlib import Path

stage, size, *inputs = sys.argv[1:]
seed = hashlib.sha256(b"".join(Path(name).read_bytes() for name in inputs)).digest()
Path(stage).write_bytes((seed * (int(size) // len(seed) + 1))[: int(size)])
with open("{LOG}", "a") as log:
    log.write(stage + "\\n")
'''


@dataclass(frozen=True)
class Command:
    """One line of the table, and what it must say to prove that it found nothing to do."""

    words: list[str]
    says: str  # a regular expression
    folder: Path

    def seconds(self) -> float:
        start = time.perf_counter()
        said = call(self.words, self.folder)
        taken = time.perf_counter() - start
        if not re.search(self.says, said):
            raise SystemExit(f"{self.words} did not say {self.says!r} but:\n{said}")
        return taken


def call(words: list[str], folder: Path) -> str:
    """Run a command in a folder; returns all it printed."""
    environment = os.environ | {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "XDG_CACHE_HOME": str(folder / "cache"),  # nothing is left on this machine
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(words, cwd=folder, env=environment, **pipes)
    if done.returncode:
        raise SystemExit(f"{words} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def write_text(path: Path, words: int = 1_600_000) -> None:
    """A text of about 11 MB with enough different words for 1,024 tokens."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(4000)]
    path.write_text(" ".join(draw.choices(known, k=words)) + "\n", encoding="utf-8")


def ours(folder: Path, store: str, where: str) -> dict[str, Command]:
    """Bring about a finished run in a new store; returns the commands to measure on it."""
    program = str(Path(sys.executable).with_name("pipeline"))
    said = call([program, "run", "--store", store, "--data", "text", *SHORT], folder)
    ran = re.findall(r"^(\w+) +done ", said, re.MULTILINE)
    if ran != list(TAKES):
        raise SystemExit(f"the first run in {where} ran {ran}, not all six stages:\n{said}")
    all_done = r"\s+".join(rf"{name} +done\b.*" for name in TAKES)
    return {
        f"pipeline run, {where}": Command(
            [program, "run", "--store", store], "nothing to do: every stage has its result", folder
        ),
        f"pipeline status, {where}": Command(
            [program, "status", "--store", store], all_done, folder
        ),
    }


def sizes(folder: Path, store: str) -> dict[str, int]:
    """How many bytes each stage of ours wrote."""
    program = str(Path(sys.executable).with_name("pipeline"))
    stages = json.loads(call([program, "status", "--json", "--store", store], folder))["stages"]
    return {name: stages[name]["bytes"] for name in TAKES}


def step(name: str, written: dict[str, int]) -> str:
    """The shell command that runs a stage in one of the others."""
    return shlex.join([sys.executable, "step.py", name, str(written[name]), *TAKES[name]])


def dvc(exe: str, folder: Path, written: dict[str, int]) -> dict[str, Command]:
    stages = {
        name: {"cmd": step(name, written), "deps": ["step.py", *inputs], "outs": [name]}
        for name, inputs in TAKES.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # which is YAML, too
    call([exe, "init", "--no-scm", "--quiet"], folder)
    call([exe, "repro"], folder)
    nothing = r"Data and pipelines are up to date\."
    return {f"dvc {verb}": Command([exe, verb], nothing, folder) for verb in ("repro", "status")}


def snakemake(exe: str, folder: Path, written: dict[str, int]) -> dict[str, Command]:
    ends = [name for name in TAKES if not any(name in inputs for inputs in TAKES.values())]
    rules = [f"rule all:\n    input: {', '.join(map(repr, ends))}\n"]
    for name, inputs in TAKES.items():
        rules.append(
            f"rule {name}:\n"
            f"    input: {', '.join(map(repr, ['step.py', *inputs]))}\n"
            f"    output: {name!r}\n"
            f"    shell: {step(name, written)!r}\n"
        )
    (folder / "Snakefile").write_text("\n".join(rules))
    run = [exe, "--cores", "1"]
    call(run, folder)
    nothing = "Nothing to be done"
    return {
        "snakemake": Command(run, nothing, folder),
        "snakemake -n": Command([*run, "-n"], nothing, folder),
    }


def redun(exe: str, folder: Path, written: dict[str, int]) -> dict[str, Command]:
    head = """\
import subprocess
from redun import File, task
redun_namespace = "noop"
def stage(command, name):
    subprocess.run(command, shell=True, check=True)
    return File(name)
"""
    stages, calls = "", ""
    for name, inputs in TAKES.items():
        taken = ", ".join(["code", *inputs])
        stages += f"@task()\ndef {name}_stage({taken}):\n"
        stages += f"    return stage({step(name, written)!r}, {name!r})\n"
        calls += f"    {name} = {name}_stage({taken})\n"
    whole = "@task()\ndef main(code=File('step.py'), text=File('text')):\n"
    whole += f"{calls}    return [{', '.join(TAKES)}]\n"
    (folder / "workflow.py").write_text(head + stages + whole)
    run = [exe, "run", "--exclude-user", "aws", "--exclude-user", "gcp", "workflow.py", "main"]
    call(run, folder)
    tasks = len(TAKES) + 1  # the columns are pending, running, failed, cached, done and total
    return {"redun run": Command(run, rf"\bALL +0 +0 +0 +{tasks} +0 +{tasks}\b", folder)}


def check_ran(name: str, folder: Path) -> None:
    """Each stage of one of the others must have run once, by what the stages themselves wrote."""
    ran = (folder / LOG).read_text().split()
    if sorted(ran) != sorted(TAKES):
        raise SystemExit(f"with {name} these stages ran, instead of each once: {ran}")


def rounds(commands: dict[str, Command], repeats: int) -> dict[str, dict[str, float]]:
    """The seconds of each command, taken in turn, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(repeats + 1):
        for name, command in commands.items():
            seconds = command.seconds()
            if number:
                taken[name].append(seconds)
    return {name: spread(values) for name, values in taken.items()}


PEERS = {"dvc": dvc, "snakemake": snakemake, "redun": redun}


def peer(
    name: str, exe: str, folder: Path, text: Path, written: dict[str, int]
) -> tuple[str, dict[str, Command]]:
    """Let one of the others run the six stages in a new folder; its version and commands."""
    exe = str(Path(exe).absolute())
    folder.mkdir()
    (folder / "text").hardlink_to(text)
    (folder / "step.py").write_text(STEP)
    release = call([exe, "--version"], folder).split()[-1]
    commands = PEERS[name](exe, folder, written)
    check_ran(name, folder)
    return release, commands


def s3_server() -> str:
    """Whether the figures of the S3 store have a network in them."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    near = re.match(r"https?://(localhost|127\.0\.0\.1)\b", endpoint)
    return "on the same machine" if near else "elsewhere"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in PEERS:
        parser.add_argument(f"--{name}", metavar="EXE", help="its program")
    parser.add_argument("--s3-store", metavar="URL", help="a folder in a bucket, for a new store")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    given = {name: exe for name in PEERS if (exe := getattr(arguments, name))}
    left_out = [name for name in PEERS if name not in given]
    result: dict[str, object] = {"versions": (versions := {}), "left_out": left_out}
    with tempfile.TemporaryDirectory(prefix="noop-") as place:
        home = Path(place, "ours")
        home.mkdir()
        write_text(home / "text")
        commands = {"python -c pass": Command([sys.executable, "-c", "pass"], "", home)}
        commands |= ours(home, "store", "local store")
        result["bytes"] = written = sizes(home, "store")
        if arguments.s3_store:
            store = f"{arguments.s3_store.rstrip('/')}/noop-{uuid.uuid4().hex[:8]}"
            commands["import s3fs"] = Command([sys.executable, "-c", "import s3fs"], "", home)
            commands |= ours(home, store, "S3 store")
            result["s3_server"] = s3_server()
            versions["s3fs"] = version("s3fs")
        else:
            left_out.append("S3 store")
        for name, exe in given.items():
            versions[name], added = peer(name, exe, Path(place, name), home / "text", written)
            commands |= added
        measured = rounds(commands, arguments.repeats)
        for name in given:
            check_ran(name, Path(place, name))
    for name, figures in measured.items():
        median, least = figures["median"] * 1000, figures["min"] * 1000
        print(f"{name:28} median {median:5.0f} ms, min {least:5.0f} ms")
    print("left out, as not given:", ", ".join(left_out) or "nothing")
    save("noop", {**result, "repeats": arguments.repeats, "seconds": measured})


if __name__ == "__main__":
    main()
