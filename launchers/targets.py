"""From the name of a target to what speaks for it: each is loaded when it is asked for.

What a target needs to know of a launch is in the launch's order, so that any machine which has the
store and the account's key can see to it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launchers.launches import Launch, launches
from launchers.target import Away, Box, Refused, Target
from pipeline.store.store import Store

Secrets = Callable[[float | None], Mapping[str, str]]
LENDING = ("vast", "kaggle")  # those whose boxes can be listed and destroyed


def connect(
    name: str, store: Store, options: Mapping[str, Any], secrets: Secrets | None = None
) -> Target:
    """The target of an order; ``secrets`` makes what boxes are given, if it is to make some.

    Raises ValueError, with what to do, if its package or the account's key is missing.
    """
    if name == "vast":
        from launchers.vast.command import target as vast

        return vast(options, secrets or _none)
    if name == "kaggle":
        from launchers.kaggle.command import target as kaggle

        return kaggle(store, options)
    raise ValueError(f"{name} lends no machines that could be seen to from here")


def _none(seconds: float | None) -> Mapping[str, str]:
    return {}


def listed(store: Store) -> Iterator[tuple[str, list[Box] | str]]:
    """(target, its boxes of ours, or why they cannot be told), for targets that may have some.

    A target counts if there is a launch of it on the store, or its account's key is at hand.
    """
    used = {order.target for order in orders(store)}
    for name in LENDING:
        if name not in used and not has_key(name):
            continue
        try:
            yield name, connect(name, store, {}).boxes()
        except (Away, Refused, ValueError) as error:
            yield name, str(error)


def orders(store: Store) -> Iterator[Any]:
    """The orders that this version can read."""
    for launch in launches(store):
        try:
            yield launch.order()
        except ValueError:
            continue


def has_key(name: str) -> bool:
    """Is there a key of that account where its own tools look? Nothing is loaded, or read."""
    home, environ = Path.home(), os.environ
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    kaggle = Path(environ.get("KAGGLE_CONFIG_DIR") or home / ".kaggle")
    variables, files = {
        "vast": (
            ("VAST_API_KEY",),
            (config / "vastai" / "vast_api_key", home / ".vast_api_key"),
        ),
        "kaggle": (
            ("KAGGLE_API_TOKEN", "KAGGLE_KEY"),
            (
                *(kaggle / each for each in ("access_token", "access_token.txt", "kaggle.json")),
                *(home / ".kaggle" / "credentials.json", config / "kaggle" / "kaggle.json"),
            ),
        ),
    }[name]
    return any(environ.get(each) for each in variables) or any(file.exists() for file in files)


def seen_to(launch: Launch, secrets: Secrets | None = None, **otherwise: Any) -> Target:
    """The target of a launch, with what was ordered but for ``otherwise``; without ``secrets`` to
    look and to destroy, and not to make boxes."""
    order = launch.order()
    options = {**order.options, "recipe": order.recipe, **otherwise}
    return connect(order.target, launch.store, options, secrets)
