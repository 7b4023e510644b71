"""Which recipe is best? Runs every row of a list, and never looks at the bytes that are reported.

    python bench/sweep.py tinyshakespeare.txt bench/sweeps/small.toml [--jobs 8] [--seeds 1]
        [--parts 9 4]

Of the text only the first nine tenths are used: rows train on nine tenths of those, and are scored
on the one that is left. That is number 9, the last, or each of those that `--parts` names, because
what is best for one passage need not be for another. A row is a name and settings laid over the
list's own and the size's recipe. Rows run side by side in one store, so that what they share is
made once. Figures are those of the stage `evaluate`; runs that share a machine say nothing of
speed.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import ROOT, save, spread

SELECTION = 0.9  # of the text; what comes after it is reported elsewhere, and not read here


def command(text: Path, store: Path, size: str, settings: list[str], upto: str) -> list[str]:
    main = "from pipeline.cli.main import main; main()"
    words = ["run", upto, "--json", "--size", size, "--data", str(text), "--store", str(store)]
    for setting in settings:
        words += ["--set", setting]
    return [sys.executable, "-c", main, *words, "--threads", "1"]


def with_part_last(text: bytes, part: int) -> bytes:
    """The text with its tenth of that number at the end, where a run holds out what it scores.

    Cut at ends of lines, so that no line and no letter is torn.
    """
    edges = [text.rfind(b"\n", 0, len(text) * i // 10 + 1) + 1 for i in range(1, 10)]
    begin, end = ([0, *edges, len(text)][i] for i in (part, part + 1))
    if not 0 < end - begin < len(text) / 2:
        raise SystemExit(f"tenth {part} of the text cannot be held out: its lines are too long")
    return text[:begin] + text[end:] + text[begin:end]


def one_run(words: list[str], limit: float, machine: list[str]) -> dict[str, Any]:
    """Bits per byte and what else tells how a row did; or why it has none."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*words, *machine], capture_output=True, text=True, timeout=limit, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    stages = json.loads(done.stdout)["stages"]
    told, train = stages["evaluate"], stages["train"]
    return {
        "bits_per_byte": told["bits_per_byte"],
        "bits_per_byte_disjoint": told["bits_per_byte_disjoint"],
        "perplexity": told["perplexity"],
        "best_step": train["best_step"],
        "steps": train["steps"],
        "device": train["device"],
        "precision": train["precision"],
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--parts",
        type=int,
        nargs="+",
        choices=range(10),
        default=[9],
        help="tenths to be scored on",
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all of it")
    parser.add_argument("--machine", default="", help="options of the machine, such as --device")
    parser.add_argument("--dry", action="store_true", help="do not write a result")
    options = parser.parse_args()
    listed = tomllib.loads(options.rows.read_text(encoding="utf-8"))
    end = time.monotonic() + options.limit
    with tempfile.TemporaryDirectory() as folder:
        store, whole = Path(folder) / "store", options.corpus.read_bytes()
        selection = whole[: int(len(whole) * SELECTION)]
        texts = {part: Path(folder) / f"part-{part}.txt" for part in options.parts}
        for part, text in texts.items():
            text.write_bytes(with_part_last(selection, part))

        def measure(row: dict[str, Any], seed: int, part: int) -> dict[str, Any]:
            settings = [*listed.get("set", []), *row["set"], f"train.seed={seed}"]
            words = command(texts[part], store, listed["size"], settings, "evaluate")
            found = one_run(words, max(1, end - time.monotonic()), options.machine.split())
            print(row["name"], seed, part, found, flush=True)
            return {"seed": seed, "part": part, **found}

        with ThreadPoolExecutor(options.jobs) as pool:
            runs = list(itertools.product(range(options.seeds), options.parts))
            work = [[pool.submit(measure, row, *run) for run in runs] for row in listed["row"]]
            results = [
                {**row, "runs": [future.result() for future in futures]}
                for row, futures in zip(listed["row"], work)
            ]
    for row in results:
        scores = [run["bits_per_byte"] for run in row["runs"] if "bits_per_byte" in run]
        row["bits_per_byte"] = spread(scores) if scores else None
    told = {"size": listed["size"], "set": listed.get("set", []), "rows": results}
    if not options.dry:
        save(f"sweep_{options.rows.stem}", told)


if __name__ == "__main__":
    main()
