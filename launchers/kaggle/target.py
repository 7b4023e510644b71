"""Kaggle as a place that lends machines: two T4s for hours a week, for nothing.

Three things are different from a place that rents. A session *cannot be ended from outside*: it
ends when it is done, when it sees the stop flag in its store, or when its time is over, and so
``destroy`` refuses while it runs. It costs nothing, so it may be left to itself. And it may do
without a store elsewhere (*native*: the launch's store is a directory): then what is known of
the run is sent as a private data set, the session keeps a store of its own, and ``collect`` brings
what it has left. In between nothing is heard of it but what it prints: it is ``mute``.

A launch is one kernel, and an attempt one version of it; whose attempt a version is, its source
says. An ended session is listed until the launch's events say that it was ``left``.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from launchers.kaggle import kernel, pack
from launchers.kaggle.bring import bring, last_word
from launchers.kaggle.client import Client, Denied, Kernel, Quota, Status
from launchers.kaggle.datasets import PATIENCE, Datasets, new_request
from launchers.launches import Launch, Order
from launchers.target import Away, Box, Errand, Offer, Refused, Spoiled
from pipeline.hashing import file_digest
from pipeline.recipe import from_tree
from pipeline.store.store import Store

GPU, GPUS = "Tesla T4", 2
LEAST = 900.0  # seconds of quota for which a session is worth its start
RECENT = 48 * 3600.0  # seconds: what ran before that has ended
_NAME = "ignite-"
_STATES = {
    "QUEUED": "starting",
    "NEW_SCRIPT": "starting",
    "RUNNING": "running",
    "CANCEL_REQUESTED": "running",
    "COMPLETE": "ended",
    "ERROR": "ended",
    "CANCEL_ACKNOWLEDGED": "ended",
}


@dataclass(frozen=True)
class _Ends:
    """Which attempts of a launch its events have done with."""

    over: bool
    left: frozenset[int] = frozenset()


class Kaggle:
    """The target; ``store`` is the launch's own. See target.Target for the calls."""

    name = "kaggle"

    def __init__(
        self,
        store: Store,
        client: Client | None = None,
        *,
        hours: Callable[[str, int], float | None] = lambda gpu, gpus: None,
        note: Callable[[str], None] = lambda line: None,
        limit: float = kernel.LIMIT,
        margin: float = kernel.MARGIN,
        pause: Callable[[float], None] = time.sleep,
        patience: float = PATIENCE,
    ) -> None:
        self.store, self.client, self.hours = store, client or Client(), hours
        self.limit, self.margin = limit, margin
        self.datasets = Datasets(self.client, note, pause, patience)
        self._labels: dict[tuple[str, int], str | None] = {}  # sources of versions do not change
        self._ended: dict[tuple[str, int], Status] = {}
        self._launches: dict[str, Launch | None] = {}  # None: it is for another target

    @property
    def session(self) -> float:
        """Seconds that a session may train, so that it is over before it is cut off."""
        return self.limit - self.margin

    # what there is

    def offers(self, avoid: Collection[str] = ()) -> list[Offer]:
        """One, if this week's quota is worth a session. Raises Refused that says when it is.

        Which machine it will be, Kaggle decides: there is none to avoid.
        """
        quota, hours = self.client.quota(), self.hours(GPU, GPUS)
        facts: dict[str, Any] = {"session_hours": self.session / 3600}
        if quota is not None:
            if quota.left < LEAST:
                raise Refused(f"Kaggle's GPU quota is used up: {_words(quota)}")
            facts |= {"quota_hours": quota.left / 3600, "refresh": quota.refresh}
            if hours is not None and hours * 3600 > quota.left:
                facts["warning"] = (
                    f"the run takes about {hours:.1f} h, and this week's quota will not do: "
                    f"{_words(quota)}. It goes on from its last checkpoint in the next week"
                )
        return [Offer(kernel.SHAPE, "", GPU, GPUS, 0.0, hours=hours, total=0.0, facts=facts)]

    # making a box

    def create(self, errand: Errand, offer: Offer) -> str:
        """Push the next version of the launch's kernel, which runs it."""
        order, bundle = self._order(errand), self.store.read(f"bundle/{errand.bundle}")
        if bundle is None:
            raise Refused(f"{self.store.place} has no bundle {errand.bundle[:12]}: launch it again")
        errand = replace(errand, seconds=self._seconds(errand, offer))
        # what is wrong with it is found out before anything is sent
        kernel.source(kernel.told(errand, order.body(), "-"), bundle)
        sent = self._send(order) if not errand.store else None
        ends = _ends(Launch(self.store, errand.name))
        if ends.over or errand.attempt in ends.left:  # nobody could end the session
            raise Refused("it was given up while its data set was made")
        request = self._request(errand, order, bundle, sent)
        return self._saved(self.client.save(request), errand.name)

    def describe(
        self, errand: Errand, offer: Offer, order: Order, bundle: bytes
    ) -> list[dict[str, Any]]:
        """The requests that ``create`` would send, in their order, with long ones cut short."""
        errand = replace(errand, seconds=self._seconds(errand, offer))
        told, sent = [], None
        if not errand.store and self._carried(order):
            slug, sent = _dataset(errand.name), "0" * 64
            body = new_request(self.client.owner, slug, "ignite-llm store ...", "...")
            told = [
                {"call": "StartBlobUpload", "body": {"type": "DATASET", "name": pack.NAME}},
                {"call": "CreateDataset", "body": body},
            ]
        request = self._request(errand, order, bundle, sent)
        return [*told, {"call": "SaveKernel", "body": kernel.shown(request)}]

    def _order(self, errand: Errand) -> Order:
        return Launch(self.store, errand.name).order()

    def _seconds(self, errand: Errand, offer: Offer) -> float:
        """How long the session may train: Kaggle's limit, the launch's own, and the quota."""
        limits = [self.session]
        if errand.seconds is not None:
            limits.append(errand.seconds)
        if (left := offer.facts.get("quota_hours")) is not None:
            limits.append(max(3600 * left - self.margin, 3600 * left / 2))
        return min(limits)

    def _request(
        self, errand: Errand, order: Order, bundle: bytes, sent: str | None
    ) -> dict[str, Any]:
        text = kernel.source(kernel.told(errand, order.body(), sent or "-"), bundle)
        mounted = [f"{self.client.owner}/{_dataset(errand.name)}"] if sent else []
        assert errand.seconds is not None
        seconds = min(self.limit, errand.seconds + self.margin)
        return kernel.request(self.client.owner, errand.name, text, mounted, seconds)

    def _carried(self, order: Order) -> list[str]:
        """What a session without a store elsewhere must be sent to go on from: names."""
        keys = pack.keys(self.store, from_tree(order.recipe))
        found = list(pack.names(self.store, keys))
        return found if any(name.startswith("blob/") for name in found) else []

    def _send(self, order: Order) -> str | None:
        """Send what is known of the run; its sha256, None if there is nothing yet."""
        if not (names := self._carried(order)):
            return None
        with self.store.scratch() as scratch:
            file = scratch / pack.NAME
            pack.write(self.store, names, file)
            digest = file_digest(file)
            self.datasets.publish(_dataset(order.name), file, digest)
        return digest

    def _saved(self, told: Any, name: str) -> str:
        """The id of the version that was saved; or why there is none."""
        clean = self.client.transport.clean
        wrong = [f"{each} cannot be mounted" for each in told.invalid_dataset_sources]
        if told.error:
            wrong.insert(0, clean(told.error))
        number = told.version_number or 0
        id = f"{self.client.owner}/{name}/{number}"
        if not wrong and number:
            return id
        why = "; ".join(wrong) or "it does not say which version it is"
        if number:
            raise Spoiled(f"Kaggle has saved the kernel, and yet: {why}", id)
        if "phone" in why.lower() or "verif" in why.lower():
            raise self.client.transport.failure(403, why, "SaveKernel")
        raise Refused(f"Kaggle does not run the kernel: {why}")

    # what became of them

    def boxes(self) -> list[Box]:
        """Sessions that run, and those that have ended and are not left yet."""
        listed = {each.slug: each for each in self.client.listed(_NAME)}
        ends = {name: _ends(launch) for name, launch in self._mine().items()}
        found = []
        for slug in sorted({*listed, *ends}):
            since = listed[slug].since if slug in listed else 0.0
            recent = since is None or time.time() - since < RECENT
            known = ends.get(slug, _Ends(over=True))
            if recent or not known.over:
                found += self._versions(slug, known)
        return found

    def _mine(self) -> dict[str, Launch]:
        """The launches of the store that are for Kaggle."""
        for name in self.store.names("launch"):
            if name not in self._launches:
                launch = Launch(self.store, name)
                try:
                    ours = launch.order().target == self.name
                except ValueError:
                    continue  # not whole yet, or of another version
                self._launches[name] = launch if ours else None
        return {name: launch for name, launch in self._launches.items() if launch is not None}

    def _versions(self, slug: str, ends: _Ends) -> list[Box]:
        """The boxes of one kernel. It is asked itself, because the list may be late."""
        try:
            newest = self.client.kernel(slug)
        except Denied:
            return []
        found = []
        for number in range(1, newest.number + 1):
            if (label := self._label(newest, number)) is None:
                continue
            status = self._status(slug, number)
            since = newest.since if number == newest.number else None
            id = f"{self.client.owner}/{slug}/{number}"
            state = _STATES.get(status.word, "away")
            # with no store between us, or in Kaggle's queue
            mute = state == "starting" or (state != "ended" and self.store.remote is None)
            why = status.why or f"Kaggle calls it {status.word}"
            each = Box(id, label, state, 0.0, "", GPU, since, why, free=True, mute=mute)
            if state != "ended" or not (ends.over or each.attempt in ends.left):
                found.append(each)
        return found

    def _label(self, newest: Kernel, number: int) -> str | None:
        at = (newest.slug, number)
        if at not in self._labels:
            same = newest if number == newest.number else self.client.kernel(newest.slug, number)
            self._labels[at] = kernel.label(same.source)
        return self._labels[at]

    def _status(self, slug: str, number: int) -> Status:
        """What Kaggle says of a session; of one that has ended it is asked once."""
        if (slug, number) in self._ended:
            return self._ended[slug, number]
        try:
            status = self.client.status(slug, number)
        except Denied:
            return Status("QUEUED")  # saved a moment ago
        if _STATES.get(status.word) == "ended":
            self._ended[slug, number] = status
        return status

    def destroy(self, id: str) -> None:
        """Nothing, if the session has ended. Raises Refused while it runs: see the module."""
        _, slug, number = _parts(id)
        try:
            status = self.client.status(slug, number)
            if _STATES.get(status.word) == "ended":
                return
        except Denied:
            return
        raise Refused(
            f"Kaggle lets nobody end a session from outside. It costs nothing, sees the stop flag "
            f"if its store is elsewhere, and ends after {self.limit / 3600:g} h at the latest; or "
            f"cancel it by hand: https://www.kaggle.com/code/{self.client.owner}/{slug}"
        )

    def output(self, box: Box) -> str:
        _, slug, number = _parts(box.id)
        try:
            if box.state == "running":
                return self.client.stream(slug, number)
            return self.client.log(slug, number)[-(1 << 16) :]
        except Denied:
            return ""
        except Refused as error:
            raise Away(str(error)) from error

    def collect(self, box: Box) -> None:
        """Bring into the store what an ended session has left, and how it ended."""
        _, slug, number = _parts(box.id)
        launch = Launch(self.store, box.launch)
        assert box.attempt is not None
        try:
            if self.store.remote is None:
                bring(self.client, self.store, slug, number, f"{launch.name}/{box.attempt}")
            word = launch.box(box.attempt)
            if word.get("state") != "ended" and (last := last_word(self.client.log(slug, number))):
                launch.tell(box.attempt, state="ended", **last)
        except Denied:
            return  # a kernel that somebody has deleted has left nothing
        except Refused as error:
            raise Away(str(error)) from error


def _ends(launch: Launch) -> _Ends:
    events = launch.events()
    left = frozenset(event.attempt for event in events if event.kind == "left")
    return _Ends(any(event.kind == "over" for event in events), left)


def _parts(id: str) -> tuple[str, str, int]:
    """Owner, slug and version of a box."""
    owner, slug, number = id.split("/")
    return owner, slug, int(number)


def _dataset(name: str) -> str:
    return f"{name}-store"


def _words(quota: Quota) -> str:
    when = f", until {quota.refresh}" if quota.refresh else " this week"
    return f"{quota.left / 3600:.1f} of {quota.allowed / 3600:.0f} h are left{when}"
