"""The keeper of a launch against a service that is only a list: every state, every loss."""

import time

import pytest

from launchers.census import blamed, known
from launchers.history import history
from launchers.judging import Pace
from launchers.launches import Launch, Order
from launchers.lifecycle import Keeper
from launchers.target import Away, Box, Errand, Offer, Refused, Spoiled
from pipeline import recipe
from pipeline.store.places import open_store

PACE = Pace(look=10, settle=60, boot=900, silent=300, away=300, leaving=900, dry=60)


class Market:
    """A service: what it lists is what it bills."""

    name, session = "market", None

    def __init__(self):
        self.listed: dict[str, Box] = {}
        self.made: list[Errand] = []
        self.answers: list = []  # what creates answer instead, one after the other
        self.offered = [Offer(f"o{n}", f"m{n}", "RTX 4090", 1, 0.36) for n in range(6)]
        self.away = False
        self.undying = 0  # destroys that do nothing

    def offers(self, avoid):
        found = [offer for offer in self.offered if offer.machine not in avoid]
        if not found:
            raise Refused("no offer under $0.50 an hour; the cheapest is $0.80")
        return found

    def create(self, errand, offer):
        answer = self.answers.pop(0) if self.answers else 1
        made = answer if isinstance(answer, int) else getattr(answer, "made", 0)
        for _ in range(made):
            id = f"b{len(self.made)}"
            self.made.append(errand)
            self.listed[id] = Box(id, errand.label, "starting", offer.per_hour, offer.machine)
        if isinstance(answer, Exception):
            raise answer
        return id

    def boxes(self):
        if self.away:
            raise Away("503")
        return list(self.listed.values())

    def destroy(self, id):
        if self.undying:
            self.undying -= 1
        else:
            self.listed.pop(id, None)

    def output(self, box):
        return ""

    def collect(self, box):
        pass

    def become(self, id, state, **more):
        self.listed[id] = Box(**{**self.listed[id].__dict__, "state": state, **more})


def lost(kind, made, *rest):
    error = kind("no answer", *rest)
    error.made = made
    return error


class Play:
    """One launch with its market, a keeper and a clock that only moves when it is told to."""

    def __init__(self, folder, **limits):
        self.store = open_store(str(folder / "store"))
        self.launch = Launch(self.store, "ignite-tiny-000000")
        self.now = 1e9
        order = Order(
            self.launch.name, "market", recipe.load().tree(), [], "b" * 64,
            {"store": str(folder / "store")}, at=self.now, **limits,
        )  # fmt: skip
        self.launch.place(order)
        self.market, self.lines = Market(), []
        self.keeper = self.another()

    def another(self) -> Keeper:
        launch = Launch(self.store, self.launch.name)
        keeper = Keeper(launch, self.market, self.lines.append, PACE, lambda: self.now)
        keeper.judge.clock = lambda: self.now
        return keeper

    def look(self, seconds=10.0, times=1):
        outcome = None
        for _ in range(times):
            outcome = self.keeper.step()
            self.now += seconds
        return outcome

    def until_over(self, most=60):
        for _ in range(most):
            if (outcome := self.look()) is not None:
                return outcome
        raise AssertionError(self.lines)

    def boot(self):
        """Look until a box is there, and let it say its first word."""
        self.look(times=3)
        attempt = self.attempts()[-1]
        self.market.become(attempt.id, "running")
        self.launch.tell(attempt.number, state="running", trained=True)
        return attempt

    def attempts(self):
        return history(Launch(self.store, self.launch.name).events()).attempts

    def end(self, code, **more):
        number = self.attempts()[-1].number
        trained = bool(self.launch.box(number).get("trained"))
        self.launch.tell(number, state="ended", code=code, trained=trained, **more)


@pytest.fixture
def play(tmp_path):
    return Play(tmp_path)


def test_a_run_that_nothing_disturbs_is_finished_and_bills_nothing(play):
    play.boot()
    assert play.look() is None
    play.end(0)
    assert play.until_over() == "finished"
    assert not play.market.listed and len(play.market.made) == 1


@pytest.mark.parametrize("made", [0, 1, 2])
def test_an_answer_that_was_lost_is_looked_into_before_anything_is_asked_again(play, made):
    play.market.answers = [lost(Away, made)]
    play.look(times=3)
    assert len(play.market.made) == made
    assert len(play.market.listed) == min(made, 1)  # the extra one is gone
    if not made:
        play.look(times=8)
        assert [each.number for each in play.attempts()] == [1, 2]
    play.boot()
    play.end(0)
    assert play.until_over() == "finished"
    assert not play.market.listed


