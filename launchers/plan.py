"""The machines that are compared before a run, and what each would take: ``launch plan``'s rows.

For each: does it fit, how long, in how many sessions, for how much, and what that rests on
(estimate.py). Nothing is asked of anybody but this machine, unless the caller hands in who knows
today's offers. What nobody knows is None.
"""

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from launchers.estimate import (
    EVERY,
    GB,
    HOUR,
    Estimate,
    corpus_bytes,
    disk,
    on_cpu,
    on_gpu,
    traffic,
)
from launchers.target import Away, Offer, Refused
from model.cores import cores
from pipeline.cards import find
from pipeline.machine import choose_precision, cpu_flags
from pipeline.recipe import Recipe

Offers = Callable[[str], list[Offer]]  # of one card, the best first; raises Away, Refused

GPUS = ("RTX 3060", "RTX 3090", "RTX 4090", "A100 SXM4", "H100 SXM")
# dollars an hour on demand: what public lists told of Vast.ai from May to July 2026, see
# docs/launch.md; they disagree, and a card that none of them names has no price here
TYPICAL = {
    "RTX 3090": (0.20, 0.30),
    "RTX 4090": (0.24, 0.88),
    "RTX 5090": (0.87, 1.14),
    "A100 SXM4": (0.78, 1.21),
    "A100 PCIE": (0.78, 1.21),
    "H100 SXM": (1.85, 2.55),
}
# assumed: each host has its own
_DISK = 0.15 / 730  # dollars for a gigabyte and hour
_TRAFFIC = 0.01  # dollars for a gigabyte, either way


@dataclass(frozen=True)
class Place:
    """A machine that a target would give: its hardware, and what its sessions are like."""

    target: str
    gpu: str | None  # None: its CPU
    gpus: int = 1
    memory: float | None = None  # GiB of each, if that is told
    cores: int = 0
    session: float | None = None  # hours that one may last
    setup: float = 0.0  # hours until a session trains; assumed


@dataclass(frozen=True)
class Row:
    """One line of the plan. None is what is unknown; dollars are from the least to the most."""

    target: str
    card: str
    fits: str
    hours: float | None = None  # of all sessions, with setting up
    sessions: int | None = None
    dollars: tuple[float, float] | None = None
    price: str = ""  # where the dollars come from: free, typical, offer
    tokens_per_second: float | None = None
    gigabytes: float | None = None  # to the store and back
    basis: str = ""
    measured: bool = False


def places(gpus: Sequence[str], session: float | None = None) -> list[Place]:
    """All that are compared. ``session`` shortens what a target's sessions last."""
    free = "Tesla T4"
    # Kaggle ends a session after twelve hours, and what it had not saved is gone: stop before
    found = [
        here(),
        Place("kaggle", free, gpus=2, session=12 - 1 / 3, setup=5 / 60),
        Place("colab", free, session=12 - 1 / 3, setup=5 / 60),
        *(Place("vast", gpu, setup=10 / 60) for gpu in gpus),
    ]
    if session is None:
        return found
    return [replace(place, session=min(session, place.session or session)) for place in found]


def here() -> Place:
    """This machine's GPUs, as far as they are of one kind, or else its CPU."""
    found = _nvidia_smi()
    if found:
        name, memory = found[0]
        alike = sum(each[0] == name for each in found)
        return Place("local", name, gpus=alike, memory=memory)
    return Place("local", None, cores=cores())


def _nvidia_smi() -> list[tuple[str, float]]:
    """Name and GiB of each GPU that the driver shows; none where nothing answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
        if told.returncode:
            return []
        lines = [line.rpartition(",") for line in told.stdout.splitlines() if line.strip()]
        return [(name.strip(), float(memory) / 1024) for name, _, memory in lines]
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return []


# the lines


def survey(
    recipe: Recipe,
    found: Sequence[Place],
    every: float = EVERY,
    offers: Offers | None = None,
) -> tuple[list[Row], list[str]]:
    """A row for each place, and what else is to be said, a line each."""
    rows, notes, known = [], [], corpus_bytes(recipe.data.source)
    for place in found:
        offer = None
        if offers and place.target == "vast" and place.gpu:
            try:
                offer = next(iter(offers(place.gpu)), None)
            except (Away, Refused) as error:
                notes.append(f"vast, {place.gpu}: {error}")
        if offer:
            place = replace(place, gpus=offer.gpus)
        rows.append(_row(recipe, place, every, known, offer))
    return rows, notes


def _row(recipe: Recipe, place: Place, every: float, known: int | None, offer: Offer | None) -> Row:
    if place.gpu is None:
        name = f"CPU, {place.cores} core{'s' * (place.cores > 1)}"
        told: Estimate | None = on_cpu(
            recipe, place.cores, choose_precision("auto", "cpu", flags=cpu_flags()), known
        )
    else:
        name = f"{place.gpus} x {place.gpu}" if place.gpus > 1 else place.gpu
        told = on_gpu(recipe, place.gpu, place.gpus, memory=place.memory, corpus=known)
    if told is None:
        return Row(place.target, name, "unknown", basis="no peak is known here of such a card")
    row = Row(place.target, name, told.fits, basis=told.basis, measured=told.measured)
    if told.training is None:
        return row
    work = (told.training + told.others) / HOUR
    sessions = math.ceil(work / max(place.session - place.setup, 0.1)) if place.session else 1
    sent = traffic(recipe, told.training, sessions, every, known or 0)
    hours, gigabytes = work + sessions * place.setup, (sent.up + sent.down) / GB
    held = disk(recipe, known or 0) / GB
    dollars, price = _dollars(place, hours, held, gigabytes, offer)
    return replace(
        row,
        hours=hours,
        sessions=sessions,
        dollars=dollars,
        price=price,
        tokens_per_second=told.tokens_per_second,
        gigabytes=None if place.target == "local" else gigabytes,
    )


def _dollars(
    place: Place, hours: float, held: float, gigabytes: float, offer: Offer | None
) -> tuple[tuple[float, float] | None, str]:
    """What all of it costs, GPU, a disk of ``held`` GB and traffic, and how that is known."""
    if place.target != "vast":
        return (0.0, 0.0), "free"
    if offer is not None:
        total = offer.total
        if total is None:
            total = hours * offer.per_hour + gigabytes * _TRAFFIC
        return (total, total), "offer"
    card = find(place.gpu or "")
    typical = TYPICAL.get(card.name) if card else None
    if typical is None:
        return None, ""
    besides = hours * held * _DISK + gigabytes * _TRAFFIC
    least, most = (hours * each * place.gpus + besides for each in typical)
    return (least, most), "typical"
