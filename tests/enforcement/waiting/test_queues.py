"""Callers that wait are admitted in their order, by the clock of the test. The store is real."""

import gc
import heapq
import itertools
import os
import random

import pytest

from enforcement import Denied, Limit, Limiter
from enforcement.reservations import subject
from enforcement.reservations.subject import ASK, LOOK
from enforcement.waiting import queues
from enforcement.waiting.queues import Waiter, queues_of
from tests.scale import scale

SECOND = 1_000_000
START_US = 1_767_225_600 * SECOND
DRIP = Limit(name="drip", algorithm="token_bucket", quota=20, window_seconds=1, burst=1)
FIVE = Limit(name="five", algorithm="token_bucket", quota=20, window_seconds=1, burst=5)
WIDE = Limit(name="wide", algorithm="token_bucket", quota=40, window_seconds=1, burst=2)
SLOT = Limit(name="slot", algorithm="concurrency", quota=1, window_seconds=60)


class Caller(Waiter):
    """A caller that the scene lets sleep and ask."""

    def __init__(self, scene, name, limiter, limits, key, cost, max_wait):
        plan = limiter._plan_in_code(limits, key)
        super().__init__(plan.bounds, cost, scene.now, scene.now + max_wait)
        self.scene, self.name, self.limiter, self.plan = scene, name, limiter, plan
        self.arguments = limits, key, cost
        self.woken, self.wakes_at, self.admission, self.denial = 0, scene.now, None, None
        # As in Limiter.acquire, who comes asks at once unless others wait.
        denial = None if limiter._is_behind(plan, cost) else self.ask()
        self.steps = None
        if denial is None or not denial.allowed:
            self.steps = limiter._waiting(self, plan, denial)
            self.go_on(None)

    def ask(self):
        self.scene.asked += 1
        try:
            self.admission = self.limiter.open_admission(*self.arguments)
        except Denied as denied:
            return denied.decision
        self.scene.admitted.append(self.name)
        self.scene.ended = self.scene.now
        return self.admission.decision

    def go_on(self, decision):
        """Run the steps up to the next sleep."""
        self.woken = 0
        try:
            while not isinstance(step := self.steps.send(decision), float):
                assert step in (ASK, LOOK)
                decision = self.ask() if step is ASK else self.limiter.decide(self.plan, self.costs, charge=False)
        except Denied as denied:
            self.steps, self.denial = None, denied.decision
        except StopIteration:
            self.steps = None
        else:
            self.wakes_at = self.scene.now + step

    def leave(self):
        """Be cancelled."""
        if self.steps is not None:
            self.steps.close()
            self.steps = None

    def wake(self):
        self.woken = self.woken or next(self.scene.wakes)


class Scene:
    """
    A process in which callers come and go by a clock that only the test moves.

    Attributes:
        admitted: The names of those who were admitted, in that order.
        asked: How often somebody has asked the store.
        ended: When the last of them was admitted.
    """

    def __init__(self, server, monkeypatch, seed=0):
        self.now = self.ended = 1_000.0
        self.admitted, self.asked, self.callers, self.wakes = [], 0, [], itertools.count(1)
        self.random = random.Random(seed)
        for module in (queues, subject):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.server, self.limiters = server, []
        self.limiter = self.process("127.0.0.1")

    def process(self, host):
        """Return the limiter of one more process. Those of one address have common queues."""
        url = f"redis://{host}:{self.server.port}/0"
        self.limiters.append(Limiter(url, clock=lambda: START_US + int(self.now * SECOND), timeout=5.0))
        return self.limiters[-1]

    def comes(self, limits=DRIP, key="k", cost=1, max_wait=600.0, limiter=None, name=None):
        """Have a caller come, and return it."""
        number = len(self.callers) if name is None else name
        caller = Caller(self, number, limiter or self.limiter, limits, key, cost, max_wait)
        self.callers.append(caller)
        return caller

    def run(self, until=float("inf"), then=()):
        """
        Move the clock from one wake-up to the next, until nobody sleeps, or *until* this time.

        Args:
            then: Pairs of a time and what happens then.
        """
        events = [(at, number, act) for number, (at, act) in enumerate(then)]
        heapq.heapify(events)
        while True:
            waiting = [caller for caller in self.callers if caller.steps is not None]
            ready = [caller for caller in waiting if caller.woken or caller.wakes_at <= self.now]
            woken = [caller for caller in ready if caller.woken]
            if ready:  # who was woken goes on in that order, as in an event loop; others at any moment
                first = min(woken, key=lambda caller: caller.woken, default=None)
                timed = [caller for caller in ready if not caller.woken]
                self.random.choice([*timed, *([first] if first else [])]).go_on(None)
                continue
            times = [caller.wakes_at for caller in waiting] + [event[0] for event in events[:1]]
            if min(times, default=float("inf")) > until or not times:
                return
            self.now = max(self.now, min(times))
            while events and events[0][0] <= self.now:
                heapq.heappop(events)[2]()


