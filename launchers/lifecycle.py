"""One lifecycle for every place that lends machines: create, boot, run, replace, finish, destroy.

A ``Keeper`` sees to one launch. It looks at three things, again and again: the events in the store
(what was done so far), the boxes that the service lists, and what the box says of itself in the
store. From these alone it decides on the next step, so it may be killed anywhere and another one,
on any machine, goes on. The rules:

* Before a box is asked for the store says so (``creating``), at a position that only one keeper
  gets. If the answer is lost, nothing is asked again before the service was seen to have no box
  with that attempt's label for a while; if it has several, one is kept.
* A box that is not the one of the attempt in force is destroyed, and again at every look until the
  service no longer lists it: boxes come back.
* A box is given up when the service says that it was taken away, has ended or cannot start, when it
  has not said a word in the store by the boot deadline, or has fallen silent (judging.py). The next
  attempt goes on from the last checkpoint, elsewhere if the machine was to blame.
* Limits of money and time are kept here, and by the box itself: it is told when it must be gone.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from launchers import limits
from launchers.hearing import Ear
from launchers.history import EXPLAINED, FAILED, FINISHED, STOPPED, Attempt, History, history
from launchers.judging import NOT_ALLOWED, UNHEALTHY, Judge, Pace, pace
from launchers.launches import Launch, Order
from launchers.target import Away, Box, Errand, Offer, Refused, Spoiled, Target
from pipeline.cli.process import EXIT_INTERRUPTED
from pipeline.errors import StoreAway

WORDLESS = -1  # the exit code of a box that could not tell it


class Needed(ValueError):
    """A person must do something, which it says, before another box is of use."""


class Keeper:
    """Sees to one launch; ``say`` is told what happens, in lines for people.

    ``clock`` gives seconds since 1970: money and deadlines are counted by it. ``avoid`` are
    machines that have failed other launches.
    """

    def __init__(
        self,
        launch: Launch,
        target: Target,
        say: Callable[[str], None],
        patience: Pace | None = None,
        clock: Callable[[], float] = time.time,
        avoid: Collection[str] = (),
    ) -> None:
        self.launch, self.target, self.say, self.clock = launch, target, say, clock
        self.pace = patience or pace()
        self.order: Order = launch.order()
        self.judge = Judge(self.pace)
        self._said: set[str] = set()
        self.ear = Ear(lambda box: self.target.output(box), self.judge, self.once)
        self._avoid = set(avoid)
        self.pass_on: Callable[[], None] = lambda: None  # writes what a person here has asked for

    # the loop

    def run(self, pause: Callable[[float], None] = time.sleep) -> str:
        """Until it is over and nothing bills; the outcome: finished, stopped or failed.

        Raises Needed if nothing bills either, and a person is asked for something.
        """
        while True:
            try:
                if (outcome := self.step()) is not None:
                    return outcome
            except StoreAway as error:  # the box goes on without us, and keeps its own limits
                self.once(f"the store cannot be asked, trying again: {error}")
            pause(self.pace.look)

    def step(self) -> str | None:
        """Look once, and do what is to be done; the outcome if it is over and nothing bills."""
        self.launch.watch()
        told = history(self.launch.events())
        try:
            ours = [each for each in self.target.boxes() if each.launch == self.launch.name]
        except Away as error:
            self.once(f"{self.target.name} cannot be asked, trying again: {error}")
            return None
        self._tidy(told, ours)
        attempt = told.current
        if told.over is not None:
            return self._close(told, ours)
        if attempt is None:
            self._begin(told, ours)
        elif attempt.id is None:
            self._find(attempt, ours)
        else:
            self._see_to(told, attempt, ours)
        return None

    def _tidy(self, told: History, ours: list[Box]) -> None:
        """Destroy every box but that of the attempt in force."""
        kept = told.current
        for each in ours:
            if kept is None or each.attempt != kept.number or kept.id not in (None, each.id):
                self._destroy(each.id)

    def _destroy(self, id: str) -> None:
        try:
            self.target.destroy(id)
            self.once(f"destroying {id}")
        except (Away, Refused) as error:
            self.once(f"cannot destroy {id} yet, trying again: {error}")

    def _close(self, told: History, ours: list[Box]) -> str | None:
        """The outcome once nothing is left, also not of a request whose answer was lost."""
        assert told.over is not None
        if ours:
            self.judge.forget("gone")
            return None
        unsure = any(attempt.unsure for attempt in told.attempts[-1:])
        if self.judge.lasted("gone") < (self.pace.settle if unsure else 0.0):
            return None
        outcome = told.over.body["outcome"]
        self.once(f"{outcome}: {told.over.body.get('why')}")
        return outcome

    def _append(self, kind: str, **body: Any) -> bool:
        return self.launch.append(kind, seconds=self.clock(), **body)

    def _over(self, outcome: str, why: str) -> None:
        if self._append("over", outcome=outcome, why=why):
            self.once(f"{outcome}: {why}")

    def _leave(self, attempt: int, why: str, avoid: str | None = None, **more: Any) -> None:
        """The attempt ends; what is left of it is destroyed at the next look."""
        trained = bool(self.launch.box(attempt).get("trained"))
        if self._append("left", attempt=attempt, why=why, avoid=avoid, trained=trained, **more):
            self.say(f"attempt {attempt}: {why}")

    def once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    # a new attempt

    def _begin(self, told: History, ours: list[Box]) -> None:
        if ours:
            return  # first what is left of the attempt before must be gone
        if why := self.launch.stopping():
            self._over(FAILED if self.launch.limited() else STOPPED, why)
        elif limit := limits.reached(self.order, told, self.clock()):
            self._over(FAILED, limit)
        elif (count := told.barren) >= self.pace.barren:
            self._over(FAILED, f"{count} boxes in a row have not come to train; {_last(told)}")
        elif (offer := self._choose(told)) is not None:
            self._create(told, offer)

    def _choose(self, told: History) -> Offer | None:
        """The best offer; None while there is none, which is looked at again after a while."""
        if not self.judge.due("dry", seldom=True):
            return None
        try:
            found = self.target.offers(told.avoid | self._avoid)[0]
            self.judge.forget("dry")
            return found
        except Refused as error:
            if not told.attempts:  # nothing was lost yet: let a person decide
                self._over(FAILED, str(error))
                return None
            self.once(f"waiting for an offer: {error}")
        except Away as error:
            self.once(f"waiting for offers: {error}")
        return None

    def _create(self, told: History, offer: Offer) -> None:
        number = 1 + max((attempt.number for attempt in told.attempts), default=0)
        limit, seconds = limits.of_a_box(self.order, self.target.session, told, offer, self.clock())
        if limit != "session" and seconds is not None and seconds < self.pace.settle:
            why = limits.reached(self.order, told, self.clock(), limit)
            self._over(FAILED, f"{why}, but for too little for another machine")
            return
        self.pass_on()
        if self.launch.stopping():
            return  # asked for while offers were looked for: that may take a minute
        body = {"offer": asdict(offer), "limit": limit, "time": seconds}
        if not self._append("creating", attempt=number, **body):
            return
        self.say(f"attempt {number}: asking for {offer.gpus} x {offer.gpu}, {offer.price}")
        place, bundle = self.order.options["store"], self.order.bundle
        try:
            id = self.target.create(Errand(self.launch.name, number, place, bundle, seconds), offer)
        except Spoiled as error:
            self._destroy(error.id)
            self._leave(number, str(error), offer.machine)
        except Refused as error:
            self._leave(number, str(error), offer.machine if error.offer_gone else None)
            if not error.offer_gone:
                self._over(FAILED, str(error))
        except Away as error:
            self.say(f"attempt {number}: no answer, looking whether it was made ({error})")
        except ValueError as error:  # nothing was sent: keys for the box cannot be had, say
            self._leave(number, str(error))
            if not told.attempts:
                self._over(FAILED, str(error))
            self.judge.lasted("dry")
        else:
            if self._append("created", attempt=number, id=id):
                self.say(f"attempt {number}: {id} is made, waiting for it to boot")

    def _find(self, attempt: Attempt, ours: list[Box]) -> None:
        """The answer to a create was lost, or whoever asked has died: is there a box?"""
        found = [each for each in ours if each.attempt == attempt.number]
        if found:
            first = min(found, key=lambda each: (each.since or 0.0, each.id))
            if self._append("created", attempt=attempt.number, id=first.id):
                self.say(f"attempt {attempt.number}: it was made, as {first.id}")
        elif self.judge.lasted("unseen", attempt.number) > self.pace.settle:
            self._leave(attempt.number, "it was never made", unsure=True)

    # an attempt that has a box

    def _see_to(self, told: History, attempt: Attempt, ours: list[Box]) -> None:
        """Is the box worth keeping?"""
        number = attempt.number
        seen = next((each for each in ours if each.id == attempt.id), None)
        word: dict[str, Any] | None = self.launch.box(number)
        if not _over(word) and seen is not None and seen.state == "ended":
            word = self._last_word(number, seen)
        if word is None:
            return
        if _over(word):
            gone = {"until": attempt.heard(word, self.clock())} if seen is None else {}
            self._ended(told, attempt, word, gone)
        elif seen is None:
            if self.judge.lasted("unseen", number) > self.pace.settle:
                why = "it is gone, by itself" + self.ear.last(f"{self.launch.name}/{number}")
                self._leave(number, why, until=attempt.heard(word, self.clock()))
        elif why := self.judge.unfit(number, seen, word):
            self._leave(number, why, None if seen.state == "stopped" else seen.machine)
        else:
            self.judge.forget("unseen", number)
            self.ear.listen(seen, word)
            self._stop(told, number, seen, word)

    def _last_word(self, number: int, seen: Box) -> dict[str, Any] | None:
        """How it ended; what lies with the service alone may tell. None: not yet known."""
        try:
            self.target.collect(seen)
        except Away as error:
            self.once(f"attempt {number}: cannot bring its results yet: {error}")
            return None
        word = self.launch.box(number)
        if _over(word):
            return word
        why = (seen.why or "it ended without a word") + self.ear.last(seen.label)
        return {"state": "ended", "code": WORDLESS, "why": why}

    def _stop(self, told: History, number: int, seen: Box, word: dict[str, Any]) -> None:
        """Ask the box to stop when a limit is reached, and do not wait for ever."""
        why = self.launch.stopping()
        if why is None and (why := limits.reached(self.order, told, self.clock())):
            self.launch.stop(why, limit=True)
        if why is not None and seen.mute:
            self.once(f"attempt {number}: cannot be reached, and ends by itself: {seen.why}")
        elif why is not None:
            self.once(f"attempt {number}: to stop, as soon as all is saved: {why}")
            if not word or self.judge.lasted("leaving", number) > self.pace.leaving:
                self._leave(number, f"given up: {why}", code=EXIT_INTERRUPTED)

    def _ended(
        self, told: History, attempt: Attempt, word: dict[str, Any], gone: dict[str, Any]
    ) -> None:
        """A box has ended; ``gone`` says when, if it is no more."""
        code, why = word.get("code"), str(word.get("why") or "")
        said = {
            0: "done",
            EXIT_INTERRUPTED: "all is saved",
            UNHEALTHY: f"it is not healthy: {why}",
            NOT_ALLOWED: "it was not allowed what it needs",
        }.get(code, why or f"ended with exit code {code}")
        blamed = attempt.offer.get("machine") if code in (UNHEALTHY, WORDLESS) else None
        self._leave(attempt.number, said, blamed, code=code, **gone)
        self._follow(told, attempt, word, gone.get("until", self.clock()))

    def _follow(self, told: History, attempt: Attempt, word: dict[str, Any], ended: float) -> None:
        """What follows from the exit code of a box; of most, that there is another attempt."""
        code, taken = word.get("code"), word.get("taken")  # its host told it to end
        if code == 0:
            self._over(FINISHED, "every stage has its result")
        elif code == EXIT_INTERRUPTED and not (taken or self.launch.stopping()):
            # nobody has asked it to: its time was over, if it says how long it was
            limit = attempt.limit if attempt.used_up(ended) else None
            if limit in ("deadline", "budget"):
                self._over(FAILED, str(limits.reached(self.order, told, self.clock(), limit)))
        elif code == NOT_ALLOWED and not self.launch.stopping():
            raise Needed(str(word.get("why") or ""))
        elif code in (1, 2):
            self._over(FAILED, f"the run itself failed: see `launch logs {self.launch.name}`")
        elif code not in EXPLAINED and self._failures(told) + 1 >= self.pace.failures:
            self._over(FAILED, f"{self.pace.failures} boxes have failed: `launch logs` shows why")

    def _failures(self, told: History) -> int:
        """Boxes before this one that ended by themselves and not as they should."""
        return sum(each.failed for each in told.attempts)


def _last(told: History) -> str:
    last = told.attempts[-1]
    return f"the last, attempt {last.number}: {last.why}"


def _over(word: dict[str, Any] | None) -> bool:
    return word is not None and word.get("state") == "ended"
