"""Whether training is compiled here, and why not where it does not.

On a GPU by torch.compile: a block's many small passes over memory become few. It takes half a
minute before the first step (21 and 26 s in bench/results/gpu-training.json). On a CPU
torch.compile gave nanoGPT nothing (train_cpu.json there), but attention of our own is worth
compiling (model/attention_fast.py); it takes some seconds, once on a machine.

``auto`` leaves short runs alone: what decides is the work of the whole recipe, not what is left of
it, because a resumed run must compute as it began to, to the last bit.
"""

import importlib.util
from collections.abc import Callable

import torch

from model.compile import compiled
from model.config import ModelConfig, TrainConfig
from pipeline.cards import flops_per_token

# operations of a run that is worth it; minutes on the slowest GPU that can compile
WORTH = {"cuda": 5e15, "cpu": 1e13}


def work(model: ModelConfig, train: TrainConfig, vocab_size: int) -> float:
    """Operations of the whole recipe."""
    return float(train.steps * train.batch * model.context * flops_per_token(model, vocab_size))


def resolve_compile(
    asked: str,
    device: torch.device,
    operations: float,
    note: Callable[[str], None],
    ruled_out: str = "",
) -> bool:
    """Shall it be compiled? ``note`` hears why not if it would have been worth it.

    ``ruled_out`` is why it cannot be, if that is known already. Raises ValueError if it was asked
    for and cannot be.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    triton = importlib.util.find_spec("triton") is not None
    chosen, why = choose_compile(asked, device.type, capability, triton, operations, ruled_out)
    if chosen and (why := _no_kernels() if device.type == "cpu" else _no_compiler(device)):
        refuse(asked, why)
        chosen = False
    if why:
        note(f"not compiled: {why}")
    return chosen


def refuse(asked: str, why: str) -> None:
    """Raises ValueError if there is a reason against compiling and it was asked for."""
    if why and asked == "on":
        raise ValueError(f"--compile on: {why}. Use --compile off")


def choose_compile(
    asked: str,
    kind: str,
    capability: tuple[int, int] | None,
    triton: bool,
    operations: float,
    ruled_out: str = "",
) -> tuple[bool, str]:
    """The choice, and why it is no if that is worth saying."""
    if asked == "off" or (asked == "auto" and operations < WORTH.get(kind, float("inf"))):
        return False, ""
    why = ruled_out or _cannot(kind, capability, triton)
    refuse(asked, why)
    return not why, why


def _cannot(kind: str, capability: tuple[int, int] | None, triton: bool) -> str:
    if kind != "cuda":
        return "" if kind == "cpu" else f"untried on {kind}"
    assert capability is not None
    if capability < (7, 0):
        version = ".".join(map(str, capability))
        return f"torch.compile needs compute capability 7.0, and this GPU has {version}"
    if not triton:
        return "the package triton is not installed (torch for Windows comes without)"
    return ""


def _no_kernels() -> str:
    """Why our kernels do not work on this CPU; nothing if they do. They are compiled if need be."""
    try:
        from model.fast.build import attention_kernels

        attention_kernels()
    except Exception as error:  # numba and LLVM have many, and none is worth a run
        return _said(error)
    return ""


def _no_compiler(device: torch.device) -> str:
    """Why torch.compile does not work there; nothing if it does.

    Triton compiles its launcher with this machine's C compiler and Python's headers, and many have
    neither. Cost: seconds, most of which the first block would take in its place.
    """
    try:
        compiled(lambda x: (x * x + 1).sum())(torch.ones(64, device=device))
    except Exception as error:  # whatever it is, it is not worth the run
        return f"torch.compile does not work here ({_said(error)})"
    return ""


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