@pytest.fixture
def make_scene(server, world, monkeypatch):
    """``make_scene(seed)``: a scene, whose limiters are closed after the test."""
    made = []

    def make(seed=0):
        made.append(Scene(server, monkeypatch, seed))
        return made[-1]

    yield make
    monkeypatch.undo()
    for scene in made:
        left = [key for limiter in scene.limiters for key in limiter._queues.by_key]
        for caller in scene.callers:
            caller.leave()
        for limiter in scene.limiters:
            limiter.close()
        assert left == []


@pytest.fixture
def scene(make_scene):
    """Give a scene."""
    return make_scene()


def test_all_are_admitted_in_their_order_as_soon_as_the_limit_allows(scene):
    """One call to the store each, and one of the second when it came. A microsecond too early may cost another."""
    began = scene.now
    for _ in range(60):
        scene.comes()
    scene.run()

    assert scene.admitted == list(range(60))
    assert scene.now - began == pytest.approx(59 / 20, abs=0.001)
    assert 61 <= scene.asked <= 63


def test_who_comes_later_does_not_overtake(scene):
    """Not even in the instant in which a permit is there, before the first has come for it."""
    for _ in range(3):
        scene.comes()
    scene.now += 0.05
    scene.comes()
    scene.run()

    assert scene.admitted == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [FIVE, Limit(name="window", quota=5, window_seconds=1)], ids=lambda limit: limit.name)
def test_a_large_cost_is_neither_overtaken_nor_starved(scene, limit):
    """Nor does one that has come before it wait for it."""
    for cost in (5, 1, 5, 1, 1, 4, 1):
        scene.comes(limit, cost=cost)
    scene.run()

    assert scene.admitted == list(range(7))


def test_the_wait_of_a_smaller_cost_is_not_that_of_the_larger_before_it(scene):
    """Once the larger has left, the permits that are there are enough."""
    scene.comes(FIVE, cost=4)
    large, small = scene.comes(FIVE, cost=5), scene.comes(FIVE, cost=1)
    asked = scene.asked
    scene.run(then=[(scene.now + 0.01, large.leave)], until=scene.now + 0.01)

    assert scene.admitted == [0, 2]
    assert small.admission.decision.remaining == 0
    assert scene.asked == asked + 1


def test_a_smaller_cost_waits_only_for_its_own_permits(scene):
    """What the larger one before it was told does not bind it once that has left."""
    scene.comes(FIVE, cost=5)
    large, began = scene.comes(FIVE, cost=3), scene.now
    scene.comes(FIVE, cost=1)
    scene.run(then=[(began + 0.01, large.leave)])

    assert (scene.admitted, scene.ended - began) == ([0, 2], pytest.approx(0.05, abs=0.001))


def test_who_cannot_be_in_time_is_denied_at_once(scene):
    """Also behind others, if no permit comes by then. It hears when to come again, and the store is not charged."""
    slow = Limit(name="slow", algorithm="token_bucket", quota=1, window_seconds=60)
    scene.comes(slow)
    scene.comes(slow, max_wait=600)
    late = scene.comes(slow, max_wait=59)

    assert late.denial.reason == "limited"
    assert late.denial.retry_after_ms == 60_000
    assert scene.admitted == [0]
    scene.callers[1].leave()


def test_who_has_too_many_before_it_is_denied_when_its_time_is_over(scene):
    """Nobody knows whether those before it stay, so it waits. Its denial does not say that it would pass."""
    for _ in range(10):
        scene.comes(FIVE, cost=5)
    began, late = scene.now, scene.comes(FIVE, cost=1, max_wait=0.3)
    ends = []
    scene.run(then=[(began + 0.3, lambda: ends.append(late.denial))], until=began + 0.31)

    assert ends == [None]
    assert (late.denial.allowed, late.denial.reason) == (False, "limited")
    assert 0 < late.denial.retry_after_ms <= 250
    for caller in scene.callers:
        caller.leave()