def test_a_create_that_is_carried_out_twice_leaves_one(play):
    play.market.answers = [2]
    play.look(times=2)
    assert len(play.market.made) == 2
    assert list(play.market.listed) == [play.attempts()[0].id]


def test_a_refusal_that_carries_a_box_is_tidied_up_and_the_machine_is_left_alone(play):
    error = lost(Spoiled, 1, "b0")
    play.market.answers = [error]
    play.look(times=3)
    assert "b0" not in play.market.listed
    assert play.attempts()[1].offer["machine"] == "m1"


def test_an_offer_that_is_gone_is_followed_by_the_next(play):
    play.market.answers = [Refused("gone", offer_gone=True)]
    play.look(times=3)
    assert [each.offer["machine"] for each in play.attempts()] == ["m0", "m1"]


def test_what_a_person_must_mend_ends_it(play):
    play.market.answers = [Refused("the card was declined")]
    assert play.until_over() == "failed"
    assert "the card was declined" in play.lines[-1]


def test_nothing_under_the_price_ends_a_launch_that_has_not_begun(play):
    play.market.offered = []
    assert play.until_over() == "failed"
    assert "the cheapest is $0.80" in play.lines[-1]


def test_a_market_that_runs_dry_later_is_waited_for(play):
    attempt = play.boot()
    play.market.become(attempt.id, "stopped")
    play.market.offered, before = [], play.market.offered
    play.look(times=20)
    assert len(play.market.made) == 1 and not play.market.listed
    play.market.offered = before
    play.look(times=10)
    assert len(play.market.made) == 2


@pytest.mark.parametrize(
    ("change", "patience", "avoided"),
    [
        ({"state": "stopped"}, 3, False),
        ({"state": "starting", "hopeless": True, "why": "OCI runtime create failed"}, 3, True),
        ({"state": "ended"}, 3, True),
        ({"state": "away"}, 40, True),
    ],
)
def test_a_box_that_is_lost_is_replaced(play, change, patience, avoided):
    attempt = play.boot()
    play.look()
    play.market.become(attempt.id, **change)
    for _ in range(patience):
        play.launch.tell(1, state="running")  # what it says counts less than what is seen of it
        play.look()
    assert attempt.id not in play.market.listed
    play.boot()
    second = play.attempts()[1]
    assert (second.offer["machine"] == "m1") == avoided
    play.end(0)
    assert play.until_over() == "finished"


def test_a_box_that_never_boots_is_given_up_at_the_deadline(play):
    play.look(times=2)
    play.look(seconds=850)
    assert list(play.market.listed) == ["b0"]
    play.look(seconds=100)
    play.look(times=4)
    assert list(play.market.listed) == ["b1"]
    assert "not booted within 15:00" in play.attempts()[0].why


def test_a_box_that_falls_silent_is_given_up(play):
    play.boot()
    for _ in range(50):
        play.launch.tell(1, state="running")
        play.look()
    assert len(play.market.made) == 1
    play.look(times=35)
    assert "has said nothing for 5:00" in play.attempts()[0].why


def test_a_box_that_has_vanished_is_replaced(play):
    attempt = play.boot()
    del play.market.listed[attempt.id]
    play.look(times=10)
    assert len(play.market.made) == 2


def test_a_service_that_hides_a_box_for_a_moment_costs_nothing(play):
    attempt = play.boot()
    hidden = play.market.listed.pop(attempt.id)
    play.look(times=3)
    play.market.listed[attempt.id] = hidden
    play.launch.tell(1, state="running")
    play.look(times=2)
    assert len(play.market.made) == 1


def test_an_unhealthy_box_is_replaced_elsewhere(play):
    play.boot()
    play.end(69, why="speed: throttled")
    play.look(times=3)
    assert [each.offer["machine"] for each in play.attempts()] == ["m0", "m1"]


def test_a_box_that_comes_back_is_destroyed_again(play):
    play.boot()
    play.end(0)
    play.market.undying = 2
    assert play.until_over() == "finished"
    assert not play.market.listed


def test_one_that_comes_back_later_is_destroyed_by_the_next_attempts_keeper(play):
    attempt = play.boot()
    box = play.market.listed[attempt.id]
    play.market.become(attempt.id, "stopped")
    play.look(times=3)
    play.market.listed[attempt.id] = box
    play.look()
    assert attempt.id not in play.market.listed and len(play.market.listed) == 1


