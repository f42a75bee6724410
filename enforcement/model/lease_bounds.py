"""How many permits of a limit may be held on lease, and so lie unused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from enforcement.model.limits import Limit

MAX_PERMITS: Final = 10_000
UNUSED_PART: Final = 10
"""All processes together hold no more than one permit of so many that a quota has."""


def held_max(capacity: int, fleet: int) -> int:
    """Return how many permits of a limit one of *fleet* processes may hold: at least 1, or it could lease none."""
    return max(1, min(MAX_PERMITS, capacity // (UNUSED_PART * fleet)))


def unused_max(limit: Limit, fleet: int) -> int:
    """
    Return how many permits of a limit may lie unused in a fleet of so many processes, and be denied to others.

    A tenth of the quota, or of the burst, but one a process at least; 0 for a limit that is not leased.
    """
    return min(limit.capacity, held_max(limit.capacity, fleet) * fleet) if limit.leasable else 0


def published_bounds(limits: Iterable[Limit]) -> dict[str, int]:
    """
    Return what a policy's document says of its leased limits, by name: permits that may lie unused in any fleet.

    Where the processes are more than that, it is one for each of them.
    """
    return {limit.name: limit.capacity // UNUSED_PART for limit in limits if limit.leasable}
