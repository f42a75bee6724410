"""
Bound how many values of an attribute have a counter of their own. Each project has a cap, which holds for each limit.

The store keeps an index of these values, which is exact for the whole fleet. The call that first charges a value
registers it. If the index is full, the value is charged to an overflow counter that all such values of the limit
share. A client that invents values can therefore only fill the index of its own project.
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
"""How long a process relies on a value being registered, before it registers the value again."""
RETRY_SECONDS: Final = 5.0
"""How long a process charges a value to the overflow counter before it tries to register the value again."""
SPARE_WINDOWS: Final = 100
"""Windows after which an idle counter with a rollover is forgotten, besides those that fill the rollover."""

_GRACE_US: Final = 2 * int(TRUST_SECONDS) * SECOND_US  # TRUST_SECONDS, and late charges of leases and settlements
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
    The registered values of one limit in one project.

    Attributes:
        key: Key of a sorted set of values, each with the instant from which it may be removed.
        overflowed: Key of an estimate of how many values were not registered within a day because of the cap.
        overflow: Key of the counter that these values share. A limit of tokens has one for each token.
        cap: How many values may be registered.
        life_us: How long a value stays registered, in microseconds.
    """

    key: str
    overflowed: str
    overflow: str
    cap: int
    life_us: int


def life_us(limit: Limit) -> int:
    """Return how long a value must stay registered, so that it outlives its counter, in microseconds."""
    return min(_longest_seconds(limit), _TEN_YEARS) * SECOND_US + _GRACE_US


def carried_us(limit: Limit) -> int:
    """
    Return how long after the end of its window a counter with a rollover is kept, in microseconds.

    That is as many windows as fill the rollover, and 100 more, but at most ten years.
    """
    windows = -(-(limit.rollover or 0) // max(1, limit.quota)) + SPARE_WINDOWS
    return min(windows * _CALENDAR_SECONDS[limit.calendar or "lifetime"], _TEN_YEARS) * SECOND_US


def most_windows_carried(limit: Limit) -> int:
    """Return a number of windows after which a counter with a rollover is surely forgotten, if it is not used."""
    return 2 * carried_us(limit) // (_CALENDAR_SECONDS[limit.calendar or "lifetime"] * SECOND_US)


def _longest_seconds(limit: Limit) -> int:
    if limit.calendar is not None:
        return _CALENDAR_SECONDS[limit.calendar] + (carried_us(limit) // SECOND_US if limit.rollover else 0)
    length = limit.window_seconds or 0
    if limit.algorithm == "sliding_window":
        return 2 * length
    if limit.algorithm == "token_bucket":
        return -(-limit.capacity * length // limit.quota) if limit.quota else 25 * HOUR_SECONDS
    return length
