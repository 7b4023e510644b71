"""Can this machine train, and with what? Found out before anything is computed.

What goes wrong on machines goes wrong quietly. A container that was given no GPU trains on the CPU,
a hundred times slower. A GPU that torch lists may have no kernels in this torch, which only the
first step shows. A store that belongs to somebody else fails at its first record. So each is tried
here, in the order in which one rests on another:

    torch, driver, device, architecture, kernel, precision, disk, store, temporary files,
    shared memory

Each gives a ``Check``: ok, a note (it works, but look), or FAIL with the fix. One that breaks is a
FAIL of its own and keeps no other from being looked at. What judges takes what it judges as
arguments; what asks is in hardware.py. Nothing is left behind. Cost: the import of torch and, on a
GPU, the start of CUDA.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.hardware import Device, Gpu, Torch, ask_gpu, ask_torch, compute, first_line
from pipeline.machine import resolve_device, resolve_precision, type_name
from pipeline.store.disk import Disk
from pipeline.store.places import open_store
from pipeline.ui import human_bytes

OK, NOTE, FAIL = "ok", "note", "FAIL"
LEAST, PLENTY = 256 << 20, 5 << 30  # bytes free: below the one nothing is started
SHARED = 1 << 30  # bytes of /dev/shm that several GPUs may want
DRIVERS = {"12": 525, "13": 580}  # the oldest that runs any CUDA 12.x, any 13.x

_INDEX = "--index-url https://download.pytorch.org/whl"
_CU126 = f"build the image with TORCH_VARIANT=cu126, or pip install 'torch==2.13.0' {_INDEX}/cu126"
_CU130 = f"build the image with TORCH_VARIANT=cu130, or pip install --upgrade torch {_INDEX}/cu130"


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is (ok, note, FAIL), and what was found or is to be done."""

    name: str
    state: str
    words: str


@dataclass(frozen=True)
class Report:
    checks: tuple[Check, ...]
    torch: Torch

    @property
    def ok(self) -> bool:
        return all(check.state != FAIL for check in self.checks)


def preflight(device: str, place: str) -> Report:
    """Look at everything; ``device`` and ``place`` are what --device and --store say."""
    try:
        torch = ask_torch(device)
    except Exception as error:  # a broken installation raises anything
        torch = Torch()
        checks = [Check("torch", FAIL, f"it cannot be loaded or asked: {_said(error)}")]
    else:
        checks = computing(device, torch)
    checks += storing(place)
    if os.path.isdir("/dev/shm"):
        checks.append(guarded("shared memory", lambda: judge_shared(_shared(), torch.gpus)))
    return Report(tuple(checks), torch)


def computing(device: str, torch: Torch) -> list[Check]:
    """All that has to do with torch and what it computes on."""
    built = f"built for CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
    checks = [Check("torch", OK, f"{torch.version}, {built}")]
    on_cuda = device.startswith("cuda")
    if on_cuda or (device == "auto" and not any(one.device == "mps" for one in torch.devices)):
        checks.append(guarded("driver", lambda: judge_driver(torch, ask_gpu(), on_cuda)))
    if not torch.devices and checks[-1].state != FAIL:
        checks.append(guarded("device", lambda: judge_missing(device)))
    for one in torch.devices:
        if torch.cuda and one.capability:
            checks.append(guarded("architecture", lambda one=one: judge_architecture(one, torch)))
        checks.append(guarded("kernel", lambda one=one: judge_kernel(one)))
        checks.append(guarded("precision", lambda one=one: judge_precision(one)))
    return checks


def storing(place: str) -> list[Check]:
    """All that has to do with where files go."""
    try:
        store = open_store(place)
    except StoreError as error:
        return [Check("store", FAIL, str(error))]
    root, links = store.root, store.remote is None
    what = f"the store {root}" if links else f"{root}, the cache of {store.place}"
    other = "another --store" if links else "another cache with IGNITE_CACHE"
    return [
        guarded("disk", lambda: judge_space(what, _free(root), other)),
        guarded("store", lambda: judge_writing("store", what, root, other, links)),
        guarded("temporary files", _judge_temporary),
    ]


