"""What the benchmarks share: on what machine a figure was measured, and where it is kept."""

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The processor and the versions that matter; nothing that names a host."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        flags = []
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": platform.system(),
    }


def result_file(store: str | Path, stage: str, name: str) -> Path:
    """A file of the last run's result in a store. Raises FileNotFoundError if there is none."""
    from pipeline.engine.engine import Engine
    from pipeline.engine.remembered import latest
    from pipeline.store.places import open_store

    opened = open_store(str(store))
    recipe = latest(opened)
    if recipe is None:
        raise FileNotFoundError(f"nothing has run in {store}")
    engine = Engine(opened, recipe)
    return engine.file(next(item for item in engine.plan() if item.stage.name == stage), name)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample), smallest, median and largest."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` with the machine and the day."""
    result = {**result, "date": today(), "machine": machine()}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