def test_a_denial_behind_others_never_says_that_it_would_pass(scene):
    """A smaller cost would find a permit, and must not take it from those before it."""
    scene.comes(FIVE, cost=4)
    scene.comes(FIVE, cost=5)
    late = scene.comes(FIVE, cost=1, max_wait=0.1)
    scene.run(until=scene.now + 0.1)

    assert (late.denial.allowed, late.denial.reason, late.denial.denied_by) == (False, "limited", ("five",))
    assert late.denial.retry_after_ms >= 1
    before = scene.limiter.stats().decisions
    scene.run()
    assert scene.admitted == [0, 1]
    assert sum(row.count for row in before if row.reason == "limited") == 2


@pytest.mark.parametrize(
    ("costs", "together"),
    [
        ([1, 2, 2, 1, 1], [True, True, False, False]),  # 4 are left
        ([1, 1, 1, 1, 1], [True, True, True, True]),
        ([1, 3, 1, 1, 1], [True, False, False, False]),  # the second would pass if another process took 2
        ([2, 1, 3, 1, 1], [True, False, False, False]),
        ([5, 1, 1, 1, 1], [False, False, False, False]),
    ],
)
def test_permits_for_several_are_asked_for_at_the_same_time(scene, costs, together):
    """In their order. A smaller cost does not ask with a larger one that might be denied."""
    window = Limit(name="window", quota=5, window_seconds=1)
    scene.comes(window, cost=5)
    callers = [scene.comes(window, cost=cost) for cost in costs]
    scene.now += 1.001
    callers[0].go_on(None)

    queue = scene.limiter._queues.by_key[callers[0].plan.keys[0]]
    assert [not queue.holds_up(caller) and bool(caller.woken) for caller in callers[1:]] == (
        together if any(together) else [True, False, False, False]
    )
    scene.run()
    assert scene.admitted == list(range(6))


def test_newcomers_need_not_queue_if_there_is_plenty(scene):
    """Else the queue of a busy process would never end."""
    window = Limit(name="window", quota=50, window_seconds=1)
    scene.comes(window, cost=50)
    callers = [scene.comes(window) for _ in range(3)]
    plan = callers[0].plan
    assert scene.limiter._is_behind(plan, 1)

    scene.now += 1.001
    callers[0].go_on(None)
    assert [scene.limiter._is_behind(plan, cost) for cost in (46, 40)] == [True, False]

    scene.limiter.hit(DRIP, "ann")
    denied = scene.comes([(DRIP, "ann"), (window, "k")], None, cost=1)
    assert not denied.admission
    assert not scene.limiter._is_behind(plan, 1)
    denied.leave()

    scene.process("localhost").hit(window, "k", 49)
    callers[1].go_on(None)
    assert scene.limiter._queues.by_key[plan.keys[0]].holds_up(callers[2])
    assert scene.limiter._is_behind(plan, 1)
    scene.run()
    assert scene.admitted == list(range(4))


def test_who_asks_while_others_ask_holds_nobody_up_at_limits_that_admit_it(scene):
    """It has a place meanwhile, so that others of its kind come after it. It keeps that only where it is denied."""
    mine = [(DRIP, "ann"), (WIDE, "all")]
    scene.comes(WIDE, "all", cost=2)
    plan = scene.limiter._plan_in_code(mine, None)
    plan.asking.add(scene)
    scene.comes(mine, None)
    plan.asking.clear()
    assert [key for key in scene.limiter._queues.by_key if key in plan.keys[:1]] == []

    scene.comes(DRIP, "ann")
    assert scene.admitted == [0, 2]
    scene.run()
    assert scene.admitted == [0, 2, 1]


def test_callers_of_other_counters_do_not_wait(scene):
    """The limits of one user do not hold up the others, though all have a limit in common."""
    mine, yours = [(DRIP, "ann"), (WIDE, "all")], [(DRIP, "bob"), (WIDE, "all")]
    for limits in (mine, mine, mine, yours):
        scene.comes(limits, None)

    assert scene.admitted == [0, 3]
    scene.run()
    assert scene.admitted == [0, 3, 1, 2]


