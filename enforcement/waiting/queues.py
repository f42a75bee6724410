"""
Queue the callers that wait for permits, for each counter, in the order of their arrival.

The first in a queue asks the store, at the time that the store said last, and the others sleep. If the answer says that
there are permits for more of them, as many ask at the same time. So nobody who came later is served before, whatever
their costs.

A caller that several limits deny has a place in the queue of each, or only in that for which it waits longest, if it
would hold others up for long. It asks when it is the first there, unless others came before it who wait for another of
its limits. Then it waits behind those. A queue without callers is removed.

There is no I/O here, and nobody sleeps here: see :mod:`enforcement.waiting.waiters`.
"""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from time import monotonic
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from enforcement import fork
from enforcement.model.checks import shown
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision

GRACE_SECONDS: Final = 15.0
"""How late the first may be. After that it loses its places, since its event loop may have stopped."""
SOONEST_SECONDS: Final = 0.25
"""When a full concurrency limit is asked again at the soonest, since other processes do not say that a slot is free."""
HOLD_SECONDS: Final = 0.25
"""How long a caller that waits for one limit may hold others up at another that denies it, too."""
CLOCK_DRIFT: Final = 0.001
"""How much faster or slower than this host's the store's clock may go. NTP corrects either by half of that."""
SLOT_SECONDS: Final = 1.0
"""When it is asked again at the latest."""


def checked_wait(max_wait: float) -> float:
    """Return how many seconds a caller waits at most, or raise ValueError if that is not a finite number from 0."""
    number = isinstance(max_wait, (int, float)) and not isinstance(max_wait, bool)
    if not number or not 0 <= max_wait <= sys.float_info.max:
        raise ValueError(f"max_wait: must be seconds, 0 or more, got {shown(max_wait)}.")
    return max_wait


def is_in_time(denial: Decision, until: float) -> bool:
    """Return whether a denied request can pass before *until*, in monotonic seconds."""
    wait_ms = denial.retry_after_ms
    return wait_ms is not None and monotonic() + wait_ms / 1_000 <= until


class Waiter:
    """
    A caller that waits. Subclasses know how it sleeps.

    Args:
        bounds: The limits of its request.
        costs: The costs of its request.
        began: When it came, in monotonic seconds.
        until: When it gives up, in monotonic seconds.
    Attributes:
        places: The counters in whose queues it has a place, with its costs.
        due: When it asks the store, if it is the first.
        asked: When it asked last.
        asks: Whether it asks now.
        lane: Those of one lane may ask at the same time.
        loop: The event loop in which it sleeps. None: it is a thread.
        stand_in: The counter in whose queue it has a place only because it asks. None: there is none.
    """

    lane: object = None
    loop: object = None

    def __init__(self, bounds: Sequence[BoundLimit], costs: Costs, began: float, until: float) -> None:
        self.bounds = bounds
        self.costs = costs
        self.until = until
        self.order = began, next(_numbers)
        self.places: dict[str, int] = {}
        self.due = self.asked = began
        self.asks = False
        self.stand_in: str | None = None

    def wake(self) -> None:
        """End its sleep, or the next one if it does not sleep. Any thread may call this, and must not be held up."""
        raise NotImplementedError


_numbers: Final = count()


class LastAnswer(NamedTuple):
    """
    The last answer of the store about a counter.

    Attributes:
        at: When it said that, in monotonic seconds.
        remaining: Permits that remained.
        cost: The cost that was asked for.
        wait: Seconds until that passes. 0: it does.
        more: Seconds until more permits remain. 0: nobody knows.
    """

    at: float
    remaining: int
    cost: int
    wait: float
    more: float

    def passes(self, cost: int) -> float:
        """Return when a request of this cost can pass at the soonest, in monotonic seconds."""
        if cost <= self.remaining:
            return self.at
        return self.at + (self.wait if self.wait and cost >= self.cost else self.more)


