"""Limits with a rollover while the store is away, and what it knows of that time afterwards."""

import pytest

from enforcement import Limit, Limiter
from enforcement.failover.shares import with_share
from enforcement.plan.binding import BoundLimit
from tests.enforcement.world import eventually

pytestmark = pytest.mark.usefixtures("documents")

DAY = 86_400_000_000
START_US = 1_767_225_600_000_000
LIMIT = Limit(name="budget", quota=10, calendar="day", rollover=20)


class Clock:
    now = START_US

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limiter(own_server, clock):
    with Limiter(own_server.url, timeout=0.1, clock=clock) as limiter:
        yield limiter
        own_server.thaw()  # to close a limiter takes seconds while its store is frozen


def admitted(limiter):
    decisions = [limiter.hit(LIMIT, "k") for _ in range(35)]
    assert {decision.source for decision in decisions} == {"fallback"}
    return sum(decision.allowed for decision in decisions)


def left_in_the_store(limiter):
    """Return what is left when the store is back and all is replayed."""
    assert eventually(lambda: limiter.peek(LIMIT, "k").source == "store" and not limiter._engine.fallback.owes())
    return limiter.peek(LIMIT, "k").remaining


def test_what_was_carried_is_spent_while_the_store_is_away(own_server, limiter, clock):
    """The last reply said that 9 were left of the day before. Afterwards the store counts the same."""
    limiter.hit(LIMIT, "k")
    clock.now += DAY
    assert limiter.peek(LIMIT, "k").remaining == 19
    own_server.freeze()

    assert admitted(limiter) == 19
    own_server.thaw()
    assert left_in_the_store(limiter) == 0


def test_a_day_that_ends_while_the_store_is_away_leaves_what_is_left_here(own_server, limiter, clock):
    """4 of 10 were used in the store, and 3 here. So 3 are carried into the next day, here and there."""
    limiter.hit(LIMIT, "k", costs=4)
    own_server.freeze()
    assert limiter.hit(LIMIT, "k", costs=3).remaining == 3
    clock.now += DAY

    assert limiter.hit(LIMIT, "k", costs=2).remaining == 11
    own_server.thaw()
    assert left_in_the_store(limiter) == 11


def test_what_was_used_on_a_day_that_the_store_saw_nothing_of_is_not_carried(own_server, limiter, clock):
    """The store would take that day for an idle one, until the charges of the day are replayed."""
    limiter.hit(LIMIT, "k", costs=10)
    clock.now += 2 * DAY
    own_server.freeze()
    assert limiter.hit(LIMIT, "k", costs=7).allowed
    clock.now += 3 * DAY
    own_server.thaw()

    # 10 of the idle day and 3 of the one after it, then 10 and 10 of two idle days, but 20 at most.
    assert left_in_the_store(limiter) == 30


def test_a_process_without_a_reply_of_this_day_carries_nothing(own_server, limiter, clock):
    """Others may have used what was left by the last reply."""
    limiter.hit(LIMIT, "k")
    clock.now += DAY
    own_server.freeze()

    assert admitted(limiter) == 10


@pytest.mark.parametrize("days", [1, 2, 40])
def test_a_clock_that_is_set_back_while_the_store_is_away_gives_nothing(own_server, limiter, clock, days):
    """The last reply is of later than the present. What it left is what is left."""
    limiter.hit(LIMIT, "k", costs=7)
    clock.now -= days * DAY
    own_server.freeze()

    assert admitted(limiter) == 3


@pytest.mark.parametrize(("fleet", "quota", "carried"), [(1, 10, 20), (2, 5, 10), (3, 3, 7), (20, 1, 0), (1_000, 1, 0)])
def test_the_share_of_a_process_is_a_part_of_both(fleet, quota, carried):
    """At least one permit of the quota, as of other limits."""
    spec = BoundLimit(LIMIT, "sg:{t}:c:1", "key").spec(START_US)

    share = with_share(spec, max(1, spec.capacity // fleet))

    assert (share.a, share.capacity - share.a) == (quota, carried)