@pytest.mark.parametrize("spent", [0, 2], ids=["permits", "none"])
def test_who_waits_long_for_one_limit_holds_nobody_up_at_another(scene, spent):
    """Whether that has permits when it comes, or others wait for them, or it is denied by both."""
    hourly = Limit(name="hourly", quota=1, window_seconds=3600)
    both = [(hourly, "ann"), (WIDE, "all")]
    scene.limiter.hit(hourly, "ann")
    scene.comes(WIDE, "all", cost=2 if spent else 1)
    for name in ("early", "late"):
        scene.comes(both, None, max_wait=7200, name=name)
        for _ in range(3):
            scene.comes(WIDE, "all")
    began = scene.now
    scene.run(until=began + 1)
    assert scene.admitted == [0, 2, 3, 4, 6, 7, 8]

    scene.run(until=began + 3700)
    assert scene.admitted[7:] == ["early"]
    scene.callers[5].leave()


def test_who_waits_for_one_limit_and_then_for_another_keeps_its_place(scene):
    """Two counters, each of which is taken while the other is waited for: nobody starves between them."""
    both, left, right = [(DRIP, "left"), (WIDE, "right")], DRIP, WIDE
    scene.comes(left, "left")
    scene.comes(both, None, name="both")
    for _ in range(30):
        scene.comes(left, "left")
        scene.comes(right, "right")
    scene.run()

    assert scene.admitted.index("both") <= 5  # two of the right had permits when they came, and two came before it
    assert len(scene.admitted) == 62


def test_a_slot_goes_to_the_next_as_soon_as_it_is_free(scene):
    """Without asking the store in between."""
    for _ in range(5):
        scene.comes(SLOT)
    for number in range(5):
        assert scene.admitted == list(range(number + 1))
        asked = scene.asked
        scene.callers[number].admission.free_slots()
        scene.run(until=scene.now)
        assert scene.asked == asked + (number < 4)


def test_a_slot_of_another_process_is_asked_for_again_less_and_less_often(scene):
    """At most once a second, and at the end of the wait. One second is no reason to give up before."""
    other, began = scene.process("localhost"), scene.now
    held = other.open_admission(SLOT, "k")
    waiter, brief = scene.comes(SLOT), scene.comes(SLOT, max_wait=0.1)
    scene.run(until=began + 3.4)

    assert brief.denial.retry_after_ms == 1_000
    assert scene.asked == 1 + 5  # after 0.25, 0.5, 1, 2 and 3 seconds
    held.free_slots()
    scene.run()
    assert (scene.admitted, scene.now - began) == ([0], pytest.approx(4.0, abs=0.001))
    waiter.admission.free_slots()


def test_who_waits_for_a_slot_alone_asks_once_more_at_the_end(scene):
    """Even if its time is shorter than the span after which it would ask."""
    held = scene.process("localhost").open_admission(SLOT, "k")
    lucky, began = scene.comes(SLOT, max_wait=0.1), scene.now
    scene.run(then=[(began + 0.05, held.free_slots)])
    unlucky = scene.comes(SLOT, max_wait=0.1)
    scene.run()

    assert scene.admitted == [0]
    assert unlucky.denial.reason == "limited"
    lucky.admission.free_slots()


def test_permits_that_come_back_are_used_at_once(scene):
    """By a cancelled reservation or a reset of this process."""
    hourly = Limit(name="hourly", quota=1, window_seconds=3600)
    first = scene.comes(hourly, max_wait=7200)
    scene.comes(hourly, max_wait=7200)
    scene.comes(hourly, max_wait=7200)
    first.admission.cancel()
    scene.run(until=scene.now + 1)
    assert scene.admitted == [0, 1]

    scene.limiter.reset(hourly, "k")
    scene.run(until=scene.now + 1)
    assert scene.admitted == [0, 1, 2]


def test_permits_that_come_back_while_the_first_asks_are_not_missed(scene):
    """The answer may be older than they are."""
    first, second = scene.comes(SLOT), scene.comes(SLOT)
    third = scene.comes(SLOT)
    ask = second.ask

    def freed_meanwhile():
        decision = ask()
        second.admission.free_slots()
        return decision

    second.ask = freed_meanwhile
    first.admission.free_slots()
    scene.run(until=scene.now)

    assert scene.admitted == [0, 1, 2]
    third.admission.free_slots()


