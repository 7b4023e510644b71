"""Is a machine that was lent worth training on? Looked at before the first step, in seconds.

Hosts lie, or do not know better: a GPU that is another's, one that is throttled to a fifth, a disk
or a network that makes every checkpoint take minutes. So besides what `pipeline preflight` finds
out (driver, architecture, right products, room), speeds are measured and held against floors. A
machine below one of them is given back and not taken again.
"""

import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import preflight
from pipeline.preflight import FAIL, OK, Check, guarded
from pipeline.store.store import Store

SHARE = 0.25  # of a card's listed rate: a plain product reaches 0.6 and more on a healthy one
_MEGA = 1 << 20
_PIECE = 4 * _MEGA  # bytes that go to the store and back


@dataclass(frozen=True)
class Floors:
    """What is too slow. MB are 2^20 bytes."""

    disk: float = 50.0  # MB/s
    store: float = 0.5  # MB/s there and back, with all delays
    gpus: int = 0  # that there must be; 0: any number, or none if the device is the CPU


def look(device: str, place: str, store: Store, floors: Floors) -> list[Check]:
    """All checks; one that fails says why the machine will not do."""
    report = preflight.preflight(device, place)
    checks = list(report.checks)
    if device != "cpu":
        checks.append(guarded("GPUs", lambda: judge_count(report.torch.gpus, max(1, floors.gpus))))
        for one in report.torch.devices:
            if one.device.startswith("cuda"):
                checks.append(guarded("speed", lambda one=one: judge_speed(one.device)))
    checks.append(guarded("disk speed", lambda: judge_disk(floors.disk)))
    checks.append(guarded("way to the store", lambda: judge_way(store, floors.store)))
    return checks


def judge_count(there: int, least: int) -> Check:
    if there < least:
        return Check("GPUs", FAIL, f"{there} that torch can use, and {least} were paid for")
    return Check("GPUs", OK, f"{there}")


def judge_speed(device: str) -> Check:
    """Does it multiply at a fair share of what its maker says? Unlisted ones are only told."""
    import torch

    from pipeline.machine import resolve_precision, type_name
    from pipeline.peaks import device_name, listed, measured

    where = torch.device(device)
    dtype = resolve_precision("auto", where)
    rate = measured(where, dtype).flops
    said = listed(device_name(where), type_name(dtype))
    words = f"{device} multiplies at {rate / 1e12:.1f} TFLOP/s in {type_name(dtype)}"
    if said is not None and rate < SHARE * said.flops:
        words += f", a {device_name(where)} should reach {said.flops / 1e12:.0f}: it is throttled"
        return Check("speed", FAIL, words)
    return Check("speed", OK, words)


def judge_disk(floor: float, amount: int = 64 * _MEGA) -> Check:
    """How fast are bytes safe on the disk?"""
    block = secrets.token_bytes(_MEGA)  # not compressible
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        start = time.perf_counter()
        for _ in range(amount // _MEGA):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        rate = amount / _MEGA / (time.perf_counter() - start)
    return _held("disk speed", rate, floor)


def judge_way(store: Store, floor: float, amount: int = _PIECE) -> Check:
    """Do bytes come back from the store as they were sent, and how fast?"""
    name, data = f"tmp/health-{secrets.token_hex(8)}", secrets.token_bytes(amount)
    start = time.perf_counter()
    try:
        store.replace(name, data)
        if store.read(name) != data:
            return Check("way to the store", FAIL, f"{store.place} gives back other bytes")
        rate = 2 * amount / _MEGA / (time.perf_counter() - start)
    finally:
        store.remove(name)
    return _held("way to the store", rate, floor)


def _held(name: str, rate: float, floor: float) -> Check:
    if rate < floor:
        return Check(name, FAIL, f"{rate:.2f} MB/s, and {floor:g} are the least")
    return Check(name, OK, f"{rate:.1f} MB/s")