class Queue:
    """
    Those who wait for permits of one counter.

    Attributes:
        waiters: In the order of their arrival, at least one.
        has_slots: Whether it is a concurrency limit. Nobody knows when a slot will be free.
        answer: None: the first asks at once.
        stirred: Whether this process has given permits back since the first began to ask.
        since: When somebody got a permit last, in monotonic seconds.
        last: The order of the last that may ask together with the first. None: there are no permits for more.
        left: Permits for newcomers, if all who wait may ask and there are twice as many as they need.
    """

    __slots__ = ("answer", "has_slots", "last", "left", "since", "stirred", "waiters")

    def __init__(self, has_slots: bool, now: float) -> None:
        self.waiters: list[Waiter] = []
        self.has_slots = has_slots
        self.answer: LastAnswer | None = None
        self.stirred = False
        self.since = now
        self.last: tuple[float, int] | None = None
        self.left = 0

    def admits(self, cost: int) -> bool:
        """Return whether a newcomer may ask at once, as there are permits for all who ask now and for this one."""
        if self.left < cost:
            return False
        self.left -= cost
        return True

    def holds_up(self, waiter: Waiter) -> bool:
        """Return whether a caller has to let others ask before it."""
        return self.waiters[0].order < waiter.order and (self.last is None or self.last < waiter.order)

    def call_next(self, served: Waiter, key: str) -> None:
        """
        Let as many of its lane ask at the same time as there are permits for, after one was served.

        Other processes may take some of these permits before. A smaller cost would then pass where a larger one before
        it has not, so it asks with that only if there are twice as many permits.
        """
        assert self.answer is not None
        remaining, needed, largest = self.answer.remaining, 0, 0
        before, self.last, self.left = self.last, None, 0
        for waiter in self.waiters:
            if waiter is served:
                continue
            cost = waiter.places[key]
            needed, largest = needed + cost, max(cost, largest)
            if needed * (1 if cost == largest else 2) > remaining or waiter.lane != served.lane:
                break
            self.last = waiter.order
            if not waiter.asks and (before is None or before < waiter.order):
                waiter.wake()
        else:
            self.left = remaining - 2 * needed

    def passes(self, cost: int) -> float:
        """Return when a request of this cost can pass at the soonest, in monotonic seconds, or 0 if nobody knows."""
        return 0.0 if self.answer is None else self.answer.passes(cost)

    def call_first(self, now: float) -> None:
        """Wake the first, which has to look at its turn."""
        self.waiters[0].due = now
        self.waiters[0].wake()

    def note(self, at: float, decision: Decision, index: int, cost: int) -> None:
        """Keep what a decision, made *at* this time, says of this counter, which is limit *index* of its plan."""
        if decision.allowed:
            self.since = at
        # The numbers of a lease are those of the time when it was filled. Decisions made here cost nothing.
        if self.stirred or (decision.allowed and decision.source != "store"):
            self.answer, self.last, self.left = None, None, 0
            return
        remaining, reset, wait, more = decision.reply.row(index)
        if wait:
            self.last, self.left = None, 0
        wait_seconds, more_seconds = max(0, wait) / 1_000_000, max(0, more or reset) / 1_000_000
        if self.has_slots:  # the longer it takes, the less often
            wait_seconds = more_seconds = min(SLOT_SECONDS, max(SOONEST_SECONDS, at - self.since))
        self.answer = LastAnswer(at, remaining, cost, wait_seconds, more_seconds)


