"""From what a person typed to an order in the store that any box can carry out.

Done here and now is what only this machine can do: to say which recipe is meant, to prepare a text
that lies on this disk (the box could not read it), and to send the sources that are to run. What
the box then runs is the same `pipeline run` as anywhere.
"""

import contextlib
from pathlib import Path
from typing import Any

from launchers import bundle, census
from launchers.estimate import OFTEN
from launchers.launches import Launch, Order, new_name
from pipeline.cli.machine_options import machine_words, said_of_machine
from pipeline.cli.process import signals, stop_on_signals
from pipeline.data.sources import DATASETS
from pipeline.engine.engine import Engine
from pipeline.errors import Interrupted
from pipeline.machine import Machine
from pipeline.store.places import trust


def is_here(source: str) -> bool:
    """Does the text lie on this machine, where no box can read it?"""
    return source not in DATASETS and (
        "://" not in source or source.startswith(("file://", "local://"))
    )


def prepare(engine: Engine, machine: Machine) -> None:
    """Bring a text of this machine into the store. Raises Interrupted, or ValueError."""
    from pipeline import ui

    trust(engine.store)
    with signals(), contextlib.closing(ui.choose()) as shown:
        asked = stop_on_signals()
        engine.run("prepare", machine, shown, asked)
        if asked():
            raise Interrupted


def rented(engine: Engine) -> list[str]:
    """What `pipeline run` is told of a machine that is lent to us: all its GPUs are for the run,
    and it saves as often as its checkpoints are worth. What was said otherwise holds."""
    often = OFTEN[engine.recipe.size]
    return machine_words({"processes": "auto", "checkpoint_every": often, **said_of_machine()})


def new_order(
    engine: Engine,
    target: str,
    machine: list[str],
    options: dict[str, Any],
    budget: float | None,
    seconds: float | None,
) -> tuple[Order, bundle.Bundle]:
    """The order, and the bundle that it names; nothing is written yet."""
    packed = bundle.make()
    name, tree = new_name(engine.recipe.size), recipe_of(engine)
    return Order(name, target, tree, machine, packed.digest, options, budget, seconds), packed


def recipe_of(engine: Engine) -> dict[str, Any]:
    """The recipe as an order has it: a text of this machine is named in full."""
    tree = engine.recipe.tree()
    if is_here(tree["data"]["source"]):
        tree["data"]["source"] = str(Path(tree["data"]["source"]).expanduser().absolute())
    return tree


def place(engine: Engine, order: Order, packed: bundle.Bundle) -> Launch:
    """Write both into the store: from here on every machine that knows it can see to it."""
    bundle.send(packed, engine.store)
    launch = Launch(engine.store, order.name)
    launch.place(order)
    census.remember(launch)
    return launch
