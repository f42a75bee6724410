"""
Leases: permits taken ahead, and handed out inside one process without a round trip.

Permits are charged before they are handed out, so no number of processes admits more than the quota. What lies unused
is bounded (:func:`unused_max`) and given back within a second, or dies with its window; what a killed process held is
lost for as long as the limit feels it. A request takes what is at hand and never waits for more: the keeper
(:mod:`enforcement.lease_keeper`) fills and empties leases, and where no permit is at hand the store decides.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from enforcement.limits import Limit
    from enforcement.plans import Plan

AHEAD_SECONDS: Final = 0.1
"""A lease is sized to last so long at the rate that was seen, or half as long as its permits may be held."""
MAX_PERMITS: Final = 10_000
UNUSED_PART: Final = 10
"""All processes together hold no more than one permit of so many that a quota has."""
STEADY_PERMITS: Final = 10
"""So many permits must be asked for within STEADY_SECONDS before any are taken ahead."""
STEADY_SECONDS: Final = 0.25


def held_max(capacity: int, fleet: int) -> int:
    """Return how many permits of a limit one of *fleet* processes may hold: at least 1, or it could lease none."""
    return max(1, min(MAX_PERMITS, capacity // (UNUSED_PART * fleet)))


def unused_max(limit: Limit, fleet: int) -> int:
    """
    Return how many permits of a limit may lie unused in a fleet of so many processes, and be denied to others.

    A tenth of the quota, or of the burst, but one a process at least; 0 for a limit that is not leased.
    """
    return min(limit.capacity, held_max(limit.capacity, fleet) * fleet) if limit.leasable else 0


class Lease:
    """
    What one process holds of the limits of one plan. Any thread may take; the keeper alone fills and empties.

    Attributes:
        left: Permits at hand.
        low: With so many or fewer left, more shall be asked for.
        until: Monotonic instant from which they are not handed out any longer.
        asking: Whether the keeper was asked to fill it and has not yet done so.
        fleet: The processes that share the limits, as far as is known.
        reply: The store's latest answer, width 5, from which decisions are told.
    """

    __slots__ = (
        "_ahead",
        "_at_sweep",
        "_beyond",
        "_counted",
        "_granted",
        "_lock",
        "_missed",
        "_since",
        "_told",
        "_wanted_from",
        "asking",
        "fleet",
        "left",
        "low",
        "marks",
        "plan",
        "reply",
        "until",
        "used_at",
    )

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.left = self.low = 0
        self.until = 0.0
        self.used_at = 0.0
        self.reply: Sequence[int] = ()
        self.marks: tuple[int, ...] = ()
        self.asking = False
        self.fleet = 1
        # What was handed out is not counted where it is: it is what was granted and is not at hand.
        self._granted = self._counted = self._at_sweep = 0
        self._missed = self._wanted_from = 0
        self._since = 0.0
        self._told = 0
        self._ahead = min(AHEAD_SECONDS, *(bound.limit.held_us / 2e6 for bound in plan.bounds))
        self._beyond = 0  # permits handed out beyond one a request
        self._lock = threading.Lock()

    def take(self, cost: int) -> int:
        """
        Hand out *cost* permits.

        Returns:
            What is left, or -1: there are not enough, ask the store.
        """
        now = monotonic()
        with self._lock:
            left = self.left - cost
            if left >= 0 and now < self.until:
                self.left = left
                if cost != 1:
                    self._counted += cost
                    self._beyond += cost - 1
                return left
            self._missed += cost
        return -1

    def handed(self) -> int:
        """Return how many permits were handed out one by one since the last time; who takes several counts them."""
        with self._lock:
            total = self._granted - self.left
            permits, self._counted = total - self._counted, total
        return permits

    def news(self) -> tuple[int, int]:
        """Return the permits handed out since the last time this was asked, and the requests that got them."""
        with self._lock:
            total = self._granted - self.left
            permits, self._told = total - self._told, total
            beyond, self._beyond = self._beyond, 0
        return permits, permits - beyond

    def _asked(self) -> int:
        """Return the permits asked for, ever: handed out, or not there."""
        return self._granted - self.left + self._missed

    def steady(self) -> bool:
        """Tell whether permits are asked for at a rate that is worth taking some ahead."""
        now, asked = monotonic(), self._asked()
        if now - self._since > STEADY_SECONDS and asked - self._wanted_from < STEADY_PERMITS:
            self._since, self._wanted_from = now, asked
        return asked - self._wanted_from >= STEADY_PERMITS

    def wanted(self, fleet: int) -> int:
        """
        Return how many permits to take: by the rate since the last time this was asked, and no more than may be held.

        Args:
            fleet: Processes that share the limits.
        """
        self.fleet = fleet
        most = min(held_max(bound.limit.capacity, fleet) for bound in self.plan.bounds)
        now = monotonic()
        with self._lock:
            asked = self._asked()
            rate = (asked - self._wanted_from) / max(0.001, now - self._since)
            self._since, self._wanted_from = now, asked
        return min(max(1, round(rate * self._ahead)), most - self.left)

    def fill(self, permits: int, until: float, reply: Sequence[int]) -> None:
        """Add permits that the store granted; they are good until a monotonic instant."""
        with self._lock:
            self.reply, self.marks = reply, tuple(reply[6::5])
            self._granted += permits
            self.left += permits
            self.low = self.left // 2
            self.until = until
            self.used_at = monotonic()

    def good_for(self, reply: Sequence[int]) -> float:
        """
        Return how many seconds permits may be handed out that the store has just granted.

        Args:
            reply: The grant, width 5.
        """
        now_us, spans_us = reply[1], []
        for at, bound in enumerate(self.plan.bounds):
            reset_us, mark_us = reply[3 + 5 * at], reply[6 + 5 * at]
            spans_us.append(bound.limit.held_us)
            if bound.letter == "f" and reset_us >= 0:
                spans_us.append(reset_us)
            elif bound.letter == "s":
                spans_us.append(mark_us + (bound.limit.window_seconds or 0) * 1_000_000 - now_us)
        return min(spans_us) / 1_000_000

    def empty(self) -> int:
        """Take back what is left, for nobody shall hand it out any longer."""
        with self._lock:
            left, self.left, self.low = self.left, 0, 0
            self._granted -= left
            return left

    def idle_since(self, now: float) -> float:
        """Return when permits were last handed out, as exactly as this is asked often."""
        handed = self._granted - self.left
        if handed != self._at_sweep:
            self._at_sweep, self.used_at = handed, now
        return self.used_at
