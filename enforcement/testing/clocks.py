"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from enforcement.model.instants import to_us

# The store deletes expired tokens by its own clock, which must never be ahead of the clock of the test.
START: Final = datetime(2100, 1, 1, tzinfo=UTC)


class Clock:
    """
    A clock for ``Limiter(clock=...)`` that stands still until it is moved.

    Windows, buckets, slots and the expiry of tokens follow this clock alone.

    Args:
        now: The first instant, with a time zone.
    Raises:
        ValueError: *now* has no time zone.
    """

    def __init__(self, now: datetime = START) -> None:
        self.at(now)

    def __call__(self) -> int:
        """Return the time in microseconds since the epoch."""
        return to_us(self._now)

    @property
    def now(self) -> datetime:
        """The time of this clock in UTC."""
        return self._now

    def at(self, now: datetime) -> None:
        """Set the clock, forwards or backwards. Raises ValueError if *now* has no time zone."""
        if now.tzinfo is None:
            raise ValueError("now: must have a time zone, such as tzinfo=UTC.")
        self._now = now.astimezone(UTC)

    def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """Move the clock forward. Raises ValueError for a step back, which needs ``at()``."""
        step = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if step < timedelta():
            raise ValueError(f"advance: must not go back, got {step.total_seconds()} seconds. Use at().")
        self._now += step

    def __repr__(self) -> str:
        return f"<Clock {self._now.isoformat()}>"
