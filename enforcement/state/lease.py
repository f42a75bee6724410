"""
Hand out leased permits without a call to the store.

A lease holds permits that the store has charged in advance. Because they are charged before they are handed out, all
processes together never admit more than the quota.

- The number of unused permits is bounded (:func:`enforcement.model.lease_bounds.unused_max`). They are returned within
  a second, or expire with their window. A killed process cannot return its permits, so they stay charged for as long
  as any charge of the limit does.
- A request never waits for a lease to be filled. If it holds no permit, the store decides. The background thread
  (:mod:`enforcement.leases.manager`) fills leases and returns what is unused.
- When the documents change, new plans start with empty leases. The permits of the old plans are returned.
- When another process resets a counter, this process may still hand out the permits that it has leased from it. Until
  they are used up or returned, the counter can admit that many more than its quota.
"""

from __future__ import annotations

import threading
from math import inf
from time import monotonic
from typing import Final, Generic, NamedTuple, TypeVar

from enforcement.plan.plan import Plan
from enforcement.plan.reply import NO_REPLY, Reply

LeasedT = TypeVar("LeasedT", bound=Plan)

AHEAD_SECONDS: Final = 0.1
"""A lease is filled with the permits for this time at the measured rate, or for half of their lifetime if shorter."""
STEADY_PERMITS: Final = 10
"""How many permits must be requested within STEADY_SECONDS before any are leased."""
STEADY_SECONDS: Final = 0.25
IDLE_SECONDS: Final = 0.3
"""How long permits are kept while none is handed out."""

# At a low rate, permits for AHEAD_SECONDS are hardly worth a call. While a quota is far away, a lease may last longer.
FEW_PERMITS: Final = 100
"""At most so many are then leased for longer than AHEAD_SECONDS."""
SLOW_AHEAD_SECONDS: Final = 1.0
SLOW_STEADY_SECONDS: Final = 2.5
SLOW_IDLE_SECONDS: Final = 0.8
SLOW_HELD_US: Final = 2_500_000
"""How long a process may hold them. For windows that end at once only: a permit is not used after the window."""


class Grant(NamedTuple):
    """
    Permits that the store has charged in one call.

    Attributes:
        permits: How many.
        until: When they expire, monotonic seconds.
        reply: The reply of the store that granted them.
    """

    permits: int
    until: float
    reply: Reply

    @property
    def marks(self) -> tuple[int, ...]:
        """The mark of the window that was charged, for each limit."""
        return self.reply.marks()


class Permit(NamedTuple, Generic[LeasedT]):
    """
    Permits that a request has taken for some of its limits, until the store has decided the others.

    Attributes:
        lease: Where they were taken.
        cost: How many.
        left: How many the lease had left.
        reply: The reply of the store that granted them.
        until: When they expire, monotonic seconds.
    """

    lease: Lease[LeasedT]
    cost: int
    left: int
    reply: Reply
    until: float


Remains = tuple[int, tuple[int, ...]]
"""Permits that must be returned, and the marks of the windows in which they were charged."""


