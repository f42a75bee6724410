"""
Leases: permits taken ahead, and handed out inside one process without a round trip.

Permits are charged before they are handed out, so no number of processes admits more than the quota. What lies unused
is bounded (:func:`unused_max`) and given back within a second, or dies with its window; what a killed process held is
lost for as long as the limit feels it. A request takes what is at hand and never waits for more: the keeper
(:mod:`enforcement.leases.manager`) fills and empties leases, and where no permit is at hand the store decides.

A change of the documents makes new plans, and those begin without a lease: what was held under the old ones is not
handed out any longer. A counter that another process resets forgets permits that are held here; they are handed out,
or given back, all the same, so that once as many as may lie unused pass beyond the quota.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcement.plan.reply import NO_REPLY, Reply

if TYPE_CHECKING:
    from enforcement.state.live_plan import LivePlan

AHEAD_SECONDS: Final = 0.1
"""A lease is sized to last so long at the rate that was seen, or half as long as its permits may be held."""
STEADY_PERMITS: Final = 10
"""So many permits must be asked for within STEADY_SECONDS before any are taken ahead."""
STEADY_SECONDS: Final = 0.25


class Grant(NamedTuple):
    """Permits that the store charged in one call: good until a monotonic instant, and the reply that granted them."""

    permits: int
    until: float
    reply: Reply

    @property
    def marks(self) -> tuple[int, ...]:
        """The window of each limit that was charged."""
        return self.reply.marks()


Remains = tuple[int, tuple[int, ...]]
"""Permits that are to be given back, and the marks of their charge."""


class Lease:
    """
    What one process holds of the limits of one plan. Any thread may take; the keeper alone fills and empties.

    Permits of one window are all alike, and held together. Those of a log or a bucket end one charge after the other:
    there a second grant waits until the first is used up, or over.

    Attributes:
        left: Permits at hand.
        low: With so many or fewer left, more shall be asked for.
        until: Monotonic instant from which they are not handed out any longer.
        asking: Whether the keeper was asked to fill it and has not yet done so.
        reply: The store's reply that granted them, from which decisions are made.
    """

    __slots__ = (
        "_ahead",
        "_aside",
        "_at_sweep",
        "_beyond",
        "_counted",
        "_granted",
        "_lock",
        "_marks",
        "_merges",
        "_missed",
        "_next",
        "_rests_until",
        "_since",
        "_told",
        "_wanted_from",
        "asking",
        "left",
        "low",
        "plan",
        "reply",
        "until",
        "used_at",
    )

    def __init__(self, plan: LivePlan) -> None:
        self.plan = plan
        self._merges = all(bound.letter in "fs" for bound in plan.bounds)
        self.left = self.low = 0
        self.until = 0.0
        self.used_at = 0.0
        self.reply = NO_REPLY
        self.asking = False
        self._marks: tuple[int, ...] = ()
        self._next: Grant | None = None
        self._aside: list[Remains] = []
        # What was handed out is not counted where it is: it is what was granted and is not at hand.
        self._granted = self._counted = self._at_sweep = 0
        self._missed = self._wanted_from = 0
        self._since = self._rests_until = 0.0
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
            while True:
                left = self.left - cost
                if left >= 0 and now < self.until:
                    self.left = left
                    if cost != 1:
                        self._counted += cost
                        self._beyond += cost - 1
                    return left
                if self._next is None:
                    self._missed += cost
                    return -1
                self._lay_aside()
                grant, self._next = self._next, None
                self._hold(grant)

    def outstanding(self) -> int:
        """Return the permits that are charged and not handed out."""
        with self._lock:
            waiting = self._next.permits if self._next else 0
            return self.left + waiting + sum(permits for permits, _ in self._aside)

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
        if now < self._rests_until:
            return False
        if now - self._since > STEADY_SECONDS and asked - self._wanted_from < STEADY_PERMITS:
            self._since, self._wanted_from = now, asked
        return asked - self._wanted_from >= STEADY_PERMITS

    def rest(self, seconds: float) -> None:
        """Ask for nothing so long: there is nothing to be had."""
        self._rests_until = monotonic() + seconds

    def wanted(self, most: int) -> int:
        """
        Return how many permits to take: by the rate since the last time this was asked.

        Args:
            most: So many permits may be outstanding.
        """
        now = monotonic()
        with self._lock:
            asked = self._asked()
            rate = (asked - self._wanted_from) / max(0.001, now - self._since)
            self._since, self._wanted_from = now, asked
        return min(max(1, round(rate * self._ahead)), most - self.outstanding())

    def fill(self, grant: Grant) -> None:
        """Add permits that the store granted."""
        with self._lock:
            if self.left and not (self._merges and grant.marks == self._marks):
                if monotonic() < self.until and not self._merges:
                    self._next, self.low = grant, -1
                    return
                self._lay_aside()
            self._hold(grant)
            self.used_at = monotonic()

    def _hold(self, grant: Grant) -> None:
        self.reply, self._marks, self.until = grant.reply, grant.marks, grant.until
        self._granted += grant.permits
        self.left += grant.permits
        self.low = self.left // 2

    def _lay_aside(self) -> None:
        """Hand out no longer what is at hand."""
        if self.left:
            self._aside.append((self.left, self._marks))
        self._granted -= self.left
        self.left = self.low = 0

    @property
    def full(self) -> bool:
        """Whether a second grant waits already."""
        return self._next is not None

    def good_for(self, reply: Reply) -> float:
        """
        Return how many seconds permits may be handed out that the store has just granted.

        Args:
            reply: The grant.
        """
        spans_us: list[int] = []
        for at, bound in enumerate(self.plan.bounds):
            reset_us, mark_us = reply.reset(at), reply.mark(at)
            spans_us.append(bound.limit.held_us)
            if bound.letter == "f" and reset_us >= 0:
                spans_us.append(reset_us)
            elif bound.letter == "s":
                spans_us.append(mark_us + (bound.limit.window_seconds or 0) * 1_000_000 - reply.now_us)
        return min(spans_us) / 1_000_000

    def over(self, now: float) -> list[Remains]:
        """Take out, to give it back, what nobody shall be handed at *now* any longer: all of it, at infinity."""
        with self._lock:
            if now >= self.until:
                self._lay_aside()
            if self._next is not None and now >= self._next.until:
                self._aside.append((self._next.permits, self._next.marks))
                self._next = None
            aside, self._aside = self._aside, []
        return aside

    def idle_since(self, now: float) -> float:
        """Return when permits were last handed out, as exactly as this is asked often; *now*: since the last time."""
        handed = self._granted - self.left
        if handed != self._at_sweep:
            self._at_sweep, self.used_at = handed, now
        return self.used_at
