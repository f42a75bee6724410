"""What calendar windows leave to the next ones, against counting by hand from the first window on."""

import itertools
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enforcement import InvalidLimit, Limit, Limiter
from enforcement.model.calendars import number_of, window
from enforcement.model.documents import OverrideDocument
from enforcement.model.partitions import SPARE_WINDOWS, life_us
from enforcement.plan.binding import BoundLimit
from enforcement.store.client import connect
from tests.scale import scale

SECOND = 1_000_000
DAY = 86_400 * SECOND
START_US = 1_767_225_600 * SECOND  # 2026-01-01
EXAMPLES = scale(100, 2_000)
keys = itertools.count()


class Clock:
    now = START_US

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def limiter(server, clock):
    with Limiter(server.url, clock=clock, timeout=2.0) as limiter:
        yield limiter


def month_of(at_us: int) -> int:
    at = datetime.fromtimestamp(at_us / SECOND, UTC)
    return at.year * 12 + at.month


def month_starts(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * SECOND


class ByHand:
    """The use of each month, and what is left of one if every month before it is walked through."""

    def __init__(self, quota: int, rollover: int) -> None:
        self.quota, self.rollover, self.used, self.counted = quota, rollover, Counter(), set()

    def pass_to(self, month: int) -> None:
        """Note which months before the present one were used."""
        self.counted |= {known for known in self.used if known < month and self.used[known]}

    def left(self, month: int) -> int:
        carried = 0
        for earlier in range(min(self.used, default=month), month):
            carried = min(self.rollover, max(0, self.quota + carried - self.used[earlier]))
        return self.quota + carried - self.used[month]

    def settle(self, month: int, permits: int) -> None:
        """Correct a charge, unless a later month before the present one was used."""
        if month >= max(self.counted, default=month):
            self.used[month] = max(0, self.used[month] + permits)


steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "hit"]),
        st.integers(0, 12),
        st.sampled_from([31, 0, 0, 31, 100]),
    ),
    min_size=8,
    max_size=24,
)


@pytest.mark.proof
@given(quota=st.integers(1, 10), rollover=st.sampled_from([1, 4, 10, 25, 2**53 - 1]), steps=steps)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_is_left_is_what_a_walk_through_every_month_leaves(limiter, clock, quota, rollover, steps):
    """Charges, late refunds and late debts, with idle months between them."""
    limit = Limit(name="budget", quota=quota, calendar="month", rollover=rollover)
    by_hand, key, opened, clock.now = ByHand(quota, rollover), f"k{next(keys)}", [], START_US
    limiter.hit(limit, key, costs=1)
    by_hand.used[month_of(clock.now)] = 1
    with ExitStack() as stack:
        for verb, cost, days in steps:
            clock.now += days * DAY
            month = month_of(clock.now)
            by_hand.pass_to(month)
            left = by_hand.left(month)
            if verb == "settle" and opened:
                admission, permits, charged = opened.pop(cost % len(opened))
                admission.settle(cost)
                by_hand.settle(charged, cost - permits)
            elif verb == "reserve" and left > 0:
                cost = min(left, cost + 1)
                opened.append((stack.enter_context(limiter.admit(limit, key, costs=cost)), cost, month))
                by_hand.used[month] += cost
            else:
                decision = limiter.hit(limit, key, costs=cost)
                assert decision.allowed == (cost == 0 or cost <= left)
                by_hand.used[month] += cost if decision.allowed else 0
            assert limiter.peek(limit, key).remaining == max(0, by_hand.left(month))


@pytest.mark.parametrize(
    ("used", "cost", "days"), [(4, 10, 1), (4, 16, 1), (4, 17, 2), (10, 20, 2), (10, 21, 3), (1, 39, 3)]
)
def test_a_cost_above_the_quota_waits_for_as_many_windows_as_leave_it(limiter, clock, used, cost, days):
    """A microsecond before, it does not pass, and then it does."""
    limit, key, clock.now = (
        Limit(name="budget", quota=10, calendar="day", rollover=30),
        f"k{next(keys)}",
        START_US + DAY // 3,
    )
    limiter.hit(limit, key, costs=used)

    wait = limiter.hit(limit, key, costs=cost).retry_after_ms

    assert wait * 1_000 == days * DAY - DAY // 3
    clock.now += wait * 1_000 - 1
    assert not limiter.hit(limit, key, costs=cost)
    clock.now += 1
    assert limiter.hit(limit, key, costs=cost)


