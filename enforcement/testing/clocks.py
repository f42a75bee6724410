"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

# Far ahead: the store forgets an expired token by its own clock, which must not pass the test's.
START: Final = datetime(2100, 1, 1, tzinfo=UTC)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Clock:
    """
    Time for ``Limiter(clock=...)``: windows, buckets, slots and the expiry of tokens follow it alone.

    Args:
        now: Where it stands; with a time zone.
    Raises:
        ValueError: *now* has no time zone.
    """

    def __init__(self, now: datetime = START) -> None:
        self.at(now)

    def __call__(self) -> int:
        """Return the time in microseconds since the epoch."""
        return (self._now - _EPOCH) // _MICROSECOND

    @property
    def now(self) -> datetime:
        """Where it stands, in UTC."""
        return self._now

    def at(self, now: datetime) -> None:
        """Put it to an instant, also a former one. Raises ValueError: the instant has no time zone."""
        if now.tzinfo is None:
            raise ValueError("now: must have a time zone, for instance tzinfo=UTC.")
        self._now = now.astimezone(UTC)

    def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """Move it on. Raises ValueError: a step back, which only ``at()`` makes."""
        step = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if step < timedelta():
            raise ValueError(f"advance: must not go back, and {step.total_seconds()} seconds do; use at().")
        self._now += step

    def __repr__(self) -> str:
        return f"<Clock {self._now.isoformat()}>"


__all__ = ["START", "Clock"]
