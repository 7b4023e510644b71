"""Train the tiny size on TinyShakespeare from several seeds: how good, how fast, how steady?

    python bench/tiny.py path/to/tinyshakespeare.txt [--seeds 3]

Each seed is one whole `pipeline run` in a store of its own. Reported are the numbers of the stage
`evaluate` (the whole last tenth of the text, every token scored once, last weights) and the seconds
of the stage `train`. Published numbers to hold them against stand in the README.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import save, spread

KEPT = ("bits_per_byte", "bits_per_byte_disjoint", "perplexity")


def one_run(corpus: str, seed: int, settings: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as store:
        command = [Path(sys.executable).with_name("pipeline"), "run", "--json", "--size", "tiny"]
        command += ["--data", corpus, "--store", store, "--set", f"train.seed={seed}"]
        for setting in settings:
            command += ["--set", setting]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    stages = json.loads(out)["stages"]
    told = {name: stages["evaluate"][name] for name in KEPT}
    for what in ("seconds", "bytes"):
        told |= {f"{name}_{what}": stages[name][what] for name in stages}
    told["train_text_bytes"] = stages["prepare"]["train_bytes"]
    told["train_tokens"] = stages["encode"]["train_tokens"]
    for name in ("tokens_per_second", "precision", "threads", "steps", "parameters"):
        told[name] = stages["train"][name]
    return {"seed": seed, **told, "vocab_size": stages["tokenizer"]["vocab_size"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--name", default="tiny", help="of the file in bench/results")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        runs.append(one_run(arguments.corpus, seed, arguments.settings))
        print(runs[-1], flush=True)
    measured = {name: spread([run[name] for run in runs]) for name in (*KEPT, "train_seconds")}
    save(arguments.name, {"settings": arguments.settings, "summary": measured, "runs": runs})


if __name__ == "__main__":
    main()
