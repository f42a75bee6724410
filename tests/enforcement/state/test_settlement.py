"""Corrections that the store cannot make at once, because its time lies in another window of a calendar."""

import threading

import pytest

from enforcement import Limit
from enforcement.testing import Clock
from tests.enforcement.world import fixed

DAYS_US = 5 * 86_400_000_000
DAY = Limit(name="day", quota=100, calendar="day", unit="tokens")


class LeapingClock(Clock):
    """A clock that is five days ahead once, at the second next look of this thread: between process and store."""

    def __init__(self):
        super().__init__()
        self.looks, self._owner = None, threading.get_ident()

    def __call__(self):
        if self.looks is None or threading.get_ident() != self._owner:
            return super().__call__()
        self.looks -= 1
        leaps = self.looks == 0
        self.looks = None if leaps else self.looks
        return super().__call__() + (DAYS_US if leaps else 0)


@pytest.fixture
def clock():
    return LeapingClock()


@pytest.fixture
def limiter(make_limiter, server, world, clock):
    return make_limiter(server.url, clock=clock)


def test_a_correction_is_made_by_the_next_decision(limiter, clock):
    with limiter.admit(DAY, "k", costs={"tokens": 10}) as admission:
        clock.looks = 2
        admission.settle({"tokens": 3})
    assert clock.looks is None
    assert limiter.hit(DAY, "k", costs={"tokens": 1}).remaining == 96
    assert limiter.hit(DAY, "k", costs={"tokens": 1}).remaining == 95


def test_a_recorded_reservation_is_settled_by_the_next_decision(limiter, world, clock):
    secret = world.everything({**fixed(100, name="day", unit="tokens"), "calendar": "day", "window_seconds": None})
    admission = limiter.admit_plan(limiter.find_plan(secret, None), {"tokens": 10}, None, {"model": "m"})
    clock.looks = 2
    admission.conclude({"tokens": 3})
    assert clock.looks is None
    assert limiter.check(secret, {"tokens": 1}).remaining == 96
    assert not limiter.settle(admission.id, {"tokens": 50})
    assert limiter.check(secret, {"tokens": 1}).remaining == 95


def test_what_cannot_be_replayed_yet_stays_owed(limiter, clock):
    """A decision is made in the store all the same."""
    with limiter.admit(DAY, "k", costs={"tokens": 10}) as admission:
        clock.looks = 2
        admission.settle({"tokens": 3})
    clock.looks = 2
    assert limiter.hit(DAY, "k", costs={"tokens": 1}).source == "store"
    assert clock.looks is None
    assert limiter.hit(DAY, "k", costs={"tokens": 1}).remaining == 95
