"""A clock that a test moves: windows, buckets and calendars follow it alone."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from enforcement import Limit
from enforcement.testing import Clock, assert_allowed, assert_denied, assert_limited
from tests.enforcement.testing.limits import BUCKET, PER_MINUTE


def test_windows_roll_by_the_clock_alone(limiter, clock):
    """A minute passes when the test moves the clock, and not a moment earlier."""
    assert_limited(limiter, PER_MINUTE, "k", admits=5, within_seconds=60)
    clock.advance(seconds=59.999)
    assert_denied(limiter.hit(PER_MINUTE, "k"), reason="limited", by="rpm")
    clock.advance(seconds=0.001)

    assert_limited(limiter, PER_MINUTE, "k", admits=5)


def test_buckets_fill_by_the_clock(limiter, clock):
    """One permit a second comes back, up to the burst."""
    assert_limited(limiter, BUCKET, "k", admits=3, within_seconds=1)
    clock.advance(seconds=2)
    assert_limited(limiter, BUCKET, "k", admits=2)
    clock.advance(hours=1)

    assert_limited(limiter, BUCKET, "k", admits=3)


def test_the_clock_can_stand_anywhere(limiter, clock):
    """A leap day, its last minute and the first of the next month; any zone is the same instant."""
    monthly = Limit(name="monthly", quota=1, calendar="month")
    clock.at(datetime(2028, 2, 29, 23, 59, tzinfo=UTC))
    assert_limited(limiter, monthly, "k", admits=1, within_seconds=60)
    clock.at(datetime(2028, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=1))))

    assert clock.now == datetime(2028, 3, 1, tzinfo=UTC)
    assert_allowed(limiter.hit(monthly, "k"))


def test_a_clock_is_exact_and_strict():
    """It counts integer microseconds; an instant without a zone, or a step back by mistake, is an error."""
    clock = Clock(datetime(2100, 1, 1, tzinfo=UTC))
    clock.advance(days=1, seconds=0.000001)

    assert clock() == 4_102_444_800_000_000 + 86_400_000_000 + 1
    with pytest.raises(ValueError, match="now: must have a time zone"):
        clock.at(datetime(2100, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="must not go back"):
        clock.advance(seconds=-1)
