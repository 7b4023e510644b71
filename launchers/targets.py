"""From the name of a target to what speaks for it: each is loaded when it is asked for.

What a target needs to know of a launch is in the launch's order, so that any machine which has the
store and the account's key can see to it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from launchers.launches import Launch, launches
from launchers.target import Away, Box, Refused, Target
from pipeline.store.store import Store

LENDING = ("vast", "kaggle")  # those whose boxes can be listed and destroyed


def connect(
    name: str, store: Store, options: Mapping[str, Any], secrets: Mapping[str, str] | None = None
) -> Target:
    """The target of an order; ``secrets`` are for boxes that it is to make.

    Raises ValueError, with what to do, if its package or the account's key is missing.
    """
    if name == "vast":
        from launchers.vast.command import target as vast

        return vast(options, secrets or {})
    if name == "kaggle":
        from launchers.kaggle.command import target as kaggle

        return kaggle(store, options)
    raise ValueError(f"{name} lends no machines that could be seen to from here")


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
    """Is a key of that account where one would look for it? Nothing is loaded for that."""
    if name == "vast":
        from launchers.vast.client import has_key as vast

        return vast()
    from launchers.kaggle.client import has_key as kaggle

    return kaggle()


def seen_to(launch: Launch) -> Target:
    """The target of a launch, to look at its boxes and destroy them; it can make none."""
    order = launch.order()
    return connect(order.target, launch.store, order.options)
