"""Decisions against counting by hand: every charge is kept, and each sum is taken anew, in fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enforcement import Limit, Limiter
from enforcement.model.algorithms import HOPELESS, Reference
from enforcement.plan.binding import BoundLimit
from tests.scale import scale

START_US, SECOND = 1_767_225_600_000_000, 1_000_000
# A sum that is one permit or one microsecond off shows within a few dozen examples, since costs and instants are chosen
# near the edges. The full numbers look for what needs a rare mixture.
EXAMPLES, SEVERAL_EXAMPLES = scale(100, 3_000), scale(50, 1_500)
ALGORITHMS = ["fixed_window", "sliding_window", "sliding_log", "token_bucket"]


class ByHand:
    """All charges of one limit, and the room that they leave at an instant."""

    def __init__(self, limit: Limit) -> None:
        self.limit, self.length = limit, limit.window_seconds * SECOND
        self.charges: list[tuple[int, int]] = []

    def room(self, at: int) -> Fraction:
        return getattr(self, f"_{self.limit.algorithm}")(at)

    def fits(self, at: int, cost: int) -> bool:
        return cost == 0 or cost <= min(self.room(at), self.limit.capacity)

    def _between(self, first: int, last: int) -> int:
        return sum(cost for instant, cost in self.charges if first <= instant <= last)

    def _fixed_window(self, at: int) -> Fraction:
        return Fraction(self.limit.quota - self._between(at - at % self.length, at))

    def _sliding_window(self, at: int) -> Fraction:
        start = at - at % self.length
        faded = Fraction(self._between(start - self.length, start - 1) * (start + self.length - at), self.length)
        return Fraction(self.limit.quota - self._between(start, at) - max(0, math.ceil(faded) - 1))

    def _sliding_log(self, at: int) -> Fraction:
        return Fraction(self.limit.quota - self._between(at - self.length + 1, at))

    def _token_bucket(self, at: int) -> Fraction:
        full, last = Fraction(self.limit.capacity), START_US
        left = full
        for instant, cost in [*self.charges, (at, 0)]:
            left = min(full, left + Fraction(self.limit.quota * (instant - last), self.length)) - cost
            last = instant
        return left


quotas = st.one_of(st.integers(1, 12), st.sampled_from([60, 100, 999_983]))
windows = st.sampled_from([1, 2, 3, 7, 10, 60, 3_600])
calls = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0, 1, 999, 1_000]), st.integers(0, 20 * SECOND), st.integers(0, 7_200 * SECOND)),
        st.one_of(st.integers(0, 13), st.sampled_from(["all", "one more", "capacity", "above"])),
    ),
    max_size=25,
)


def cost_of(wish, by_hand, now):
    """Return a cost near the edge: a wish is a number, or named by what is left."""
    room, capacity = max(0, math.floor(by_hand.room(now))), by_hand.limit.capacity
    return {"all": room, "one more": room + 1, "capacity": capacity, "above": capacity + 1}.get(wish, wish)


def check_wait(by_hand, now, cost, wait_us):
    """The same cost passes after the wait as it is told, and a millisecond sooner it does not."""
    wait_ms = -(-wait_us // 1_000)
    assert by_hand.fits(now + wait_ms * 1_000, cost)
    assert not by_hand.fits(now + (wait_ms - 1) * 1_000, cost)


@pytest.mark.proof
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quota=quotas, window=windows, burst=st.one_of(st.none(), st.integers(1, 50)), calls=calls)
@settings(max_examples=EXAMPLES, deadline=None)
def test_answers_are_exact(algorithm, quota, window, burst, calls):
    """What passes, what remains, how long to wait, when more remains, and when nothing is felt any more."""
    burst = burst if algorithm == "token_bucket" else None
    limit = Limit(name="x", algorithm=algorithm, quota=quota, window_seconds=window, burst=burst)
    by_hand, reference, spec, now = ByHand(limit), Reference(), BoundLimit(limit, "k", "key").spec(START_US), START_US
    for stride, wish in calls:
        now += stride
        cost = cost_of(wish, by_hand, now)
        passed, _, remaining, reset, wait, more = reference.decide(now, [("k", spec, cost)])

        assert passed == by_hand.fits(now, cost)
        if cost > limit.capacity:
            assert wait == HOPELESS
        elif not passed:
            check_wait(by_hand, now, cost, wait)
        if passed and cost:
            by_hand.charges.append((now, cost))
        assert remaining == math.floor(by_hand.room(now))
        if remaining < limit.capacity:
            check_wait(by_hand, now, max(0, remaining) + 1, more)
        if algorithm != "fixed_window":
            assert by_hand.room(now + reset) == limit.capacity
            assert not reset or by_hand.room(now + reset - 1) < limit.capacity


limits = st.lists(
    st.builds(
        Limit,
        name=st.sampled_from(["a", "b", "c", "d"]),
        algorithm=st.sampled_from(ALGORITHMS),
        quota=st.sampled_from([0, 1, 2, 5, 10, 100]),
        window_seconds=st.sampled_from([1, 2, 10, 60]),
        unit=st.sampled_from(["requests", "requests", "tokens"]),
        mode=st.sampled_from(["enforce", "enforce", "shadow"]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda limit: limit.name,
)
several_calls = st.lists(
    st.tuples(st.sampled_from([0, 1_000, 700_000, 5 * SECOND, 61 * SECOND]), st.integers(0, 6), st.integers(0, 12)),
    max_size=10,
)


def contents(client):
    """Return every key of a store with what it holds."""
    return {key: client.dump(key) for key in client.scan_iter()}


@pytest.mark.proof
@given(limits=limits, calls=several_calls)
@settings(max_examples=SEVERAL_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_several_limits_are_charged_together_or_not_at_all(server, world, limits, calls):
    """Units, shadows and the hopeless in any mixture; a denial leaves every byte of the store as it was."""
    world.client.flushdb()
    now = START_US
    by_hand = {limit.name: ByHand(limit) for limit in limits}
    limiter = Limiter(server.url, clock=lambda: now, timeout=2.0)
    for stride, requests, tokens in calls:
        now += stride
        costs = {"requests": requests, "tokens": tokens if any(limit.unit == "tokens" for limit in limits) else 0}
        fits = {limit.name: by_hand[limit.name].fits(now, costs[limit.unit]) for limit in limits}
        deniers = [limit for limit in limits if not fits[limit.name] and not limit.shadow]
        hopeless = [limit for limit in deniers if costs[limit.unit] > limit.capacity]
        before = contents(world.client)
        decision = limiter.hit(limits, "k", costs)

        assert decision.allowed == (not deniers)
        assert decision.denied_by == tuple(limit.name for limit in deniers)
        assert (decision.reason == "cost_exceeds_capacity") == bool(hopeless)
        if deniers:
            assert contents(world.client) == before
        for limit, state in zip(limits, decision.limits, strict=True):
            if not deniers and fits[limit.name] and costs[limit.unit]:
                by_hand[limit.name].charges.append((now, costs[limit.unit]))
            assert state.allowed == fits[limit.name]
            assert state.remaining == max(0, math.floor(by_hand[limit.name].room(now)))
    limiter.close()
