"""Bound how many permits of a limit may be leased, and so lie unused."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from enforcement.model.instants import DAY_SECONDS
from enforcement.model.limits import Limit

MAX_PERMITS: Final = 10_000
_LONGEST_DAYS: Final = {"minute": 1, "hour": 1, "day": 2, "week": 8, "month": 32, "year": 367}
UNUSED_PART: Final = 10
"""All processes together hold at most one part in so many of a quota."""


def held_max(capacity: int, fleet: int) -> int:
    """Return how many permits of a limit, at least one, each of *fleet* processes may hold."""
    return max(1, min(MAX_PERMITS, capacity // (UNUSED_PART * fleet)))


def longest_charge(limit: Limit) -> float:
    """Return for how many seconds at most a permit of a limit stays charged. Infinity: for ever."""
    if limit.calendar is not None:
        return _LONGEST_DAYS.get(limit.calendar, inf) * DAY_SECONDS
    seconds = limit.window_seconds or 0
    if limit.algorithm == "token_bucket":
        return seconds * limit.capacity / max(1, limit.quota)
    return 2 * seconds if limit.algorithm == "sliding_window" else seconds


def unused_max(limit: Limit, fleet: int) -> int:
    """
    Return how many permits of a limit may lie unused in a fleet of so many processes, while others are denied.

    This is a tenth of the quota or burst, and at least one permit for each process. It is 0 if the limit is not leased.
    """
    return min(limit.capacity, held_max(limit.capacity, fleet) * fleet) if limit.leasable else 0


def published_bounds(limits: Iterable[Limit]) -> dict[str, int]:
    """
    Return how many permits of each leased limit may lie unused, by the limit's name, for the document of a policy.

    In a fleet with more processes than that, one permit for each process may lie unused.
    """
    return {limit.name: limit.capacity // UNUSED_PART for limit in limits if limit.leasable}
