"""The kernel of a launch: the one file of code that Kaggle takes, and the request that runs it.

The file is ``script.py``, which anybody can read in Kaggle's editor, and behind it what the session
is told and the bundle. No secret is in it: the session has those from the account's own secrets.
"""

import base64
import dataclasses
import json
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launchers.credentials import names, unhidden
from launchers.kaggle.pack import NAME as PACK
from launchers.target import Errand, Refused

LIMIT = 12 * 3600.0  # seconds that Kaggle gives a session
# of them, for saving and leaving: nobody promises that a session that is cut off leaves anything
MARGIN = 20 * 60.0
MOST = 1_000_000  # bytes of a file of code
SHAPE = "NvidiaTeslaT4"  # two of them. Without a shape it used to be a P100, for which torch is not
STORE = "/kaggle/working/store"
WORKING = "/kaggle/working"
_MARK = re.compile(r"^# launch ([\w-]+)/(\d+)$", re.M)


def secrets(store: str) -> dict[str, list[str]]:
    """The names of secrets that a session needs for a store, and that it uses if they are there.

    Raises Refused for what a session cannot open.
    """
    try:
        ways, others = names(store)
    except ValueError as error:
        raise Refused(str(error)) from error
    needed = [name for name in ways[0] if all(name in way for way in ways)] if ways else []
    some = dict.fromkeys(name for way in ways for name in way if name not in needed)
    return {"needed": needed, "optional": [*some, *others]}


def told(errand: Errand, order: bytes, sent: str, environ: Mapping[str, str] = os.environ) -> dict:
    """What a session is told. ``sent`` is the sha256 of the pack that is mounted for it, or -."""
    native = not errand.store
    return {
        "errand": dataclasses.asdict(errand) | ({"store": STORE} if native else {}),
        "order": order.decode() if native else None,
        "sent": sent,
        "environment": {} if native else unhidden(environ),
        "secrets": secrets(errand.store),
    }


def source(told: dict[str, Any], bundle: bytes) -> str:
    """The file of code. Raises Refused if Kaggle would not take so much."""
    errand = told["errand"]
    readable = Path(__file__).with_name("script.py").read_text(encoding="utf-8")
    letters = "\n".join(textwrap.wrap(base64.b64encode(bundle).decode(), 100))
    text = (
        f"# launch {errand['name']}/{errand['attempt']}\n{readable}\n"
        f'told = json.loads(r"""\n{json.dumps(told, indent=1)}\n""")\n\n'
        f'archive = """\n{letters}\n"""\n\n'
        'if __name__ == "__main__":\n    sys.exit(main(told, archive))\n'
    )
    if len(text.encode()) > MOST:
        raise Refused(
            f"the program is {len(text.encode()):,} bytes as one file of code, and Kaggle takes "
            f"{MOST:,}: are there large files among the sources in {Path(__file__).parents[2]}?"
        )
    return text


def label(source: str) -> str | None:
    """Whose a file of code is, as NAME/ATTEMPT; None if it is not ours."""
    found = _MARK.search(source[:200])
    return f"{found[1]}/{found[2]}" if found else None


def request(owner: str, name: str, text: str, mounted: list[str], seconds: float) -> dict[str, Any]:
    """The request that saves the kernel and runs it, as it is sent."""
    return {
        "slug": f"{owner}/{name}",
        "newTitle": name,  # of which Kaggle makes the same slug
        "text": text,
        "language": "python",
        "kernelType": "script",
        "datasetDataSources": mounted,
        "isPrivate": True,
        "enableGpu": True,
        "enableInternet": True,
        "machineShape": SHAPE,
        "dockerImagePinningType": "original",  # later sessions run on what the first one ran on
        "sessionTimeoutSeconds": int(seconds),
    }


def shown(request: dict[str, Any]) -> dict[str, Any]:
    """A request for people: the same without most of the letters in it."""
    text = re.sub(
        r'(archive = """\n.{40}).*?(\n""")',
        lambda found: f"{found[1]}... ({len(found[0]):,} letters){found[2]}",
        request["text"],
        flags=re.S,
    )
    return request | {"text": text}


def output_name(file: str) -> str | None:
    """What a file of a session's output is called in its store; None if it is none of that.

    The pack of records keeps its name.
    """
    inside = file.removeprefix(f"{STORE.removeprefix(WORKING)[1:]}/")
    return file if file == PACK else inside if inside != file else None