def test_the_run_itself_failing_is_not_tried_again(play):
    play.boot()
    play.end(1)
    assert play.until_over() == "failed"
    assert len(play.market.made) == 1 and not play.market.listed


def test_boxes_that_fail_for_no_reason_are_tried_three_times(play):
    for _ in range(3):
        play.boot()
        play.end(-9)
        play.look()
    assert play.until_over() == "failed"
    assert len(play.market.made) == 3 and not play.market.listed


@pytest.mark.parametrize("limits", [{}, {"budget": 9.0}])
def test_stopping_waits_for_the_box_and_destroys_it(tmp_path, limits):
    play = Play(tmp_path, **limits)
    play.boot()
    play.launch.stop("the card is needed")
    play.look(times=5)
    assert play.market.listed
    play.end(75)
    assert play.until_over() == "stopped"
    assert not play.market.listed


def test_a_box_that_does_not_stop_is_destroyed_in_the_end(play):
    play.boot()
    play.launch.stop()
    for _ in range(120):
        play.launch.tell(1, state="running")
        if play.look() is not None:
            break
    assert not play.market.listed and play.attempts()[0].why.startswith("given up")


def test_a_session_that_is_over_is_followed_by_the_next(play):
    play.market.session = 3600.0
    play.boot()
    assert play.market.made[0].seconds == 3600
    play.end(75)
    play.boot()
    assert len(play.market.made) == 2
    play.end(0)
    assert play.until_over() == "finished"


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"budget": 0.10}, "the budget of $0.10 is spent"), ({"seconds": 1000.0}, "the deadline")],
)
def test_limits_are_kept_by_the_client(tmp_path, limits, words):
    play = Play(tmp_path, **limits)
    play.boot()
    for _ in range(110):
        play.launch.tell(1, state="running")
        play.look()
    assert words in play.launch.stopping()
    play.end(75)
    assert play.until_over() == "failed"
    assert not play.market.listed


@pytest.mark.parametrize(("limits", "most"), [({"budget": 0.10}, 1000), ({"seconds": 700.0}, 700)])
def test_limits_are_told_to_the_box(tmp_path, limits, most):
    """$0.36 an hour are 1,000 seconds for ten cents."""
    play = Play(tmp_path, **limits)
    attempt = play.boot()
    assert most - 30 <= play.market.made[0].seconds <= most
    play.look(seconds=290)
    play.market.become(attempt.id, "stopped")
    play.look(times=4)
    assert play.market.made[1].seconds <= most - 300
    play.look(seconds=0.95 * play.market.made[1].seconds)
    play.end(75)  # it has kept its limit by itself
    assert play.until_over() == "failed"


def test_a_box_that_is_taken_away_with_a_warning_is_replaced(tmp_path):
    """It has saved all and ended, and none of its limits was the reason."""
    play = Play(tmp_path, budget=10.0, seconds=1e6)
    play.boot()
    play.end(75, taken=True)
    play.look(times=4)
    assert len(play.market.made) == 2 and play.attempts()[0].why == "all is saved"


def test_of_two_keepers_one_asks_and_both_see_it_through(play):
    other = play.another()
    for _ in range(4):
        play.look(seconds=0)
        other.step()
    assert len(play.market.made) == 1
    play.boot()
    play.end(0)
    assert play.until_over() == "finished"
    assert other.step() == "finished"


class Killed(BaseException):
    """kill -9, as far as this process can play it."""


class Mortal:
    """Passes calls on, and kills the caller at its n-th moment: before a call, or right after."""

    name, session = "market", None

    def __init__(self, market, moments):
        self.market, self.moments = market, moments

    def __getattr__(self, name):
        return self.dying(getattr(self.market, name))

    def dying(self, call):
        def wrapped(*arguments, **more):
            self.moment()
            found = call(*arguments, **more)
            self.moment()
            return found

        return wrapped

    def moment(self):
        self.moments -= 1
        if self.moments == 0:
            raise Killed


def test_a_keeper_may_be_killed_between_any_two_requests(tmp_path):
    """At every request to the service and at every event; another one then sees to it."""
    moments, killed = 0, True
    while killed:
        moments += 1
        play = Play(tmp_path / str(moments))
        mortal = Mortal(play.market, moments)
        play.keeper.target = mortal
        play.keeper.launch.append = mortal.dying(play.keeper.launch.append)
        try:
            play.boot()
            play.end(0)
            assert play.until_over() == "finished"
            killed = False
        except Killed:
            _another_sees_to_it(play)
        assert not play.market.listed
        assert history(play.keeper.launch.events()).over.body["outcome"] == "finished"
    assert moments > 20


