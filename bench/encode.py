"""How fast the stage ``encode`` is with one and with two workers, and what kills cost it.

    python bench/encode.py path/to/tinyshakespeare.txt [--megabytes 1000] [--rounds 3]

The text is the standard library's sources and TinyShakespeare, again and again: lines in another
order each time, and a new word in every tenth. Half of it is one document, the rest are documents
of a few hundred lines. Every figure is of the stage itself, in a process of its own, without the
start of that process; one worker and two in turn, round after round. Their files must be the same.

Memory is the sum of each process's largest resident set, so libraries that they share count in
each. For the kills, the process and its workers are killed (SIGKILL, the whole group) when a random
part of the rest has been encoded; "encoded twice" are the shards that were begun and not finished,
as if each had been as good as done. The files must be those of runs without kills.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import string
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["IGNITE_TOKENIZER"] = "fast"  # also for a small text, on a machine that compiles first

from common import save, spread

from model.bpe import Tokenizer
from pipeline import recipe
from pipeline.data.shards import SIZE
from pipeline.data.splits import SplitWriter
from pipeline.machine import Machine
from pipeline.stage import Context
from pipeline.stages import encode

VALIDATION = 0.05
LINES = 300  # of a document, but for the large one
VOCAB = 32_000
KILLS = 5
FILES = ("train.tokens", "validation.tokens", "tokens.json")


# the inputs


def passages(play: Path, seed: int) -> Iterator[list[bytes]]:
    """The lines of all there is, without end, no two times the same."""
    draw = random.Random(seed)
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts]
    paths = [path for path in paths if "test" not in path.parts]
    lines = b"".join(path.read_bytes() for path in (*paths, play)).splitlines()
    while True:
        draw.shuffle(lines)
        varied = list(lines)
        for at in range(0, len(lines), 10):
            word = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9)))
            varied[at] += b" " + word.encode()
        yield varied


def write_inputs(folder: Path, play: Path, megabytes: int) -> None:
    """Both splits and a tokenizer."""
    texts = passages(play, seed=0)
    sample = b"\n".join(next(texts))[:8_000_000]
    Tokenizer.train([sample], vocab_size=VOCAB).save(folder / "tokenizer.json")
    total = megabytes * 1_000_000
    with SplitWriter(folder, "train") as train, SplitWriter(folder, "validation") as validation:
        large: list[bytes] = []
        size = 0
        while size < total // 2:
            large.append(b"\n".join(next(texts)) + b"\n")
            size += len(large[-1])
        train.add(b"".join(large))
        large.clear()
        while validation.bytes < VALIDATION * total or train.bytes < (1 - VALIDATION) * total:
            lines = next(texts)
            for at in range(0, len(lines), LINES):
                full = validation.bytes >= VALIDATION * total
                split = train if full else validation
                split.add(b"\n".join(lines[at : at + LINES]) + b"\n")


def one(folder: Path, workers: int) -> None:
    """Run the stage; says how long it took. Called as a process of its own."""
    inputs = {"tokenizer/tokenizer.json": folder / "tokenizer.json"}
    for name in ("train", "validation"):
        for kind in ("text", "ends"):
            inputs[f"prepare/{name}.{kind}"] = folder / f"{name}.{kind}"
    kept, out = folder / "kept", folder / "out"
    for path in (kept, out):
        path.mkdir(exist_ok=True)
    context = Context(
        recipe.load("tiny", data="none"),
        Machine(workers=workers),
        inputs,
        out,
        kept=lambda: kept,
    )
    started, used = time.perf_counter(), cpu_seconds()
    encode.run(context)
    told = {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - used}
    print(json.dumps(told))


def cpu_seconds() -> float:
    """What this process and those that it has waited for have used."""
    told = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in told)


# what is measured


class Run:
    """The stage in a process group of its own."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        words = [sys.executable, __file__, "--one", str(folder), str(workers)]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.peaks: dict[int, float] = {}  # MiB by process

    def look(self) -> None:
        """Take down how much memory each process has had."""
        pid = self.process.pid
        try:
            below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for each in (pid, *map(int, below)):
                lines = Path(f"/proc/{each}/status").read_text().splitlines()
                peak = next(line for line in lines if line.startswith("VmHWM"))
                self.peaks[each] = int(peak.split()[1]) / 1024
        except (OSError, StopIteration):
            pass  # it has ended

    def finish(self) -> dict[str, float]:
        while self.process.poll() is None:
            self.look()
            time.sleep(0.1)
        if self.process.returncode:
            raise SystemExit(f"the stage ended with {self.process.returncode}")
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.read())
        return {**told, "peak_mib": sum(self.peaks.values())}

    def done(self) -> int:
        return len(list((self.folder / "kept").glob("*.json")))

    def kill(self, done: int) -> int:
        """End all at once, when so many shards are done; the number of those begun in vain."""
        while self.done() < done and self.process.poll() is None:
            time.sleep(0.002)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            raise SystemExit(
                "it was done before it could be killed: take more --megabytes"
            ) from None
        self.process.wait()
        time.sleep(0.5)  # the workers see it at once, and end
        return len(list((self.folder / "kept").glob("*.part")))