def guarded(name: str, judge: Callable[[], Check]) -> Check:
    """The check, or what kept it from being made."""
    try:
        return judge()
    except Exception as error:  # whatever it is, the other checks are worth having
        return Check(name, FAIL, _said(error))


def judge_driver(torch: Torch, gpu: Gpu, asked: bool) -> Check:
    """Is there a GPU, and can torch reach it? ``asked``: only a GPU will do."""
    lacking = FAIL if asked else NOTE
    needed = DRIVERS.get((torch.cuda or "").split(".")[0], 0)
    driver = int(gpu.driver.split(".")[0]) if gpu.driver else needed
    which = f"a GPU with NVIDIA driver {gpu.driver or '(version unknown)'}"
    if torch.gpus:
        if driver < needed:  # NVIDIA's compatibility package makes it work on data-centre GPUs
            words = f"{which}, and CUDA {torch.cuda} asks for {needed}, but it can be used"
            return Check("driver", NOTE, words)
        return Check("driver", OK, which)
    if not gpu.given:
        instead = "take --device cpu, or another machine" if asked else "computing on the CPU"
        return Check("driver", lacking, f"no GPU here: {instead}{gpu.why and f' ({gpu.why})'}")
    if torch.cuda is None:
        words = f"{which}, but torch {torch.version} computes on the CPU alone: {_CU130}"
        return Check("driver", lacking, words)
    if driver < needed:
        words = f"{which}, too old for torch's CUDA {torch.cuda}, which needs {needed} or newer: "
        words += "install a newer driver"
        if needed > DRIVERS["12"] <= driver:
            words += f" or, for a GPU older than Blackwell, {_CU126}"
        return Check("driver", FAIL, words)
    return Check("driver", FAIL, f"{which}, but torch cannot use it: {torch.error}")


def judge_missing(device: str) -> Check:
    """Resolving it raises what there is instead."""
    return Check("device", OK, str(resolve_device(device)))


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Can a GPU run what was compiled for ``arch``, such as sm_86, compute_120 or sm_90a?

    Machine code (sm) runs on later chips of the same major version. PTX (compute) is translated
    for any later chip. With an ``a`` either is for one chip alone, with an ``f`` for its family.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if match is None:
        return False
    built = int(match[2]), int(match[3])
    if match[4] == "a":
        return built == capability
    if match[1] == "compute" and not match[4]:
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def judge_architecture(device: Device, torch: Torch) -> Check:
    """Has torch code for this GPU?"""
    assert device.capability is not None
    memory = f", {human_bytes(device.memory)}" if device.memory else ""
    which = f"{device.device} ({device.name}{memory}) is {_sm(device.capability)}"
    archs = " ".join(torch.archs)
    if any(runs_on(arch, device.capability) for arch in torch.archs):
        return Check("architecture", OK, f"{which}; torch has {archs}")
    fix = _other_torch(device.capability)
    if torch.gpus > 1:
        fix += ". Or leave this GPU out with --device or CUDA_VISIBLE_DEVICES"
    words = f"{which}, and torch {torch.version} has only {archs}: {fix}"
    return Check("architecture", FAIL, words)


def require_code(device: str) -> None:
    """Raises ValueError if torch has no code for this GPU, whose first kernel would fail.

    ``device`` is one that torch can use: cpu, mps, cuda or cuda:N.
    """
    if device.startswith("cuda"):
        torch = ask_torch(device)
        if torch.cuda is None:  # AMD's GPUs go by the same name, and nobody has tried one
            return
        check = judge_architecture(torch.devices[0], torch)
        if check.state == FAIL:
            raise ValueError(check.words)


def _other_torch(capability: tuple[int, int]) -> str:
    if capability < (5, 0):
        return "it is too old for any torch that this runs on. Use --device cpu"
    if capability < (7, 5):
        return f"torch's CUDA 12.6 builds up to 2.14 still have it: {_CU126}"
    return f"a newer torch has it: {_CU130}"


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