class Lease(Generic[LeasedT]):
    """
    The permits that one process holds for one plan.

    Args:
        decides: Whether a permit decides a request by itself. False: its plan is a part of others.

    Any thread may take permits. Only the background thread fills the lease and returns permits.

    For fixed and sliding windows, grants in the same window are merged. For logs and buckets, each grant has its own
    end, so a second grant waits until the first is used up or has expired.

    Attributes:
        plan: The plan whose limits are charged.
        left: Permits that can be handed out now.
        low: At this many permits or fewer, the lease must be filled again. -1 if it must not, because a grant waits.
        until: When the permits expire, monotonic seconds.
        asking: Whether the background thread was asked to fill the lease and has not done so yet.
        reply: The store's reply that granted the permits. Decisions are made from it.
        used_at: When permits were last known to be handed out, monotonic seconds.
        decides: Whether a permit decides a request by itself.
        parts: None, see :class:`~enforcement.state.live_plan.PartLeases`.
    """

    __slots__ = (
        "__weakref__",
        "_ahead_seconds",
        "_coming",
        "_counted",
        "_extra",
        "_granted",
        "_handed_at_sweep",
        "_is_slow",
        "_lock",
        "_marks",
        "_merges",
        "_missed",
        "_near_until",
        "_next",
        "_rate_base",
        "_rate_since",
        "_reported",
        "_rests_until",
        "_to_return",
        "asking",
        "decides",
        "left",
        "low",
        "plan",
        "reply",
        "until",
        "used_at",
    )

    parts: Final = None

    def __init__(self, plan: LeasedT, *, decides: bool = True) -> None:
        self.plan = plan
        self.decides = decides
        self._merges = all(bound.letter in "fs" for bound in plan.bounds)
        self.left = self.low = 0
        self.until = 0.0
        self.used_at = 0.0
        self.reply = NO_REPLY
        self.asking = False
        self._marks: tuple[int, ...] = ()
        self._next: Grant | None = None
        self._coming = 0
        self._to_return: list[Remains] = []
        # Handed out = granted - left. No counter is raised when one permit is taken, which keeps take() fast.
        self._granted = self._counted = self._handed_at_sweep = 0
        self._missed = self._rate_base = 0
        self._rate_since = self._rests_until = 0.0
        self._is_slow = False
        # Logs and buckets release permits one by one, so theirs cannot be held for longer.
        self._near_until = 0.0 if self._merges else inf
        self._reported = 0
        self._ahead_seconds = min(AHEAD_SECONDS, *(bound.limit.held_us / 2e6 for bound in plan.bounds))
        self._extra = 0  # permits handed out, minus the requests that got them
        self._lock = threading.Lock()

    def take(self, cost: int) -> int:
        """Hand out *cost* permits, and return how many are left, or -1 if there are not enough."""
        now = monotonic()
        with self._lock:
            left = self.left - cost
            if left >= 0 and now < self.until:
                self.left = left
            else:
                left = self._take_next(cost, now)
            if cost != 1 and left >= 0:
                self._counted += cost
                self._extra += cost - 1
            return left

    def permit(self, cost: int) -> Permit[LeasedT] | None:
        """
        Hand out *cost* permits that :meth:`put_back` may get again, or return None if there are not enough.

        Returns:
            None if there are not enough, so that the store must decide.
        """
        now = monotonic()
        with self._lock:
            left = self.left - cost
            if left >= 0 and now < self.until:
                self.left = left
            elif (left := self._take_next(cost, now)) < 0:
                return None
            return Permit(self, cost, left, self.reply, self.until)

    def _take_next(self, cost: int, now: float) -> int:
        """Hand out permits of the grant that waits, if there is one, and return how many are left, or -1."""
        while self._next is not None:
            self._withdraw()
            grant, self._next = self._next, None
            self._add(grant)
            if self.left >= cost and now < self.until:
                self.left -= cost
                return self.left
        self._missed += cost
        return -1

    def put_back(self, permit: Permit[LeasedT], most: int) -> bool:
        """
        Take back permits whose request was denied, and return whether they can be handed out again.

        Args:
            most: How many permits may be outstanding. The lease may have been filled again during the request.
        Returns:
            False if they must be returned to the store, because the lease has others now, or enough of them.
        """
        with self._lock:
            # Each grant of a log or a bucket has its own end.
            same = permit.reply.marks() == self._marks if self._merges else permit.reply is self.reply and self._marks
            if same and monotonic() < self.until and self._outstanding() + self._coming + permit.cost <= most:
                self.left += permit.cost
                return True
            self._granted -= permit.cost
            self._give_up(permit.cost, permit.reply.marks())
        return False

    def outstanding(self) -> int:
        """Return how many permits are charged and not handed out yet."""
        with self._lock:
            return self._outstanding()

    def claimed(self) -> int:
        """Return how many permits are outstanding or just being requested from the store."""
        with self._lock:
            return self._outstanding() + self._coming

    def _outstanding(self) -> int:
        waiting = self._next.permits if self._next else 0
        return self.left + waiting + sum(permits for permits, _ in self._to_return)

    def pop_uncounted(self) -> int:
        """
        Return how many permits were handed out to requests of cost 1 since the last call.

        The usage of a greater cost is counted by the decision itself, so it is not included.
        """
        with self._lock:
            total = self._granted - self.left
            permits, self._counted = total - self._counted, total
        return permits

    def pop_served(self) -> tuple[int, int]:
        """Return the permits handed out since the last call, and the number of requests that got them."""
        with self._lock:
            total = self._granted - self.left
            permits, self._reported = total - self._reported, total
            extra, self._extra = self._extra, 0
        return permits, permits - extra

    def _requested(self) -> int:
        """Return how many permits were requested so far, whether or not there were enough."""
        return self._granted - self.left + self._missed

    def steady(self) -> bool:
        """Return False while the lease rests, else whether enough permits were requested lately to be worth a call."""
        now, requested = monotonic(), self._requested()
        if now < self._rests_until:
            return False
        seconds = STEADY_SECONDS if now < self._near_until else SLOW_STEADY_SECONDS
        if now - self._rate_since > seconds and requested - self._rate_base < STEADY_PERMITS:
            self._rate_since, self._rate_base = now, requested
        return requested - self._rate_base >= STEADY_PERMITS

    def rest(self, seconds: float) -> None:
        """Request no permits from the store for this many seconds."""
        now = monotonic()
        self._rests_until = now + seconds
        self._near_until = max(self._near_until, now + SLOW_STEADY_SECONDS)

    def wanted(self, most: int) -> int:
        """
        Return how many permits to request from the store, 0 or less for none, and measure the rate anew.

        Args:
            most: How many permits may be outstanding.
        Returns:
            The permits for AHEAD_SECONDS at the rate since the last measurement began, or a few for longer if the quota
            is far away. 0 or less if *most* is reached.
        """
        now = monotonic()
        with self._lock:
            requested = self._requested()
            rate = (requested - self._rate_base) / max(0.001, now - self._rate_since)
            self._rate_since, self._rate_base = now, requested
        ahead = rate * self._ahead_seconds
        few = 0.0 if now < self._near_until else min(FEW_PERMITS, rate * SLOW_AHEAD_SECONDS)
        self._is_slow = few > ahead
        with self._lock:  # what is put back meanwhile must not come on top of what is granted
            wanted = min(max(1, round(max(ahead, few))), most - self._outstanding())
            self._coming = max(0, wanted)
        return wanted

    def none_come(self) -> None:
        """Note that no permits are being requested from the store any more."""
        self._coming = 0

    def fill(self, grant: Grant) -> None:
        """Add permits that the store has granted, or let them wait until the present ones are used up."""
        now = monotonic()
        if any(2 * grant.reply.remaining(i) < bound.limit.capacity for i, bound in enumerate(self.plan.bounds)):
            self._near_until = max(self._near_until, now + SLOW_STEADY_SECONDS)
        with self._lock:
            self._coming = 0
            if self.left and not (self._merges and grant.marks == self._marks):
                # The permits of an earlier window are of no use now, but those of a log or bucket still are.
                if now < self.until and not self._merges:
                    self._next, self.low = grant, -1
                    return
                self._withdraw()
            self._add(grant)
            self.used_at = now

    def _add(self, grant: Grant) -> None:
        self.reply, self._marks, self.until = grant.reply, grant.marks, grant.until
        self._granted += grant.permits
        self.left += grant.permits
        self.low = self.left // 2

    def _withdraw(self) -> None:
        """Move the permits that are not handed out to those that must be returned to the store."""
        if self.left:
            self._give_up(self.left, self._marks)
        self._granted -= self.left
        self.left = self.low = 0
        self._marks = ()

    def _give_up(self, permits: int, marks: tuple[int, ...]) -> None:
        """Add permits to those that must be returned to the store, which takes those of the same windows at once."""
        if self._to_return and self._to_return[-1][1] == marks:
            permits += self._to_return.pop()[0]
        self._to_return.append((permits, marks))

    @property
    def idle_seconds(self) -> float:
        """How long permits are kept while none is handed out."""
        return SLOW_IDLE_SECONDS if self._is_slow else IDLE_SECONDS

    @property
    def full(self) -> bool:
        """Whether a second grant is already waiting."""
        return self._next is not None

    def good_for(self, reply: Reply) -> float:
        """
        Return for how many seconds the permits of a new grant may be handed out.

        Args:
            reply: The reply of the store that granted them.
        """
        # A permit must not be handed out after its window, where it would count for nothing.
        spans_us: list[int] = []
        for at, bound in enumerate(self.plan.bounds):
            reset_us, mark_us = reply.reset(at), reply.mark(at)
            spans_us.append(SLOW_HELD_US if self._is_slow else bound.limit.held_us)
            if bound.letter == "f" and reset_us >= 0:
                spans_us.append(reset_us)
            elif bound.letter == "s":
                spans_us.append(mark_us + (bound.limit.window_seconds or 0) * 1_000_000 - reply.now_us)
        return min(spans_us) / 1_000_000

    def pop_expired(self, now: float) -> list[Remains]:
        """
        Remove the permits that must be returned to the store, expired ones among them, and return them with their
        marks.

        Args:
            now: Monotonic seconds. Infinity removes all permits.
        Returns:
            The removed permits, with the marks of the windows in which they were charged.
        """
        with self._lock:
            if now >= self.until:
                self._withdraw()
            if self._next is not None and now >= self._next.until:
                self._to_return.append((self._next.permits, self._next.marks))
                self._next = None
            to_return, self._to_return = self._to_return, []
        return to_return

    def idle_since(self, now: float) -> float:
        """
        Return when this method first saw that the last permits were handed out, in monotonic seconds.

        The time is not recorded when a permit is taken. It is only as exact as the interval between calls.

        Args:
            now: Monotonic seconds. This is returned if permits were handed out since the last call.
        """
        handed = self._granted - self.left
        if handed != self._handed_at_sweep:
            self._handed_at_sweep, self.used_at = handed, now
        return self.used_at
