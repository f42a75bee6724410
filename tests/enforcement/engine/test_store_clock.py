"""The time of the store between its replies."""

from __future__ import annotations

import pytest

from enforcement.engine.store_clock import StoreClock


def test_the_clock_takes_a_reply_for_the_middle_of_its_call() -> None:
    """A call of 2 s has the time of the store at its first second, and the monotonic clock goes on from there."""
    clock = StoreClock()
    clock.monotonic = lambda: 12.0

    clock.set(1_000_000_000, sent_us=10_000_000)

    assert clock.now_us() == 1_001_000_000
    clock.monotonic = lambda: 15.0
    assert clock.now_us() == 1_004_000_000


@pytest.mark.parametrize("stood_still", ["the store", "this process"])
def test_a_slow_reply_says_less_of_the_clock_than_a_fast_one(stood_still: str) -> None:
    """The store read its clock at the end of such a call, or at its beginning, and not in the middle."""
    clock = StoreClock()
    clock.monotonic = lambda: 10.0
    clock.set(1_000_000_000, sent_us=9_999_000)

    clock.monotonic = lambda: 12.0
    clock.set(1_001_999_000 if stood_still == "the store" else 1_001_001_000, sent_us=11_000_000)

    assert abs(clock.now_us() - 1_002_000_000) <= 2_000
    clock.set(1_005_000_000, sent_us=11_000_000)  # earlier replies cannot be true any more: somebody set the clock
    assert clock.now_us() == 1_005_500_000


def test_a_clock_that_ntp_corrects_is_not_taken_for_one_that_was_set() -> None:
    """NTP lets a clock go faster by 0.05 %. A fast reply still bounds one of a store that stood still then."""
    clock, now = StoreClock(), 10.0
    clock.monotonic = lambda: now
    now = 10.01
    clock.set(int(10.0 * 1_000_500), sent_us=10_000_000)
    now = 13.0
    clock.set(int(now * 1_000_500), sent_us=12_000_000)

    assert abs(clock.now_us() - now * 1_000_500) < 10_000