def test_a_counter_that_was_never_charged_has_nothing_to_wait_for(limiter, clock):
    """It carries nothing, so no wait helps. Once anything was charged, windows leave their permits."""
    limit, key, clock.now = Limit(name="budget", quota=10, calendar="day", rollover=30), f"k{next(keys)}", START_US

    assert limiter.hit(limit, key, costs=11).retry_after_ms is None
    clock.now += DAY
    assert not limiter.hit(limit, key, costs=11)
    limiter.hit(limit, key, costs=1)
    assert limiter.hit(limit, key, costs=11).retry_after_ms == DAY // 1_000


@pytest.mark.parametrize(("calendar", "idle_us"), [("minute", 60 * SECOND), ("hour", 3_600 * SECOND), ("day", DAY)])
def test_a_counter_that_is_idle_for_long_is_forgotten(limiter, clock, server, calendar, idle_us):
    """It is kept for the windows that fill the rollover, and for 100 more. Then it is new."""
    key, clock.now = f"k{next(keys)}", START_US
    limit = Limit(name="budget", quota=10, calendar=calendar, rollover=25)
    kept_us = (3 + SPARE_WINDOWS) * (idle_us if calendar != "day" else 25 * 3_600 * SECOND)
    limiter.hit(limit, key, costs=10)

    clock.now = START_US + idle_us + kept_us - 1
    assert limiter.peek(limit, key).remaining == 35
    clock.now += 1
    assert limiter.peek(limit, key).remaining == 10


@pytest.mark.parametrize(
    ("calendar", "zone", "cost", "at"),
    [
        ("month", "UTC", 11, "2026-02-01T00:00"),
        ("month", "UTC", 14, "2026-03-01T00:00"),
        ("month", "UTC", 35, "2026-05-01T00:00"),
        ("day", "Europe/Berlin", 35, "2026-01-04T23:00"),
        ("hour", "Asia/Kathmandu", 24, "2026-01-01T02:15"),
    ],
)
def test_retry_after_is_when_enough_is_carried(limiter, clock, calendar, zone, cost, at):
    """A cost above the quota may need what several windows leave. It fits then, and not before."""
    limit = Limit(name="budget", quota=10, calendar=calendar, time_zone=zone, rollover=25)
    key, clock.now = f"k{next(keys)}", START_US
    limiter.hit(limit, key, costs=9)

    denied = limiter.hit(limit, key, costs=cost)
    assert (denied.reason, denied.allowed) == ("limited", False)
    wait_us = denied.retry_after_ms * 1_000
    assert datetime.fromtimestamp((START_US + wait_us) / SECOND, UTC).isoformat()[:16] == at
    clock.now = START_US + wait_us - 1
    assert limiter.peek(limit, key).remaining < cost
    clock.now += 1
    assert limiter.hit(limit, key, costs=cost).allowed


def test_a_denial_names_no_quota_below_what_is_left(limiter, clock):
    """15 of 10 would be a riddle."""
    limit = Limit(name="budget", quota=10, calendar="month", rollover=25)
    key, clock.now = f"k{next(keys)}", START_US
    limiter.hit(limit, key, costs=5)
    assert limiter.hit(limit, key, costs=6).problem()["detail"].startswith("budget has 5 of 10 requests left. Try")

    clock.now = month_starts(2026, 2)
    assert limiter.hit(limit, key, costs=16).problem()["detail"].startswith("budget has 15 requests left. Try")


def test_no_wait_helps_a_cost_above_the_quota_of_an_unused_counter(limiter, clock):
    """It carries nothing until it is charged. A counter that is forgotten before it carries enough does not either."""
    limit = Limit(name="budget", quota=1, calendar="year", rollover=100)
    key, clock.now = f"k{next(keys)}", START_US

    assert limiter.hit(limit, key, costs=2).retry_after_ms is None
    limiter.hit(limit, key)
    assert limiter.hit(limit, key, costs=10).retry_after_ms == 3_652 * 86_400_000
    assert limiter.hit(limit, key, costs=11).retry_after_ms is None


@pytest.mark.parametrize("calendar", ["minute", "hour", "day", "week", "month", "year"])
def test_a_cost_that_takes_longer_than_the_calendar_lasts_never_fits(limiter, clock, calendar):
    """Days after the year 9999 have no date."""
    limit = Limit(name="budget", quota=1, calendar=calendar, rollover=2**53 - 2)
    key, clock.now = f"k{next(keys)}", START_US
    limiter.hit(limit, key)

    for cost in (10**5, 5 * 10**6, 6 * 10**6, 2**52):
        denied = limiter.hit(limit, key, costs=cost)
        assert (denied.reason, denied.retry_after_ms is None) == ("limited", calendar != "minute" or cost > 5 * 10**6)