class Queues:
    """
    The queues of one store in one process.

    Attributes:
        by_key: The queue of each counter for which somebody waits.
    """

    def __init__(self) -> None:
        fork.register(self)
        self.after_fork()

    def after_fork(self) -> None:
        """Begin without queues in a child process, as those who wait are threads and tasks of the parent."""
        self.by_key: dict[str, Queue] = {}
        self._lock = threading.Lock()
        self._gone: deque[Waiter] = deque()
        self._lead, self._lead_at = -math.inf, 0.0  # by how much the store's clock is ahead, at least, and since when

    def before(self, bounds: Iterable[BoundLimit], costs: Costs) -> bool:
        """Return whether a newcomer has to let those ask first who wait for permits of one of these limits."""
        for bound in bounds:
            queue = self.by_key.get(bound.key)
            if queue is not None and not queue.admits(bound.cost_of(costs)):
                return True
        return False

    def pause(self, waiter: Waiter) -> float | None:
        """
        Return for how many seconds a caller sleeps, 0 if it is to ask the store now, or None if it has to give up.

        A caller gives up when its time is over, or at once if no permit can be there by then.
        """
        now = monotonic()
        with self._lock:
            result = self._pause(waiter, now)
        self._sweep()
        return result

    def _pause(self, waiter: Waiter, now: float) -> float | None:
        at, behind = now, None
        for bound in waiter.bounds:
            queue = self._queue(bound.key, now) if bound.key in waiter.places else None
            if queue is not None:
                passes = queue.passes(waiter.places[bound.key])
                if not queue.has_slots and passes > waiter.until:
                    return None
                at = max(at, min(passes, waiter.until))
                behind = bound if queue.holds_up(waiter) else behind
        if behind is None and at <= now:  # it may ask, unless others wait for another of its limits
            queued = ((bound, self._queue(bound.key, now)) for bound in waiter.bounds)
            behind = next((bound for bound, queue in queued if queue is not None and queue.holds_up(waiter)), None)
        if behind is not None:
            self._keep(waiter, behind, now)
            queue = self.by_key[behind.key]
            if now >= waiter.until or (not queue.has_slots and queue.passes(waiter.places[behind.key]) > waiter.until):
                return None
            return min(waiter.until - now, GRACE_SECONDS)
        if not waiter.places and waiter.bounds:
            waiter.stand_in = waiter.bounds[0].key
            self._join(waiter, waiter.bounds[0], now)
        waiter.due = at
        if at <= now:
            waiter.asked, waiter.asks = now, True
            for key in waiter.places:
                self.by_key[key].stirred = False
        return at - now

    def _keep(self, waiter: Waiter, bound: BoundLimit, now: float) -> None:
        """Have a caller wait for this limit alone, so that it holds nobody up at its other limits meanwhile."""
        self._join(waiter, bound, now)
        for key in list(waiter.places):
            if key != bound.key:
                self._part(waiter, key, now)

    def answered(self, waiter: Waiter, decision: Decision) -> None:
        """
        Note a decision on the request of a caller, and give it a place in the queue of each limit that denies it.
        """
        now, reply, bounds = monotonic(), decision.reply, decision.bounds
        with self._lock:
            at = self._decided_at(reply.now_us / 1_000_000, waiter.asked, now) if decision.source == "store" else now
            waiter.asks, stand_in, waiter.stand_in = False, waiter.stand_in, None
            longest: tuple[int, BoundLimit] | None = None
            if bounds and len(reply) == 2 + reply.width * len(bounds):
                waiter.bounds = [bound for bound in bounds if not bound.limit.shadow]
                for i, bound in enumerate(bounds):
                    if not decision.allowed and reply.wait(i) and not bound.limit.shadow:
                        self._join(waiter, bound, now)
                        stand_in = None if bound.key == stand_in else stand_in
                        longest = max(longest or (0, bound), (reply.wait(i), bound), key=_wait)
                    if (queue := self.by_key.get(bound.key)) is not None:
                        queue.note(at, decision, i, bound.cost_of(waiter.costs))
                        if decision.allowed and queue.answer:
                            queue.call_next(waiter, bound.key)
            elif not decision.allowed:  # no counter was read
                wait = (decision.retry_after_ms or 0) / 1_000
                for bound in waiter.bounds[:1]:
                    self._keep(waiter, bound, now)
                    self.by_key[bound.key].answer = LastAnswer(now, 0, 0, wait, wait)
            if longest is not None and longest[0] > HOLD_SECONDS * 1_000_000:
                self._keep(waiter, longest[1], now)
            if stand_in in waiter.places and not decision.allowed and len(waiter.places) > 1:
                self._part(waiter, stand_in, now)
        self._sweep()

    def _decided_at(self, store: float, sent: float, received: float) -> float:
        """
        Return when the store made a decision, at the latest, in monotonic seconds.

        The reply may have been read late. What the quickest one has shown of the store's clock counts for all, so that
        a caller that comes when a permit is there neither comes too early nor adds the delays of the replies.

        Args:
            store: The store's time of the decision, in seconds since the epoch.
        """
        known = self._lead - (received - self._lead_at) * CLOCK_DRIFT
        if known > store - sent:  # the store's clock was set
            known = -math.inf
        self._lead, self._lead_at = max(known, store - received), received
        # The clock gives the microsecond that had begun, and a float has less than that.
        return min(received, store - self._lead + 2e-6)

    def waits(self, waiter: Waiter) -> dict[str, int]:
        """
        Return in how many microseconds a permit can be there at the soonest, by counter in whose queue a caller is.
        """
        now = monotonic()
        with self._lock:
            result = {}
            for key, cost in waiter.places.items():
                queue = self.by_key[key]
                seconds = SLOT_SECONDS if queue.has_slots else queue.passes(cost) - now
                result[key] = max(1, int(seconds * 1_000_000))
        self._sweep()
        return result

    def returned(self, keys: Iterable[str]) -> None:
        """Have those asked for again who wait for permits of these counters, since this process has given some back."""
        now = monotonic()
        with self._lock:
            for key in keys:
                queue = self.by_key.get(key)
                if queue is not None:
                    queue.answer, queue.stirred, queue.since = None, True, now
                    queue.call_first(now)
        self._sweep()

    def leave(self, waiter: Waiter) -> None:
        """Remove a caller from all queues."""
        # The garbage collector may close a coroutine in a thread that holds the lock, so this never waits for it.
        self._gone.append(waiter)
        self._sweep()

    def _sweep(self) -> None:
        """Remove the callers that have left. Whoever holds the lock does this for others when it has released it."""
        while self._gone and self._lock.acquire(blocking=False):
            try:
                while self._gone:
                    self._remove(self._gone.popleft(), monotonic())
            finally:
                self._lock.release()

    def _queue(self, key: str, now: float) -> Queue | None:
        """Return the queue of a counter, after removing a first that is too late, or None if nobody waits."""
        while (queue := self.by_key.get(key)) is not None:
            first = queue.waiters[0]
            if now < first.due + GRACE_SECONDS:
                break
            for waiter in list(queue.waiters):  # the others of a loop that has stopped do not come either
                if waiter is first or (first.loop is not None and waiter.loop is first.loop):
                    self._remove(waiter, now)
        return queue

    def _join(self, waiter: Waiter, bound: BoundLimit, now: float) -> None:
        key = bound.key
        if key in waiter.places:
            return
        queue = self.by_key.get(key)
        if queue is None:
            queue = self.by_key[key] = Queue(bound.letter == "c", now)
        insort(queue.waiters, waiter, key=_order)
        queue.left = 0
        waiter.places[key] = bound.cost_of(waiter.costs)
        waiter.due = now

    def _remove(self, waiter: Waiter, now: float) -> None:
        for key in list(waiter.places):
            self._part(waiter, key, now)

    def _part(self, waiter: Waiter, key: str, now: float) -> None:
        """Remove a caller from one queue."""
        del waiter.places[key]
        queue = self.by_key[key]
        place = bisect_left(queue.waiters, waiter.order, key=_order)
        del queue.waiters[place]
        if not queue.waiters:
            del self.by_key[key]
        elif place == 0:
            queue.call_first(now)


def _wait(row: tuple[int, BoundLimit]) -> int:
    return row[0]


def _order(waiter: Waiter) -> tuple[float, int]:
    return waiter.order


_queues: Final[WeakValueDictionary[str, Queues]] = WeakValueDictionary()
_making: Final = threading.Lock()


def queues_of(url: str) -> Queues:
    """Return the queues of a store, which all limiters of this process share, for threads and for event loops."""
    with _making:
        queues = _queues.get(url)
        if queues is None:
            queues = _queues[url] = Queues()
        return queues
