"""Convert instants to microseconds since the epoch, and name the lengths of periods."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)

SECOND_US: Final = 1_000_000
MINUTE_SECONDS: Final = 60
HOUR_SECONDS: Final = 60 * MINUTE_SECONDS
DAY_SECONDS: Final = 24 * HOUR_SECONDS
WEEK_SECONDS: Final = 7 * DAY_SECONDS
PERIOD_SECONDS: Final = {
    "week": WEEK_SECONDS,
    "day": DAY_SECONDS,
    "hour": HOUR_SECONDS,
    "minute": MINUTE_SECONDS,
    "second": 1,
}
"""The periods that always have the same length, the longest first."""


def to_us(instant: datetime) -> int:
    """Return an instant, which must have a time zone, as microseconds since the epoch."""
    return (instant - EPOCH) // MICROSECOND


def from_us(microseconds: int) -> datetime:
    """Return the instant, in UTC, that lies so many microseconds after the epoch. Raises OverflowError."""
    return EPOCH + timedelta(microseconds=microseconds)


def time_reply_us(reply: Sequence[int | str | bytes]) -> int:
    """Return the store's reply to ``TIME`` as microseconds since the epoch."""
    seconds, microseconds = reply
    return int(seconds) * SECOND_US + int(microseconds)


def duration(seconds: int) -> str:
    """Return a number of seconds in words, such as "1 hour 30 minutes" for 5400."""
    words = []
    for name, length in PERIOD_SECONDS.items():
        number, seconds = divmod(seconds, length)
        if number:
            words.append(f"{number} {name}" + ("s" if number != 1 else ""))
    return " ".join(words) or "0 seconds"
