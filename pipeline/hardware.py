"""What torch and the system say of what this machine can compute on. Nothing is judged here.

Cost: the import of torch and, if a GPU may be used, the start of CUDA.
"""

import os
import platform
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """Something to compute on. The CPU and Apple's GPUs have no compute capability."""

    device: str
    name: str
    capability: tuple[int, int] | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Torch:
    """What torch says of itself and of what it could compute on here, as ``--device`` asks."""

    version: str | None = None
    cuda: str | None = None  # what it was built for; None: for no CUDA
    archs: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    gpus: int = 0  # that it can use
    error: str = ""  # why it can use none


@dataclass(frozen=True)
class Gpu:
    """What the system says of NVIDIA GPUs: has this machine or container one, and its driver."""

    given: bool = False
    driver: str | None = None
    why: str = ""  # it has none though there are signs of one


def ask_torch(device: str) -> Torch:
    """What torch says. CUDA is started only if it may be used."""
    import torch

    gpus, error = 0, ""
    if device == "auto" or device.startswith("cuda"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is judged here, in better words
            gpus, error = _start_cuda(torch)
    mps = torch.backends.mps.is_available()
    devices = tuple(_describe(torch, name) for name in names(device, gpus, mps))
    archs = tuple(torch.cuda.get_arch_list())
    return Torch(torch.__version__, torch.version.cuda, archs, devices, gpus, error)


def _start_cuda(torch: Any) -> tuple[int, str]:
    """How many GPUs can be used, or why none can."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return 0, first_line(error)
    return torch.cuda.device_count(), ""


def names(device: str, gpus: int, mps: bool) -> list[str]:
    """The devices that ``--device`` means here; none if what it names is not here."""
    there = [f"cuda:{index}" for index in range(gpus)]
    if device == "auto":
        return there or ["mps" if mps else "cpu"]
    if device == "cuda":
        return there
    return [device] if device in (*there, "cpu", *(["mps"] if mps else [])) else []


def _describe(torch: Any, name: str) -> Device:
    if not name.startswith("cuda"):
        return Device(name, platform.machine())
    found = torch.cuda.get_device_properties(name)
    return Device(name, found.name, (found.major, found.minor), found.total_memory)


def compute(device: str, left: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
    """``left @ right + left``, computed there.

    The product is a library's kernel and the sum one of torch's own: either may lack the chip.
    """
    left, right = left.to(device), right.to(device)
    return (left @ right + left).cpu()


def ask_gpu(system: Path = Path("/")) -> Gpu:
    """Signs of an NVIDIA GPU. ``system``: the root of its file system.

    A container sees its host's /proc, so only a device or a program that was put into it shows that
    it was given a GPU.
    """
    try:
        kernel = (system / "proc/driver/nvidia/version").read_text()
    except OSError:
        kernel = ""
    driver, program, why = _version(kernel), shutil.which("nvidia-smi"), ""
    if program and not driver:
        driver, why = _ask_nvidia_smi(program)
    devices = [*system.glob("dev/nvidia[0-9]*"), *system.glob("dev/nvidiactl")]
    answers = driver or (system / "dev/dxg").exists()  # dxg: any GPU of Windows
    if not devices and not (program and answers):
        if driver:
            why = f"there is NVIDIA driver {driver}, but no /dev/nvidia0: docker run --gpus all ..."
        return Gpu(False, driver, why)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Gpu(False, driver, "CUDA_VISIBLE_DEVICES hides what there is")
    return Gpu(True, driver)


def _version(text: str) -> str | None:
    """The driver's version: 535.104.05 in ``... x86_64 Kernel Module  535.104.05  Sat Aug ...``."""
    match = re.search(r"(?<![\w.])\d{3}(\.\d+)+(?![\w.])", text)
    return match[0] if match else None


def _ask_nvidia_smi(program: str) -> tuple[str | None, str]:
    """The driver's version, or why there is none."""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return None, "nvidia-smi gave no answer in 10 s"
    except OSError as error:
        return None, f"nvidia-smi: {error.strerror}"
    if told.returncode == 0 and (driver := _version(told.stdout)):
        return driver, ""
    return None, f"nvidia-smi: {' '.join((told.stdout + told.stderr).split())}"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
