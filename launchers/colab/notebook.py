"""A launch as a notebook for Colab: all that is to run, and not one secret.

The sources are in it, as base64 of the bundle, about 330 KB of letters in one folded cell. So it
works without an account anywhere (a repository may be private, and a store by URL needs the very
packages that the bundle names), and it runs what it was written with, to the byte. It is a
function of what it is told: no times, no random ids. It has no outputs. The order is in it, too, so
that it goes on where a store has lost it, or where Drive is all there is.

Every cell may be run again at any time: "Run all" is how the run goes on.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from launchers.bundle import Bundle
from launchers.credentials import names, unhidden
from launchers.launches import Order
from pipeline.redact import redacted_tree

GPUS = ("T4", "L4", "A100")
ON_DRIVE = "/content/drive/"
_LINE = 10_000  # letters of the program in a line: editors choke on longer ones


@dataclass(frozen=True)
class Told:
    """What a notebook is told. ``drive`` is a folder of Drive, if the store is not elsewhere."""

    order: Order
    bundle: Bundle
    store: str = ""
    drive: str = ""
    gpu: str = "T4"
    environment: Mapping[str, str] = field(default_factory=dict)  # no secrets

    @property
    def mounts(self) -> bool:
        """Is Drive needed?"""
        return bool(self.drive) or self.order.recipe["data"]["source"].startswith(ON_DRIVE)


def notebook(told: Told) -> str:
    """The notebook's file. Raises ValueError for an order that tells a secret, or no nbformat."""
    if redacted_tree(asked := vars(told.order)) != asked:
        raise ValueError(
            "the order would tell a secret, such as a password or a signature in the URL of the "
            "text, to whoever can read the notebook: give the text another address, or bring it "
            "into the store first (`pipeline run prepare --store ... --data URL`)"
        )
    try:
        import nbformat
    except ImportError as error:
        raise ValueError(
            "writing a notebook needs a package that is not installed: "
            "pip install 'ignite-llm[colab]'"
        ) from error
    make = nbformat.v4
    cells = [make.new_markdown_cell(_about(told), id="about")]
    for name, source in sources(told).items():
        folded = {"cellView": "form"} if name in ("settings", "program") else {}
        cells.append(make.new_code_cell(source, id=name, metadata=folded))
    metadata = {
        "accelerator": "GPU",
        "colab": {"gpuType": told.gpu, "provenance": []},
        "kernelspec": {"display_name": "Python 3", "name": "python3"},
        "language_info": {"name": "python"},
    }
    made = make.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def sources(told: Told) -> dict[str, str]:
    """The code of each cell, by its name."""
    cells = {"settings": _settings(told), "program": _program(told), "unpack": _UNPACK}
    ways, others = names(told.store) if told.store else ([], [])
    if ways:
        cells["secrets"] = _secrets(ways, others, told.environment)
    if told.mounts:
        cells["drive"] = "# @title Drive\ncells.mount(ROOT)"
    minutes = ", COPY_MINUTES" if told.drive else ""
    cells["train"] = f"{_TRAIN}ENDED = cells.train(TOLD, ROOT{minutes})"
    cells["end"] = "# @title How far it is\ncells.finish(TOLD, ROOT, ENDED, GIVE_BACK)"
    return cells


def _about(told: Told) -> str:
    place = f"`{told.store}`"
    if told.drive:
        place = f"your Drive, in `{told.drive}/{told.order.name}`"
    do = "Drive asks for your consent once." if told.mounts else ""
    if told.store and names(told.store)[0]:
        do = (
            "The store's credentials are taken from your secrets: click the key on the left, add "
            f"those that the cell below names, and switch on *Notebook access*. {do}"
        )
    return (
        f"# {told.order.name}\n\n"
        f"Trains a language model (size {told.order.recipe['size']}) with ignite-llm. All that is "
        f"made goes to {place}, while it trains.\n\n"
        f"**Runtime > Run all** begins it. {do}\n\n"
        "If Colab takes the machine away, or you pressed stop: **Run all** again, here or in a "
        "copy of this notebook, goes on from the last checkpoint. When it has ended, the machine "
        "is given back."
    )


def _settings(told: Told) -> str:
    lines = [
        "# @title Settings",
        'GIVE_BACK = True  # @param {type:"boolean"}',
        *(['COPY_MINUTES = 5  # @param {type:"number"}'] if told.drive else []),
        'ROOT = "/content"  # where this machine keeps all of it',
    ]
    return "\n".join(lines)


def _program(told: Told) -> str:
    """The order and the sources, which are letters that nobody reads."""
    what = {
        "launch": told.order.name,
        "bundle": told.bundle.digest,
        "store": told.store,
        "drive": told.drive,
        "order": told.order.body().decode(),
    }
    letters = base64.b64encode(told.bundle.data).decode()
    lines = [letters[at : at + _LINE] for at in range(0, len(letters), _LINE)]
    return "\n".join(
        [
            f"# @title The program, {len(letters) // 1000:,} KB, as letters for the next cell",
            "TOLD = {",
            *(f"    {name!r}: {value!r}," for name, value in what.items()),
            "}",
            'PROGRAM = """',
            *lines,
            '"""',
        ]
    )


_UNPACK = """\
# @title Check and unpack
import base64, hashlib, io, sys, tarfile

data = base64.b64decode(PROGRAM)
if hashlib.sha256(data).hexdigest() != TOLD["bundle"]:
    raise ValueError("the program in this notebook is damaged: write the notebook anew")
ROOM = f"{ROOT}/ignite-{TOLD['bundle'][:12]}"
with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    archive.extractall(ROOM, filter="data")
sys.path.insert(0, ROOM)
from launchers.colab import cells"""

_TRAIN = """\
# @title Train. The stop button saves all and stops; Run all goes on
"""


def _secrets(ways: list[list[str]], others: list[str], environment: Mapping[str, str]) -> str:
    known = unhidden(environment)
    lines = ["# @title Secrets, from the key on the left: nothing of them is kept"]
    if known:
        lines += ["import os", ""]
        lines += [f"os.environ[{name!r}] = {value!r}" for name, value in sorted(known.items())]
    others = [name for name in others if name not in known]
    lines.append(f"cells.secrets({ways!r}, {others!r})")
    return "\n".join(lines)
