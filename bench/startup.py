"""How long do `pipeline status` and a `pipeline run` with nothing to do take, as whole processes?

    python bench/startup.py --store path/to/a/finished/store [--repeats 15]

The store's last run must be finished. Beside them stands `python -c pass`, the floor of any program
in Python on the machine.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import save, spread


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    pipeline = str(Path(sys.executable).with_name("pipeline"))
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "pipeline status": [pipeline, "status", "--store", arguments.store],
        "pipeline run": [pipeline, "run", "--store", arguments.store],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):  # in turn, so that a noisy moment hits all alike
        for name, command in commands.items():
            taken[name].append(seconds(command))
    measured = {name: spread(values) for name, values in taken.items()}
    for name, figures in measured.items():
        print(f"{name:20} median {figures['median'] * 1000:.0f} ms, min {figures['min']:.3f} s")
    save("startup", {"seconds": measured, "repeats": arguments.repeats})


if __name__ == "__main__":
    main()
