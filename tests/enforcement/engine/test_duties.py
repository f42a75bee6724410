"""The small objects that the background thread is composed of."""

from __future__ import annotations

import logging

from enforcement.engine.duties import OnceLogger
from enforcement.engine.store_clock import StoreClock


def test_a_warning_is_logged_once_until_it_is_forgotten(caplog) -> None:
    """A problem that is there at every check makes one line, and another one when it comes back."""
    caplog.set_level(logging.WARNING, logger="sluicegate")
    once = OnceLogger()
    for text in ("a", "b", "a"):
        once.warn(text)

    once.forget_except(["b"])
    once.warn("a")
    once.warn("b")

    assert caplog.messages == ["a", "b", "a"]


def test_the_clock_takes_a_reply_for_the_middle_of_its_call() -> None:
    """A call of 2 s has the time of the store at its first second, and the monotonic clock goes on from there."""
    clock = StoreClock()
    clock.monotonic = lambda: 12.0

    clock.set(1_000_000_000, sent_us=10_000_000)

    assert clock.now_us() == 1_001_000_000
    clock.monotonic = lambda: 15.0
    assert clock.now_us() == 1_004_000_000