def test_who_is_hopeless_leaves_at_once(scene):
    """No wait helps a cost above the capacity."""
    scene.comes()
    scene.comes()
    hopeless = scene.comes(cost=2)
    scene.run()

    assert hopeless.denial.reason == "cost_exceeds_capacity"
    assert scene.admitted == [0, 1]


def test_a_first_that_never_asks_holds_up_the_others_only_for_a_while(scene):
    """Its event loop may have stopped. When it runs again, it is the first again."""
    for _ in range(4):
        scene.comes()
    stopped, began = scene.callers[1], scene.now
    steps, stopped.steps = stopped.steps, None
    scene.run(until=began + 14)
    assert scene.admitted == [0]

    scene.run(until=began + queues.GRACE_SECONDS + 15.02)
    assert scene.admitted[:2] == [0, 2]
    stopped.steps = steps
    scene.run()
    assert sorted(scene.admitted) == [0, 1, 2, 3]


def test_all_callers_of_a_loop_that_has_stopped_hold_up_the_others_only_once(scene):
    """Each of them would do so for as long as the first."""
    for _ in range(6):
        scene.comes()
    began, stopped = scene.now, object()
    steps = [(caller, caller.steps) for caller in scene.callers[1:5]]
    for caller, _ in steps:
        caller.loop, caller.steps = stopped, None
    scene.run(until=began + queues.GRACE_SECONDS + 15.02)
    assert scene.admitted == [0, 5]

    for caller, left in steps:
        caller.steps = left
    scene.run()
    assert sorted(scene.admitted) == list(range(6))


def test_a_clock_of_the_store_that_is_set_back_costs_no_calls(scene, monkeypatch):
    """What was known of it counts no more."""
    for _ in range(10):
        scene.comes()
    scene.run(until=scene.now + 0.21)
    asked, admitted = scene.asked, len(scene.admitted)
    monkeypatch.setattr("tests.enforcement.waiting.test_queues.START_US", START_US - 10_000)
    scene.run()

    assert scene.admitted == list(range(10))
    assert scene.asked - asked <= 10 - admitted + 1


def test_a_child_process_has_no_queues(scene):
    """Those who wait are threads and tasks of its parent."""
    scene.comes()
    scene.comes()
    assert scene.limiter._queues.by_key
    if os.fork() == 0:
        os._exit(len(scene.limiter._queues.by_key))
    assert os.wait()[1] == 0
    scene.run()
    assert scene.admitted == [0, 1]


def test_queues_of_a_store_end_with_its_last_limiter(server):
    """Nothing of them is kept."""
    url = f"{server.url}?of=this"
    first = id(queues_of(url))
    gc.collect()
    assert url not in queues._queues
    assert first


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(scale(3, 200)))
def test_nobody_is_overtaken_and_nothing_is_lost_whatever_happens(make_scene, seed):
    """
    Two processes, of which one has costs of 1 to 5, and callers that are cancelled or run out of time at random.

    Each process keeps its order. The permits of those who left go to others: until the last is admitted, each permit
    that the limit had is spent.
    """
    scene = make_scene(seed)
    rng, began = scene.random, scene.now
    others = scene.process("localhost")
    mine, theirs = [], []
    for number in range(60):
        ours = rng.random() < 0.6
        limiter, cost = (scene.limiter, rng.randint(1, 5)) if ours else (others, 1)
        max_wait = rng.choice([600.0, 600.0, rng.random() * 5])
        caller = scene.comes(FIVE, cost=cost, max_wait=max_wait, limiter=limiter, name=(limiter is others, number))
        (mine if ours else theirs).append(caller)
        if rng.random() < 0.3:
            scene.run(until=scene.now + rng.random() / 10)
    leaving = [c for c in scene.callers if rng.random() < 0.3]
    scene.run(then=[(scene.now + rng.random() * 5, caller.leave) for caller in leaving])

    for callers in (mine, theirs):
        served = [caller.name for caller in callers if caller.admission is not None]
        assert [name for name in scene.admitted if name in set(served)] == served
    spent = sum(caller.costs for caller in scene.callers if caller.admission is not None)
    [left] = [c.admission.decision.remaining for c in scene.callers if c.name == scene.admitted[-1]]
    assert 0 <= 5 + 20 * (scene.ended - began) - spent - left < 2
    assert scene.asked <= 4 * len(scene.callers)
