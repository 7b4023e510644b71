"""Named tensors in a file, without a second copy of them in memory.

The format is safetensors, so that anyone can read the files: eight bytes that hold the length of
the header, the header (JSON: type, shape and place of each tensor), and the numbers, one tensor
behind the other. ``write`` makes the bytes that the library's ``save_file`` makes. It stands here
because the library wants all tensors in main memory at once, which on a graphics card means a
copy of the whole state, and because before version 0.8 it copied even those that were there. Cost:
nothing for tensors in main memory, 16 MiB for those on another device; one tensor to read.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from model.parallel import whole

# the types of weights and counters as the format calls them, in the order they stand in a file:
# the widest first, so that every tensor starts at a multiple of its numbers' size
_TYPES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 8
_SLICE = 1 << 24  # bytes; what is brought over from another device at once


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as a new file. One that is there goes: whoever has linked it keeps its bytes.

    It is not flushed to the disk: that is the business of whoever takes it in.
    """
    assert sys.byteorder == "little"  # as the format is; no byte is turned around here
    names = in_order(tensors)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(_header({name: tensors[name] for name in names}))
        for name in names:
            for piece in _pieces(whole(tensors[name].detach())):
                file.write(piece)


def in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names as they stand in a file; processes that share tensors bring them together so."""
    order = list(_TYPES)
    return sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    described, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        described[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in row-major order; only one that is not contiguous is copied whole."""
    flat = tensor.contiguous().view(-1)
    count = _SLICE // flat.element_size()
    for first in range(0, len(flat), count):
        yield memoryview(flat[first : first + count].cpu().view(torch.uint8).numpy())


class Stored(Mapping[str, Tensor]):
    """The tensors of a file by name, each read when it is asked for. Do not write into them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        # opened for each tensor: a file is mapped whole, and what was read of it stays in memory
        # until it is closed and the last tensor of it is gone
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        with safe_open(self.path, "pt") as file:
            return iter(file.keys())

    def __len__(self) -> int:
        return sum(1 for _ in self)
