"""What a store remembers of its runs beside their logs: the last recipe, the digests of sources.

    ref/latest             the recipe of the last run, for verbs that are told none
    ref/source/<digest>    what a source's digest was when it was last there; named by its place

Both are for convenience: whoever writes last wins, and no result depends on them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.data.sources import DATASETS
from pipeline.hashing import canonical, digest
from pipeline.recipe import Recipe, from_tree
from pipeline.redact import redacted
from pipeline.store.store import Store

LATEST = "ref/latest"


def remember(store: Store, recipe: Recipe) -> None:
    """Make this recipe the one that verbs without options speak of."""
    tree = recipe.tree()
    tree["data"]["source"] = _place(recipe)
    data = canonical(tree)
    if store.read(LATEST) != data:
        store.replace(LATEST, data)


def latest(store: Store) -> Recipe | None:
    """The recipe of the last run on this store; None if there was none.

    Raises ValueError if it is not a recipe that this version can read.
    """
    data = store.read(LATEST)
    if data is None:
        return None
    try:
        return from_tree(json.loads(data))
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{store.place}/{LATEST}, the recipe of the last run, is of another version or "
            "damaged: say what to run, with --size, --data or --recipe"
        ) from None


def source_digest(
    store: Store, recipe: Recipe, fetch: bool, find: Callable[[], str | None]
) -> str | None:
    """The digest of the recipe's source, or what it was when it was last there.

    A model stays usable after its text was moved away, and a finished run stays finished.
    """
    name = f"ref/source/{digest(os.fsencode(_place(recipe)))}"
    known = store.read(name)
    try:
        found = find()
    except ValueError:
        if known is None:
            raise
        found = None
    if fetch and found and known != found.encode():
        store.replace(name, found.encode())
    return found or (known.decode() if known else None)


def _place(recipe: Recipe) -> str:
    """The source's name, such that it means the same in every directory and tells no secret."""
    spec = recipe.data.source
    if "://" in spec or spec in DATASETS:
        return redacted(spec)
    return str(Path(spec).expanduser().absolute())
