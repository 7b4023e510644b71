"""Vast.ai as a place that lends machines: client, offers and requests behind target.Target.

What is not known to be free is counted as billed. A box bills its disk for as long as it exists,
and its GPU while it runs; Vast.ai's list gives one price, that of running.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from launchers.target import Box, Errand, Offer
from launchers.vast.client import Client
from launchers.vast.offers import Hours, Prices, number, offers, query
from launchers.vast.order import VastOptions, masked, request
from pipeline.redact import redacted

OURS = "ignite-"  # what the labels of our boxes begin with
_LINES = 200  # of a log
# actual_status: what it means for whoever waits. None: it is not there yet
_STATES = {
    None: "starting",
    "created": "starting",
    "loading": "starting",
    "rebooting": "starting",
    "running": "running",
    "frozen": "stopped",
    "stopped": "stopped",
    "exited": "ended",
    "unknown": "away",
    "offline": "away",
}
_SAYS = ("cur_state", "intended_status", "next_state")  # all stopped: outbid, or told to stop
Secrets = Callable[[float | None], Mapping[str, str]]
_DISK_ONLY = ("created", "loading", "stopped", None)  # states in which no GPU is billed


class Vast:
    """Vast.ai. ``secrets`` makes, for a box that may live so many seconds, the variables that open
    the store; they go nowhere else. ``session`` is how long a box may live if they end."""

    name = "vast"

    def __init__(
        self,
        client: Client,
        options: VastOptions,
        hours: Hours,
        secrets: Secrets,
        session: float | None = None,
    ) -> None:
        self.client, self.options, self.hours, self._secrets = client, options, hours, secrets
        self.session = session

    def offers(self, avoid: Collection[str]) -> list[Offer]:
        return offers(self.client.search, self.options, self.hours, avoid)

    def create(self, errand: Errand, offer: Offer) -> str:
        secrets = self._secrets(errand.seconds)
        body = request(errand, offer, self.options, secrets)
        hide = [*secrets.values(), *body["env"].values()]
        return self.client.create(offer.id, body, hide=[each for each in hide if each])

    def boxes(self) -> list[Box]:
        found = [box(row) for row in self.client.instances()]
        return [each for each in found if each.label.startswith(OURS)]

    def destroy(self, id: str) -> None:
        self.client.destroy(id)

    def output(self, box: Box) -> str:
        return redacted(self.client.log(box.id, _LINES))

    def collect(self, box: Box) -> None:
        """Nothing lies with Vast.ai alone: a box writes to the store while it runs."""

    def describe(self, errand: Errand, offer: Offer) -> dict[str, Any]:
        """The exact requests that would be sent, with the secrets masked."""
        secrets = self._secrets(errand.seconds)
        body = masked(request(errand, offer, self.options, secrets), secrets)
        return {
            "search": {
                "method": "POST",
                "path": "/api/v0/bundles/",
                "body": query(self.options, self.hours),
            },
            "create": {"method": "PUT", "path": f"/api/v0/asks/{offer.id}/", "body": body},
        }


def box(row: Mapping[str, Any]) -> Box:
    """An instance as the service lists it."""
    status, why = row.get("actual_status"), str(row.get("status_msg") or "").strip()
    prices = Prices.of(row, number(row, "disk_space") or 0.0) or Prices(0.0, 0.0, 0.0, 0.0)
    halted = all(row.get(each) == "stopped" for each in _SAYS)
    idle = halted or status in _DISK_ONLY
    return Box(
        id=str(row.get("id")),
        label=str(row.get("label") or ""),
        state="stopped" if halted else _STATES.get(status, "away"),
        per_hour=prices.disk_hour if idle else prices.hour + prices.disk_hour,
        machine=str(row.get("machine_id") or ""),
        gpu=str(row.get("gpu_name") or ""),
        since=number(row, "start_date"),
        why=redacted("outbid, or stopped by somebody" if halted and not why else why),
        hopeless=status in ("created", "loading") and "OCI runtime create failed" in why,
    )