def judge_kernel(device: Device) -> Check:
    """Does it compute, and rightly?

    Products of small integers are exact in float32, and where a chip rounds to TF32 or bfloat16 as
    well, so nothing but equality will do.
    """
    import torch

    dice = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-8, 9, (256, 256), generator=dice) for _ in range(2))
    which = f"{device.device} ({device.name})"
    try:
        found = compute(device.device, left.float(), right.float())
    except RuntimeError as error:  # torch's errors of devices are of this kind
        words = f"{which} cannot compute: {first_line(error)}"
        if device.capability and "no kernel image" in words:
            words += f". It is {_sm(device.capability)}: {_other_torch(device.capability)}"
        return Check("kernel", FAIL, words)
    wrong = int((found.double() != left @ right + left).sum())
    if wrong:
        words = f"{which} computes wrongly: {wrong:,} of {found.numel():,} numbers of a product. "
        words += "Do not train on it: it or its driver is broken"
        return Check("kernel", FAIL, words)
    return Check("kernel", OK, f"{which} computes, and rightly")


def judge_precision(device: Device) -> Check:
    chosen = type_name(resolve_precision("auto", resolve_device(device.device)))
    return Check(
        "precision", OK, f"{device.device} computes in {chosen}, unless --precision differs"
    )


def judge_space(what: str, free: int, other: str) -> Check:
    """Is there space for a run? ``other``: what else to give if there is not."""
    words = f"{human_bytes(free)} free for {what}"
    if free < LEAST:
        least = f"{human_bytes(LEAST)} is the least: free some, or give {other}"
        return Check("disk", FAIL, f"only {words}, and {least}")
    if free < PLENTY:
        return Check("disk", NOTE, f"{words}: little for more than a small model")
    return Check("disk", OK, words)


def judge_writing(name: str, what: str, root: Path, other: str, links: bool = False) -> Check:
    """May this process write where ``root`` is or will be? It is tried, and cleaned up.

    ``links``: as a store does it, which takes hard links. ``other``: what else to give.
    """
    folder = _nearest(root / "tmp" if links else root)  # a store writes all files there first
    try:
        with tempfile.TemporaryDirectory(prefix="preflight-", dir=folder) as scratch:
            place = Disk(Path(scratch))
            (place.create if links else place.replace)("probe", b"it can be written\n")
    except StoreError as error:
        return Check(name, FAIL, str(error).replace(scratch, str(root)))
    except OSError as error:
        return Check(name, FAIL, _refused(folder, error.strerror or str(error), other))
    for each in sorted(root.iterdir()) if links and root.is_dir() else ():
        if each.is_dir() and not os.access(each, os.W_OK | os.X_OK):  # another user ran before
            return Check(name, FAIL, _refused(each, "Permission denied", other))
    return Check(name, OK, f"can write to {what}")


def _refused(folder: Path, why: str, other: str) -> str:
    words = f"cannot write to {folder} ({why})"
    if not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid():
        return f"{words}: make it writable (chmod u+w, a mount without :ro), or give {other}"
    us = os.getuid()
    return (
        f"{words}, which belongs to uid {folder.stat().st_uid}; this process is uid {us}: give it "
        f"away with all that lies beside it (sudo chown -R {us}:{os.getgid()} ...), "
        f"or run the container as its owner (docker run --user $(id -u):$(id -g)), or give {other}"
    )


def _judge_temporary() -> Check:
    folder = tempfile.gettempdir()
    return judge_writing("temporary files", folder, Path(folder), "another place with TMPDIR")


def judge_shared(size: int, gpus: int) -> Check:
    """Processes of several GPUs exchange data there; Docker gives 64 MiB unless told."""
    words = f"/dev/shm has {human_bytes(size)}"
    if gpus > 1 and size < SHARED:
        words += f", little for {gpus} GPUs: start the container with --shm-size 1g"
        return Check("shared memory", NOTE, words)
    return Check("shared memory", OK, words)


def _nearest(path: Path) -> Path:
    """The directory itself, or the first above it that there is."""
    return next(each for each in (path, *path.absolute().parents) if os.path.exists(each))


def _free(root: Path) -> int:
    return shutil.disk_usage(_nearest(root)).free


def _shared() -> int:
    return shutil.disk_usage("/dev/shm").total


def _said(error: Exception) -> str:
    """A ValueError is written for users; of anything else the type says more than its words."""
    line = first_line(error)
    return line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"
