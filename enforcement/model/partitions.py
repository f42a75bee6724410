"""
How many values of an attribute get a counter of their own: as many as the project's cap says, for each limit.

The store keeps a census of them, exact over the whole fleet. A value is enrolled by the call that first charges it; one
that finds no place is charged to an overflow counter that all such values of the limit share. So a client that invents
values fills the census of its own project and meets one counter then, and harms nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, SECOND_US

if TYPE_CHECKING:
    from enforcement.model.limits import Limit

DEFAULT_CAP: Final = 10_000
MAX_CAP: Final = 1_000_000
TRUST_SECONDS: Final = 300.0
"""How long a process takes a value for enrolled without saying so again."""
RETRY_SECONDS: Final = 5.0
"""How long a process keeps a value on the overflow counter before it looks for a place again."""

_GRACE_US: Final = 2 * int(TRUST_SECONDS) * SECOND_US  # for trust, and for what is charged late: leases, settlements
_TEN_YEARS: Final = 315_360_000
# A day may have 25 hours, and a week or a month one such day.
_CALENDAR_SECONDS: Final = {
    "minute": MINUTE_SECONDS,
    "hour": HOUR_SECONDS,
    "day": 25 * HOUR_SECONDS,
    "week": 169 * HOUR_SECONDS,
    "month": 745 * HOUR_SECONDS,
    "year": 366 * DAY_SECONDS,
    "lifetime": _TEN_YEARS,
}


@dataclass(frozen=True, slots=True)
class PartitionIndex:
    """
    The census of one limit in one project.

    Attributes:
        key: A sorted set: values by the instant at which each may be forgotten.
        overflowed: An estimate of the values that found no place within a day.
        overflow: Key of the counter that those share; of one holder, where the limit belongs to tokens.
        cap: How many values have counters of their own.
        life_us: How long a value stands there after it was enrolled.
    """

    key: str
    overflowed: str
    overflow: str
    cap: int
    life_us: int


def life_us(limit: Limit) -> int:
    """Return how long a value must stand in the census, so that none is forgotten before its counter is gone."""
    return min(_longest_seconds(limit), _TEN_YEARS) * SECOND_US + _GRACE_US


def _longest_seconds(limit: Limit) -> int:
    if limit.calendar is not None:
        return _CALENDAR_SECONDS[limit.calendar]
    length = limit.window_seconds or 0
    if limit.algorithm == "sliding_window":
        return 2 * length
    if limit.algorithm == "token_bucket":
        return -(-limit.capacity * length // limit.quota) if limit.quota else 25 * HOUR_SECONDS
    return length


__all__ = ["DEFAULT_CAP", "MAX_CAP", "RETRY_SECONDS", "TRUST_SECONDS", "PartitionIndex", "life_us"]