def test_a_clock_that_is_set_back_by_a_month_gives_nothing(limiter, clock):
    """The last charge may lie two months ahead, as the one between them is shorter."""
    limit = Limit(name="budget", quota=10, calendar="month", rollover=2)
    key, clock.now = f"k{next(keys)}", month_starts(2026, 5)
    limiter.hit(limit, key, costs=10)
    clock.now = month_starts(2026, 4) - 1

    decision = limiter.hit(limit, key)
    assert (decision.source, decision.allowed, decision.remaining) == ("store", False, 0)


@pytest.mark.usefixtures("no_documents")
def test_a_counter_lives_in_the_store_as_long_as_it_carries(server):
    """By the store's own clock, which also ends it."""
    limit, client = Limit(name="budget", quota=10, calendar="minute", rollover=25), connect(server.url)
    before = set(client.scan_iter("sg:*"))
    with Limiter(server.url) as limiter:
        limiter.hit(limit, "lives")
    (key,) = [key for key in set(client.scan_iter("sg:*")) - before if ":c:" in key]

    assert 103 * 60_000 - 5_000 < client.pttl(key) <= 104 * 60_000


def test_an_override_changes_the_quota_and_keeps_the_rollover():
    """It may even be the greatest number, with which nothing can be carried."""
    limit = Limit(name="budget", quota=10, calendar="month", rollover=5)

    def overridden(quota):
        return OverrideDocument("o", "p", "budget", quota).apply(limit)

    assert (overridden(20).rollover, overridden(20).capacity) == (5, 25)
    assert overridden(0).capacity == 0
    assert overridden(2**53 - 1).capacity == 2**53 - 1


def test_a_value_stays_registered_as_long_as_its_counter_carries():
    """So the cap on values cannot be passed by waiting for a window's end."""
    plain = Limit(name="budget", quota=10, calendar="day")
    rolling = Limit(name="budget", quota=10, calendar="day", rollover=25)

    assert life_us(rolling) - life_us(plain) == 103 * 25 * 3_600 * SECOND


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"calendar": "day", "rollover": 0}, "rollover: Must be an integer from 1 to 9007199254740991, got 0."),
        ({"calendar": "day", "rollover": 1.5}, "rollover: Must be an integer from 1 to 9007199254740991, got 1.5."),
        ({"calendar": "lifetime", "rollover": 5}, "rollover: Only a fixed_window of the calendar that ends"),
        ({"window_seconds": 60, "rollover": 5}, "rollover: Only a fixed_window of the calendar that ends"),
        ({"calendar": "day", "rollover": 5, "consistency": "leased"}, "consistency: Must be strict for a limit with"),
    ],
)
def test_a_rollover_that_cannot_be_is_refused(fields, error):
    """The error names the field and the rule."""
    with pytest.raises(InvalidLimit) as caught:
        Limit(name="budget", quota=10, **fields)

    assert str(caught.value).startswith(error)


@pytest.mark.parametrize(
    ("calendar", "anchor", "zone"),
    [
        ("month", 31, "UTC"),
        ("month", None, "America/New_York"),
        ("week", 7, "Europe/Berlin"),
        ("year", "02-29", "UTC"),
        ("day", "23:30", "Europe/Berlin"),
        ("hour", None, "Asia/Kolkata"),
        ("minute", None, "Europe/Berlin"),
    ],
)
def test_windows_are_numbered_one_after_the_other(calendar, anchor, zone):
    """Through the changes of the clock in spring and autumn, and through February."""
    at, number = START_US + 85 * DAY, None
    for _ in range(400):
        start, end = window(at, calendar, zone, anchor)
        found = number_of(start, calendar, zone, anchor)
        assert number is None or found == number + 1
        at, number = end, found


def test_a_plain_limit_is_sent_as_before():
    """Not a byte of its command knows of the rollover."""
    plain = Limit(name="budget", quota=10, calendar="day")
    text = BoundLimit(plain, "sg:{t}:c:1", "key").spec(START_US).text

    assert text == f"f|10|0|{START_US - DAY},{START_US},{START_US + DAY},{START_US + 2 * DAY}|"
