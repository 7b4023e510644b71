"""How long does a person wait for `--help`? Whole processes, in turn, beside what Python costs.

    python bench/startup.py [--rounds 20]

`python -c pass` is the floor of any program in Python; `import vastai` and `import kagglesdk` are
what a program pays that loads a cloud's package before it knows that it needs it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import save, spread

BIN = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "launch --help": [str(BIN / "launch"), "--help"],
    "launch vast --help": [str(BIN / "launch"), "vast", "--help"],
    "pipeline --help": [str(BIN / "pipeline"), "--help"],
    "import vastai": [sys.executable, "-c", "import vastai"],
    "import kagglesdk": [sys.executable, "-c", "import kagglesdk"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    """Of one process, which must end well."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, show, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    for command in COMMANDS.values():  # compiled and in the page cache
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    told = {name: spread(values) for name, values in times.items()}
    for name, each in told.items():
        print(f"{name:20} {1000 * each['median']:6.0f} ms")
    save("startup", {"rounds": rounds, "seconds": told})


if __name__ == "__main__":
    main()
