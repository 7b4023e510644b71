"""Settings of the machine: how a run is computed, never what it computes. No key holds them."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """What ``pipeline run`` was told about the machine; ``auto`` and 0 mean: find out."""

    device: str = "auto"
    precision: str = "auto"
    micro_batch: int = 0  # sequences worked on at once; 0: as many as are 16,384 tokens
    threads: int = 0  # CPU threads of torch; 0: torch's own choice
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 0  # additionally every so many steps; 0: by time alone
    keep: int = 2  # so many of the newest checkpoints stay until there is a result

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise ValueError(f"--device {self.device}: it must be auto, cpu, cuda, cuda:N or mps")


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``5m``, ``1h30m``. Raises ValueError for anything else."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if not text or match is None:
        raise ValueError(f"{text!r} is not a duration: write it as 90s, 5m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


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


def resolve_precision(name: str, device: "torch.device") -> "torch.dtype":
    """The type that branches compute in: bfloat16 where the chip has real units for it.

    Judged by compute capability and CPU features, because ``is_bf16_supported`` also says yes where
    bfloat16 is emulated, many times slower. Raises ValueError for what the chip cannot do.
    """
    import torch

    native = _has_bfloat16(device)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name == "auto":
        name = "bf16" if native else "fp32"
    if name not in types:
        raise ValueError(f"--precision {name}: it must be auto, fp32 or bf16")
    if name == "bf16" and device.type == "cuda" and not native:
        raise ValueError(
            f"--precision bf16: {torch.cuda.get_device_name(device)} only emulates bfloat16, "
            "many times slower than float32. Use --precision fp32"
        )
    return types[name]


def _has_bfloat16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        try:
            from pathlib import Path

            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False
