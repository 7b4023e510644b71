"""Settings of the machine: how a run is computed, never what it computes. No key holds them."""

import contextlib
import ctypes
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Torch's threads wait for work without rest for some milliseconds, if nothing else was said before
# it is loaded. They take the cores from whatever else has work: attention of ours, other programs.
# This is some tenth of a millisecond.
REST = {"GOMP_SPINCOUNT": "10000"}
# --precision's words for torch's types
TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Machine:
    """What ``pipeline run`` was told about the machine; ``auto`` and 0 mean: find out."""

    device: str = "auto"
    precision: str = "auto"
    micro_batch: int = 0  # sequences worked on at once; 0: what fits, see fit.py
    activation_checkpointing: str = "auto"  # or "on", "off"
    compile: str = "auto"  # or "on", "off": see compiling.py
    deterministic: bool = False  # the same bits every time on a GPU as well
    threads: int = 0  # CPU threads of torch; 0: torch's own choice
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 0  # additionally every so many steps; 0: by time alone
    keep: int = 2  # so many of the newest checkpoints stay until there is a result
    processes: int = 1  # that train together; 0: one for each GPU
    sharding: str = "auto"  # or "on", "off": does each process hold but a part of the weights?
    workers: int = 0  # processes that encode; 0: one for each core, if the text is worth it

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise ValueError(f"--device {self.device}: it must be auto, cpu, cuda, cuda:N or mps")
        if self.activation_checkpointing not in ("auto", "on", "off"):
            given = f"--activation-checkpointing {self.activation_checkpointing}"
            raise ValueError(f"{given}: it must be auto, on or off")
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"--compile {self.compile}: it must be auto, on or off")
        if self.sharding not in ("auto", "on", "off"):
            raise ValueError(f"--sharding {self.sharding}: it must be auto, on or off")


def torchrun() -> tuple[int, int] | None:
    """This process's rank and the number of processes, if torchrun has started several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return None
    if os.environ.get("LOCAL_WORLD_SIZE", str(size)) != str(size):
        raise ValueError(
            f"torchrun has started {size} processes on several machines, and training takes those "
            "of one: torchrun --standalone --nproc-per-node N, or pipeline run --processes N"
        )
    return int(os.environ["RANK"]), size


def resolve_device(name: str) -> "torch.device":
    """The device to compute on; ``auto`` is CUDA, then Apple's MPS, then the CPU.

    Raises ValueError if the one asked for is not there.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    if not {"cuda": cuda, "mps": mps, "cpu": True}[kind]:
        raise ValueError(
            f"--device {name}: torch {torch.__version__} sees no such device here. "
            "Use --device cpu, or install a build of torch for your GPU"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: here they end at cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)


def type_name(dtype: "torch.dtype") -> str:
    """``bfloat16``"""
    return str(dtype).removeprefix("torch.")


def resolve_precision(name: str, device: "torch.device") -> "torch.dtype":
    """The type that branches compute in on this device. Raises ValueError for what is no good."""
    import torch

    return getattr(torch, TYPES[precision_on(name, device)])


def precision_on(name: str, device: "torch.device") -> str:
    """The same by the option's name: fp32, bf16 or fp16."""
    import torch

    capability, chip = None, ""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if name != "auto":  # it is for what may have to be said
            chip = torch.cuda.get_device_name(device)
    return choose_precision(name, device.type, capability, cpu_flags(), chip)


def choose_precision(
    name: str,
    kind: str,
    capability: tuple[int, int] | None = None,
    flags: Collection[str] = (),
    chip: str = "this GPU",
) -> str:
    """fp32, bf16 or fp16: what was asked for, or for ``auto`` what the chip has real units for.

    ``kind`` is cuda, mps or cpu. Judged by a GPU's compute capability and a CPU's ``flags``,
    because torch's ``is_bf16_supported`` also says yes where bfloat16 is emulated, many times
    slower. Raises ValueError for what the chip cannot do well.
    """
    if name == "auto":
        if kind == "cuda":
            assert capability is not None
            return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
        fast = kind == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags)
        return "bf16" if fast else "fp32"
    if name not in TYPES:
        raise ValueError(f"--precision {name}: it must be auto, fp32, bf16 or fp16")
    if why := _no_good(name, kind, capability, chip):
        best = choose_precision("auto", kind, capability, flags)
        raise ValueError(f"--precision {name}: {why}. Use --precision {best}")
    return name


def _no_good(name: str, kind: str, capability: tuple[int, int] | None, chip: str) -> str:
    """Why nobody should compute in this type there; nothing if it is all right."""
    if name == "bf16" and kind == "cuda" and capability < (8, 0):
        return f"{chip} only emulates bfloat16, many times slower than what it has units for"
    if name == "fp16" and kind == "cuda" and capability < (7, 0):
        return f"{chip} has no tensor cores, and sums that it adds up in float16 overflow"
    if name == "fp16" and kind != "cuda":
        return "slow and no use on a CPU" if kind == "cpu" else "untried on Apple's GPUs"
    return ""


def cpu_flags() -> frozenset[str]:
    """What the CPU can do beyond the common, in the words of Linux; elsewhere nothing is known."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def allow_tf32(device: "torch.device") -> None:
    """Let GPUs of capability 8.0 or newer multiply float32 matrices on their tensor cores.

    They round what goes in to 10 bits behind the point and add up in float32. So fp32 on such a GPU
    differs from fp32 on an older one or a CPU in the fourth digit of a product, not in the last; it
    is as repeatable as before on one kind of GPU.
    """
    import torch

    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        # not set_float32_matmul_precision: that changes what CPUs compute as well
        torch.backends.cuda.matmul.allow_tf32 = True


def keep_freed_memory() -> None:
    """Let the C library keep what torch frees on a CPU, for the next tensor.

    Glibc gives large blocks back at once and asks for new ones, and the kernel clears each of
    their pages again, in every step. Elsewhere nothing is changed.
    """
    # neither large blocks of their own, M_MMAP_MAX, nor ever smaller, M_TRIM_THRESHOLD
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)
        library.mallopt(-1, -1)


def be_deterministic() -> None:
    """Let torch choose, of its kernels for GPUs, those that give the same bits every time.

    To be called before the first product on a GPU: cuBLAS reads the variable once.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # we read nothing uninitialised