def _another_sees_to_it(play):
    play.keeper = play.another()
    for _ in range(40):
        attempts = play.attempts()
        if attempts and attempts[-1].id and attempts[-1].ended is None:
            play.end(0)
        if play.look() is not None:
            return
    raise AssertionError(play.lines)


def test_a_service_that_is_away_is_waited_for(play):
    play.boot()
    play.market.away = True
    play.look(times=200)
    play.market.away = False
    play.launch.tell(1, state="running")
    play.end(0)
    assert play.until_over() == "finished"
    assert len(play.market.made) == 1


def test_machines_that_failed_other_launches_are_avoided_for_a_week(play):
    attempt = play.boot()
    play.market.become(attempt.id, "away")
    for _ in range(40):
        play.look()
    others = known(play.store)
    assert blamed(others, "market", play.now) == {"m0"}
    assert (
        blamed(others, "elsewhere", play.now) == blamed(others, "market", play.now + 1e6) == set()
    )


def test_boxes_that_go_before_they_train_are_not_asked_for_for_ever(play):
    """It may be the store's keys, or the image: nothing that another machine would mend."""
    play.market.output = lambda box: "Collecting s3fs\nerror: no such bucket\n"
    for look in range(200):
        if (outcome := play.look()) is not None:
            break
        for id in [*play.market.listed]:
            play.market.become(id, "running")
        if look % 5 == 4:
            play.market.listed.clear()
    assert outcome == "failed" and len(play.market.made) == PACE.barren
    assert "have not come to train" in play.lines[-1]
    assert "no such bucket" in play.lines[-1]


def test_a_box_that_ended_before_anybody_looked_has_billed_until_then(tmp_path):
    """As after --detach: what it costs does not grow by the days until somebody watches."""
    play = Play(tmp_path, budget=1.0)
    play.now = time.time() - 3600
    play.boot()
    play.now += 1800
    play.end(75)
    play.market.listed.clear()
    play.now = time.time() + 30 * 86400
    (entry,) = [each.entry([], play.now) for each in known(play.store)]
    play.boot()  # there is money left for another
    spent = play.attempts()[0].cost(play.now)
    assert entry["spent"] == pytest.approx(spent, abs=1e-4) and spent <= 0.36
    play.end(0)
    assert play.until_over() == "finished"


def test_a_box_that_its_host_has_ended_says_nothing_of_the_budget(tmp_path):
    """SIGTERM, as when a bid is lost: all is saved, and neither time nor money is over."""
    play = Play(tmp_path, budget=9.0)
    play.boot()
    play.end(75)
    play.boot()
    assert len(play.market.made) == 2
    play.end(0)
    assert play.until_over() == "finished"


def test_no_box_is_asked_for_that_would_be_gone_before_it_boots(tmp_path):
    play = Play(tmp_path, seconds=1000.0)
    attempt = play.boot()
    play.look(seconds=940)
    play.market.become(attempt.id, "stopped")
    assert play.until_over() == "failed"
    assert len(play.market.made) == 1 and "too little" in play.lines[-1]


@pytest.mark.parametrize("before", [False, True])
def test_keys_for_a_box_that_cannot_be_had_are_no_end_of_a_run_that_has_begun(play, before):
    if before:
        play.boot()
        play.market.listed.clear()
        play.look(times=10)
    play.market.answers = [ValueError("no keys can be made: the network is down")]
    if not before:
        assert play.until_over() == "failed" and "network" in play.lines[-1]
        return
    play.look(times=20)
    play.boot()
    play.end(0)
    assert play.until_over() == "finished"


def test_there_is_a_sign_of_life_while_a_box_boots(play):
    play.look(times=3)
    play.market.become("b0", "starting", why="pulling the image")
    play.look(times=14)
    assert "attempt 1: starting for 2:00 (pulling the image)" in "\n".join(play.lines)


def test_who_sees_to_what_is_over_is_told_how_it_ended(play):
    play.boot()
    play.end(1)
    assert play.until_over() == "failed"
    play.lines.clear()
    assert play.another().step() == "failed"
    assert play.lines == [f"failed: the run itself failed: see `launch logs {play.launch.name}`"]
