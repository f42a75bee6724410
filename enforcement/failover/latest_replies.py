"""
Find what the store said last about a counter.

Several plans share a counter, as a limit of a project applies to each of its tokens. Each plan keeps only the reply to
its own last request, so that a decision of the store does no further work. A process that has to decide alone looks at
the replies of all plans, those that were used last first. There may be thousands, so a decision looks at some, and the
background thread at the rest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic, sleep
from typing import Final, NamedTuple, Protocol

from enforcement.plan.binding import BoundLimit
from enforcement.plan.reply import Reply

MAX_KNOWN: Final = 50_000
MAX_RESETS: Final = 10_000
SHARE_OF_TIME: Final = 0.01
"""The share of the time that is spent on looking at plans while this process decides alone."""
LONGEST_PAUSE_SECONDS: Final = 1.0
SLICE_SECONDS: Final = 0.001
"""How long plans are looked at without a pause, by a decision or in the background."""
PAUSE_SECONDS: Final = 0.004
"""How long no other decision looks at plans after that."""
_PLANS_BETWEEN_CLOCKS: Final = 16

_MARGIN_US: Final = 1_000_000
"""Replies may be kept this much later than others that the store has sent after them."""


class Known(NamedTuple):
    """
    The last reply of the store about a counter.

    Attributes:
        at_us: The time of the reply in microseconds since the epoch, by the store's clock.
        remaining: The permits that were left.
        bound: The limit of the counter at that time.
    """

    at_us: int
    remaining: int
    bound: BoundLimit

    def left_of(self, capacity: int) -> int:
        """Return the permits that are left if the limit now has this capacity, as what was used stays used."""
        return self.remaining + capacity - self.bound.limit.capacity


_Row = tuple[int, int, BoundLimit]
"""The fields of a :class:`Known`, which takes longer to make."""


class AnsweredPlan(Protocol):
    """A plan with the latest reply to it."""

    @property
    def keys(self) -> list[str]:
        """The keys of its counters."""

    @property
    def bounds(self) -> tuple[BoundLimit, ...]:
        """The limits, each bound to its counter."""

    @property
    def last(self) -> Reply | None:
        """The latest reply of the store to it. None if there is none."""


class LatestReplies:
    """
    Finds the latest reply about each counter, among the plans of this process.

    Any thread may call it.

    Args:
        plans: Returns all plans that this process keeps, those that were used last first.
    """

    def __init__(self, plans: Callable[[], Iterable[AnsweredPlan]]) -> None:
        self._plans = plans
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._reset_at_us: OrderedDict[str, int] = OrderedDict()
        self.clear()

    def after_fork(self) -> None:
        """Drop what a child process has inherited, since another thread may hold the lock."""
        self._begin()

    def clear(self) -> None:
        """Drop what was found, as the store decides again. The plans still have their replies."""
        self._known: dict[str, _Row] = {}
        self._looking: Iterator[AnsweredPlan] | None = None
        self._since_us = self._newest_us = 0
        self._look_at = self._spent = 0.0

    def reset(self, keys: Iterable[str], now_us: int) -> None:
        """Note that these counters were reset, so that earlier replies say nothing about them."""
        for key in keys:
            self._reset_at_us[key] = now_us
            if len(self._reset_at_us) > MAX_RESETS:
                self._reset_at_us.popitem(last=False)

    def about(self, plan: AnsweredPlan) -> list[Known | None]:
        """Return what the store said last about each counter of a plan, and None for one that it said nothing about."""
        with self._lock:
            if monotonic() >= self._look_at:
                self._look_on()
            known = [self._known.get(key) for key in plan.keys]
        if self._reset_at_us:
            known = [row if row and row[0] > self._reset_at_us.get(row[2].key, -1) else None for row in known]
        if (last := plan.last) is not None:
            # It may have come since the last look.
            rows = zip(plan.bounds, last.numbers[2 :: last.width], known, strict=True)
            at_us = last.numbers[1]
            known = [_newer((at_us, remaining, bound), row) for bound, remaining, row in rows]
        return [None if row is None else Known._make(row) for row in known]

    def look_at_rest(self) -> None:
        """Look at the plans that no decision has looked at yet, with pauses in which decisions go on."""
        while self._looking is not None:
            with self._lock:
                self._look_on()
            sleep(SLICE_SECONDS)

    def _look_on(self) -> None:
        """
        Look for a moment at the plans that were answered since the last time, and decide when a decision looks again.
        """
        began = ended = monotonic()
        looking = self._looking
        if looking is None:
            if len(self._known) > MAX_KNOWN:
                self.clear()
            self._since_us, self._spent = self._newest_us - _MARGIN_US, 0.0
            looking = self._looking = iter(self._plans())
        while some := list(islice(looking, _PLANS_BETWEEN_CLOCKS)):
            for plan in some:
                last = plan.last
                if last is not None and last.numbers[1] >= self._since_us:
                    self._newest_us = max(self._newest_us, _add(self._known, plan, last))
            ended = monotonic()
            if ended - began >= SLICE_SECONDS:
                self._look_at = ended + PAUSE_SECONDS
                break
        else:
            self._looking = None
            self._look_at = ended + min(LONGEST_PAUSE_SECONDS, (self._spent + ended - began) / SHARE_OF_TIME)
        self._spent += ended - began


def _add(known: dict[str, _Row], plan: AnsweredPlan, reply: Reply) -> int:
    """Add what a reply to a plan tells of its counters, unless later things are known, and return its time."""
    numbers, at_us = reply.numbers, reply.numbers[1]
    for key, bound, remaining in zip(plan.keys, plan.bounds, numbers[2 :: reply.width], strict=True):
        other = known.get(key)
        # If two replies are of one instant, the one with fewer permits left came later.
        if other is None or at_us > other[0] or (at_us == other[0] and remaining < other[1]):
            known[key] = at_us, remaining, bound
    return at_us


def _newer(own: _Row, row: _Row | None) -> _Row:
    """Return the later of two. Of two of one instant, the one with fewer permits left came later."""
    if row is None or own[0] > row[0]:
        return own
    return own if own[0] == row[0] and own[1] <= row[1] else row
