"""The request that rents a box, and what is in it.

A box gets the program of onstart.py as its arguments, the errand as that program's argument, and
the secrets as variables: a value may have 256 characters there, and a session token has more, so
they travel in pieces. Vast.ai's hosts can read all of that: what is sent should be scoped and
short-lived, and is never the key of the account.

The image is Vast.ai's business to fetch, so it must be public. The stock one was not tried on a
rented box; with another (an own build of this project's Dockerfile, say) nothing is installed.
"""

import ast
import base64
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launchers.credentials import pieces
from launchers.target import Errand, Offer

IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"  # Python 3.11 and torch; runs on sm_75+
# what the service takes; where its own documents disagree, the least
ARGUMENTS, LABEL, NAME, ENVIRONMENT, LEAST_DISK = 4000, 256, 1024, 32_768, 8
_PROGRAM = Path(__file__).with_name("onstart.py")


@dataclass(frozen=True)
class VastOptions:
    """What is wanted of Vast.ai. All of it may be written down: none of it is secret."""

    gpu: str = "RTX 4090"  # as Vast.ai calls it; several with commas: any of them
    gpus: int = 1
    disk: int = 40  # GB; fixed for the life of a box
    max_price: float = 0.5  # dollars an hour, with the disk
    reliability: float = 0.98
    down: float = 200.0  # Mb/s, at least
    up: float = 100.0
    interruptible: bool = False  # cheaper, and gone without notice when somebody bids more
    bid: float | None = None  # dollars an hour; None: a little above the least that is taken
    image: str = IMAGE
    cuda: float | None = None  # that the driver must know; None: told by the image's name
    region: str = ""  # two-letter countries with commas; nothing: anywhere
    download: float = 10.0  # GB that a run takes from the net, its image among them
    upload: float = 10.0  # GB that it puts into the store

    def __post_init__(self) -> None:
        if self.bid is not None and not self.interruptible:
            raise ValueError(f"--bid {self.bid:g} goes with --interruptible: add that, or leave it")
        if self.disk < LEAST_DISK:
            raise ValueError(f"--disk {self.disk}: Vast.ai gives {LEAST_DISK} GB or more")
        if not self.gpu.strip() or self.gpus < 1:
            raise ValueError(f"--gpu {self.gpu!r} x {self.gpus}: name a GPU, such as RTX 4090, x 1")
        if not self.image or len(self.image) > NAME:
            raise ValueError(f"--image {self.image[:80]!r}: Vast.ai takes 1 to {NAME} characters")

    @property
    def needs_cuda(self) -> float:
        """The CUDA version that a host's driver must support for the image."""
        if self.cuda is not None:
            return self.cuda
        if told := re.search(r"cuda(\d+\.\d+)|cu(\d\d)(\d)\b", self.image):
            return float(told[1] or f"{told[2]}.{told[3]}")
        raise ValueError(
            f"--image {self.image}: its name does not say which CUDA it is built for (as cuda12.8 "
            "or cu130 would): say it with --cuda"
        )


def program() -> str:
    """onstart.py in one line that Python runs: its comments go, and it is compressed."""
    tree = ast.parse(_PROGRAM.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    packed = base64.b85encode(zlib.compress(ast.unparse(tree).encode(), 9)).decode()
    return f"import base64,zlib;exec(zlib.decompress(base64.b85decode('{packed}')))"


def request(
    errand: Errand, offer: Offer, options: VastOptions, secrets: Mapping[str, str]
) -> dict[str, Any]:
    """The body of the request that rents ``offer``. Raises ValueError if it cannot be sent."""
    if "://" not in errand.store:
        where = f"{errand.store!r} is here" if errand.store else "the box's own disk goes with it"
        raise ValueError(
            f"a box at Vast.ai needs a store that it can reach, and {where}: give --store a URL "
            "such as s3://bucket/folder"
        )
    told = base64.b64encode(json.dumps(asdict(errand), separators=(",", ":")).encode()).decode()
    arguments = ["python3", "-c", program(), told]
    if (size := sum(map(len, arguments))) > ARGUMENTS:
        raise ValueError(
            f"what a box is to do takes {size} bytes, and Vast.ai takes {ARGUMENTS}: give --store "
            f"a shorter URL than {errand.store}"
        )
    if len(errand.label) > LABEL:
        raise ValueError(f"the label {errand.label[:40]}... has more than {LABEL} characters")
    body = {
        "client_id": "me",
        "image": options.image,
        "label": errand.label,
        "disk": options.disk,
        "env": _variables(secrets),
        "runtype": "args",
        "args": arguments,
        "target_state": "running",
        "cancel_unavail": True,  # else it may wait for the GPU for ever, and its disk bills
    }
    return body | ({"price": offer.facts["bid"]} if options.interruptible else {})


def _variables(secrets: Mapping[str, str]) -> dict[str, str]:
    found = pieces(secrets)
    if (size := sum(len(name) + len(value) for name, value in found.items())) > ENVIRONMENT:
        raise ValueError(
            f"the secrets for the box ({', '.join(secrets)}) take {size} bytes, and Vast.ai takes "
            f"{ENVIRONMENT}: send fewer, or shorter ones"
        )
    return found


def masked(body: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
    """The body of a request for people to see: which secrets are in it, and not their values."""
    return {**body, "env": dict.fromkeys(body["env"], f"*** (of {', '.join(secrets)})")}