def taken(folder: Path) -> str:
    """The digest of what came out; it and what it was made from are removed."""
    sums = hashlib.sha256()
    for name in FILES:
        with (folder / "out" / name).open("rb") as file:
            sums.update(hashlib.file_digest(file, "sha256").digest())
    for name in ("out", "kept"):
        shutil.rmtree(folder / name)
    return sums.hexdigest()


def killed(folder: Path, shards: int) -> dict[str, Any]:
    """Kill it at random moments; what that cost."""
    draw = random.Random(1)
    lost, at = [], []
    done = 0
    for left in range(KILLS, 0, -1):
        run = Run(folder, 2)
        done += draw.randint(1, max(1, (shards - done) // (left + 1)))
        lost.append(run.kill(done))
        done = run.done()
        at.append(done / shards)
    Run(folder, 2).finish()
    twice = sum(lost) * SIZE / 1e6
    return {"kills": KILLS, "done_at_each": at, "encoded_twice_mb": twice, "digest": taken(folder)}


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    size = sum((folder / f"{name}.text").stat().st_size for name in ("train", "validation"))
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    digests, shards = set(), 0
    for _ in range(rounds):
        for workers, told in runs.items():
            run = Run(folder, workers)
            told.append(run.finish())
            shards = run.done()
            digests.add(taken(folder))
            print(workers, told[-1], flush=True)
    ratios = [one["seconds"] / two["seconds"] for one, two in zip(*runs.values())]
    result: dict[str, Any] = {"megabytes": size / 1e6, "shards": shards, "ratio": spread(ratios)}
    for workers, told in runs.items():
        seconds = statistics.median(run["seconds"] for run in told)
        result[f"workers {workers}"] = {
            "seconds": spread([run["seconds"] for run in told]),
            "cpu_seconds": spread([run["cpu_seconds"] for run in told]),
            "megabytes_per_second": size / 1e6 / seconds,
            "peak_mib": max(run["peak_mib"] for run in told),
        }
    after_kills = killed(folder, shards)
    digests.add(after_kills.pop("digest"))
    if len(digests) > 1:
        raise SystemExit("not all runs have written the same bytes")
    result["killed"] = {**after_kills, "same_bytes": True}
    return result


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("play", type=Path, help="the text TinyShakespeare")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="keep no result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ignite-encode-") as name:
        folder = Path(name)
        write_inputs(folder, arguments.play, arguments.megabytes)
        result = measure(folder, arguments.rounds)
    print(json.dumps(result, indent=2))
    if not arguments.dry:
        save("encode", result)


if __name__ == "__main__":
    main()
