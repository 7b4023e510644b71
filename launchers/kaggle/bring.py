"""What a session has left with Kaggle, brought into the launch's own store.

Of a session that ended in order that is a pack of its records, and the blobs that are new; of one
that was killed the store as it stood, or nothing at all. Blobs that we have are not fetched, and
what was fetched stays on this machine until all is in the store, so that a fetch that is cut goes
on. Every blob is held against its name on its way in, and what a store lacks is left out.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from launchers.kaggle import pack
from launchers.kaggle.client import Client
from launchers.kaggle.kernel import output_name
from pipeline.store.places import caches
from pipeline.store.store import Store

_LAST = "ignite-llm ended: "  # as script.py says it


def bring(client: Client, store: Store, slug: str, number: int, label: str) -> None:
    """Merge what the session of a version has left; ``label`` is NAME/ATTEMPT."""
    folder = caches() / "kaggle" / f"{slug}-{number}"
    for file, url in client.files(slug, number):
        inside = output_name(file)
        if inside == pack.NAME:
            _fetch(client, url, folder / inside)
            pack.unpack(folder / inside, folder)
        elif inside and pack.KEPT.fullmatch(inside) and not _has(store, inside):
            _fetch(client, url, folder / inside)
    if not folder.exists():
        return
    source = pack.guest(folder)
    pack.merge(source, store)
    name, _, attempt = label.partition("/")
    words = [f"launch/{name}/box/{attempt}"]
    output = f"launch/{name}/output/{attempt}"
    words += [f"{output}/{piece}" for piece in source.names(output)]
    for word in words:
        if (data := source.read(word)) is not None:
            store.replace(word, data)
    shutil.rmtree(folder)


def _has(store: Store, name: str) -> bool:
    return name.startswith("blob/") and store.disk.stat(name) is not None


def _fetch(client: Client, url: str, file: Path) -> None:
    if not file.exists():
        client.download(url, file)


def last_word(log: str) -> dict[str, Any] | None:
    """How a session ended, by the last line of its own that it printed: ``code`` and ``why``."""
    for line in reversed(log.splitlines()):
        if line.startswith(_LAST):
            try:
                told = json.loads(line.removeprefix(_LAST))
                return {"code": int(told["code"]), "why": str(told["why"])}
            except (ValueError, KeyError, TypeError):
                return None
    return None
