"""Which machines of Vast.ai would do, and which of them costs least in the end.

The service filters, and sorts by the price of an hour; what counts is the price of the run. A host
sets its own price for disk and for each GB in and out, so the cheapest hour may be a dear run.
Fields of an offer may be null, and numbers may come as strings.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from launchers.target import Offer, Refused
from launchers.vast.order import VastOptions

Hours = Callable[[str, int], float | None]  # of a run, for a GPU's name and a number of them
Search = Callable[[dict[str, Any]], list[dict[str, Any]]]
MARGIN = 1.2  # times the least bid that is taken: the least is the first to be outbid
_MONTH = 720.0  # hours, in the price of a GB for a month
_LIMIT = 64  # offers in an answer; the service counts them against a daily allowance
_SPARE = 1.25  # times the estimate: a machine must be there for so long
_START = 0.5  # hours until it trains, at most
_UNKNOWN = 6.0  # hours, where nothing can be estimated


def query(options: VastOptions, hours: Hours, *, any_price: bool = False) -> dict[str, Any]:
    """What the service is asked."""
    names = [name.strip().replace("_", " ") for name in options.gpu.split(",") if name.strip()]
    estimates = [told for name in names if (told := hours(name, options.gpus)) is not None]
    planned = max(estimates, default=_UNKNOWN) * _SPARE + _START
    asked: dict[str, Any] = {
        "verified": {"eq": True},
        "external": {"eq": False},
        "rentable": {"eq": True},
        "gpu_name": {"eq": names[0]} if len(names) == 1 else {"in": names},
        "num_gpus": {"eq": options.gpus},
        "reliability": {"gte": options.reliability},
        "cuda_max_good": {"gte": options.needs_cuda},
        "disk_space": {"gte": options.disk},
        "inet_down": {"gte": options.down},
        "inet_up": {"gte": options.up},
        "duration": {"gte": round(planned * 3600)},
    }
    if options.region:
        countries = [each.strip().upper() for each in options.region.split(",") if each.strip()]
        asked["geolocation"] = {"in": countries}
    if options.bid is not None:
        asked["min_bid"] = {"lte": options.bid}
    if not any_price:
        asked["dph_total"] = {"lte": options.max_price}
    kind = "bid" if options.interruptible else "on-demand"
    rest = {"order": [["dph_total", "asc"]], "type": kind, "allocated_storage": options.disk}
    return {**asked, **rest, "limit": _LIMIT}


def offers(
    search: Search, options: VastOptions, hours: Hours, avoid: Collection[str]
) -> list[Offer]:
    """What fits, the least total first. Raises Refused that names the nearest miss."""
    found = _parsed(search(query(options, hours)), options, hours)
    fitting = [each for each in found if each.per_hour <= options.max_price]
    if kept := [each for each in fitting if each.machine not in avoid]:
        return sorted(kept, key=_rank)
    wanted = f"{options.gpus} x {options.gpu}"
    if fitting:
        raise Refused(
            f"all {len(fitting)} offers of {wanted} under ${options.max_price:g}/h are on machines "
            "that have failed: allow a higher --max-price, another --gpu, or try again later"
        )
    dearer = _parsed(search(query(options, hours, any_price=True)), options, hours)
    dearer = [each for each in dearer if each.machine not in avoid]
    if not dearer:
        raise Refused(f"Vast.ai has no {wanted} now that is {_wishes(options)}: ask for less")
    nearest = min(dearer, key=lambda each: each.per_hour)
    allow = f"--max-price {_rounded_up(nearest.per_hour)}"
    raise Refused(
        f"no {wanted} at Vast.ai under ${options.max_price:g}/h: the cheapest is "
        f"${nearest.per_hour:.3f}/h on machine {nearest.machine} ({nearest.facts['where']}); "
        f"allow it with {allow}"
    )


def _rank(offer: Offer) -> tuple[float, float]:
    return (offer.total if offer.total is not None else float("inf"), offer.per_hour)


def _rounded_up(price: float) -> str:
    return f"{math.ceil(price * 100) / 100:.2f}"


def _wishes(options: VastOptions) -> str:
    told = (
        f"verified, reliable to {options.reliability:g}, good for CUDA {options.needs_cuda:g}, has "
        f"{options.disk} GB of disk, {options.down:g} Mb/s down and {options.up:g} Mb/s up"
    )
    told += f", in {options.region}" if options.region else ""
    return told + (f", and takes a bid of ${options.bid:g}" if options.bid is not None else "")


# one offer


@dataclass(frozen=True)
class Prices:
    """What Vast.ai asks, in dollars; what it leaves open counts as nothing."""

    hour: float  # of the GPU
    disk_hour: float
    down: float  # a GB
    up: float

    @classmethod
    def of(cls, row: Mapping[str, Any], disk: float) -> "Prices | None":
        """None if there is no price at all."""
        by_size = (number(row, "storage_cost") or 0.0) * disk / _MONTH
        told = number(row, "storage_total_cost")
        disk_hour = by_size if told is None else told
        base, total = number(row, "dph_base"), number(row, "dph_total")
        if total is not None:
            base = max(0.0, total - disk_hour)
        if base is None:
            return None
        down, up = (number(row, f"inet_{way}_cost") or 0.0 for way in ("down", "up"))
        return cls(base, disk_hour, down, up)


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A field that should be a number, and may be null, a string, or not there."""
    try:
        return float(row[name])
    except (KeyError, TypeError, ValueError):
        return None


def _parsed(rows: list[dict[str, Any]], options: VastOptions, hours: Hours) -> list[Offer]:
    found = [_offer(row, options, hours) for row in rows if not row.get("rented")]
    return [each for each in found if each is not None]


def _offer(row: dict[str, Any], options: VastOptions, hours: Hours) -> Offer | None:
    prices = Prices.of(row, options.disk)
    if prices is None or row.get("id") is None:
        return None
    bid = _bid(row, prices, options) if options.interruptible else None
    if options.interruptible and bid is None:
        return None
    gpu, gpus = str(row.get("gpu_name") or options.gpu), int(number(row, "num_gpus") or 1)
    per_hour = (prices.hour if bid is None else bid) + prices.disk_hour
    traffic = prices.down * options.download + prices.up * options.upload
    estimate = hours(gpu, gpus)
    facts = {
        "where": str(row.get("geolocation") or "somewhere"),
        "reliability": number(row, "reliability2") or number(row, "reliability"),
        "cuda": number(row, "cuda_max_good"),
        "down": number(row, "inet_down"),
        "up": number(row, "inet_up"),
        "traffic": traffic,
    }
    return Offer(
        id=str(row["id"]),
        machine=str(row.get("machine_id") or ""),
        gpu=gpu,
        gpus=gpus,
        per_hour=per_hour,
        idle_per_hour=prices.disk_hour,
        hours=estimate,
        total=None if estimate is None else estimate * per_hour + traffic,
        facts=facts if bid is None else facts | {"bid": bid},
    )


def _bid(row: dict[str, Any], prices: Prices, options: VastOptions) -> float | None:
    """What to bid: some more than the least that is taken, and within the cap where it can be."""
    least = number(row, "min_bid")
    if least is None:
        return None
    if options.bid is not None:
        return options.bid if options.bid >= least else None
    wanted = min(least * MARGIN, options.max_price - prices.disk_hour)
    return max(least, math.floor(wanted * 1e4) / 1e4)
