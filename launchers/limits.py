"""How long a box may live, and whether a launch has come to its limit of time or of money."""

from launchers.history import History
from launchers.launches import Order
from launchers.target import Offer
from pipeline.ui import human_seconds


def of_a_box(
    order: Order, session: float | None, told: History, offer: Offer, now: float
) -> tuple[str | None, float | None]:
    """How long it may live, and by which limit: its kind's, the time's or the money's."""
    limits: list[tuple[float, str]] = []
    if session is not None:
        limits.append((session, "session"))
    if order.seconds is not None:
        limits.append((order.at + order.seconds - now, "deadline"))
    if order.budget is not None and offer.per_hour > 0:
        limits.append((3600 * (order.budget - told.cost(now)) / offer.per_hour, "budget"))
    if not limits:
        return None, None
    seconds, limit = min(limits)
    return limit, seconds


def reached(order: Order, told: History, now: float, limit: str | None = None) -> str | None:
    """Which limit is reached, in words; ``limit`` is one that a box has come up to."""
    if order.seconds is not None and (limit == "deadline" or now >= order.at + order.seconds):
        return f"the deadline, {human_seconds(order.seconds)} after the start, is reached"
    if order.budget is not None and (limit == "budget" or told.cost(now) >= order.budget):
        return f"the budget of ${order.budget:.2f} is spent"
    return None
