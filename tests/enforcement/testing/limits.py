"""Limits that the tests of the kit share, and what a failed assertion shows."""

import pytest

from enforcement import Limit

PER_MINUTE = Limit(name="rpm", quota=5, window_seconds=60)
PER_DAY = Limit(name="rpd", quota=7, calendar="day")
BUCKET = Limit(name="bucket", algorithm="token_bucket", quota=60, burst=3, window_seconds=60)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=2, window_seconds=30)


def failure_of(call):
    """Return the message of an assertion that fails."""
    with pytest.raises(AssertionError) as failure:
        call()
    return str(failure.value)
