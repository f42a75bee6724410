"""
Cache the plans of requests with attributes, with one bound on its size for all tokens.

Attribute values come from clients, so there may be any number of them. The cache is a segmented LRU. A new plan is on
*probation*. When it is used again, it becomes *protected*. Each segment evicts its least recently used plan. A client
that sends many values once each can therefore evict only other plans that were used once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from enforcement.state.recent_limits import RecentLimits

if TYPE_CHECKING:
    from enforcement.state.live_plan import LivePlan

MAX_PROBATION: Final = 2_500
MAX_PROTECTED: Final = 7_500
MAX_OVERFLOWED: Final = 2_500
"""Names whose values use an overflow counter. Many names share one plan, so an entry is small."""

MAX_TRUSTED: Final = 10_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Name = Hashable


class PlanCache:
    """
    Plans by name, for any thread.

    There is no lock, because each step is one atomic operation of an OrderedDict.

    Attributes:
        overflowed: Number of decisions that used an overflow counter.
        full: Limits that recently had no room for another value.
    """

    def __init__(self) -> None:
        self.overflowed = 0
        self._probation: OrderedDict[Name, LivePlan] = OrderedDict()
        self._protected: OrderedDict[Name, LivePlan] = OrderedDict()
        self._overflowed: OrderedDict[Name, LivePlan] = OrderedDict()
        self._trusted: OrderedDict[str, float] = OrderedDict()
        self.full = RecentLimits()

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected) + len(self._overflowed)

    def get(self, name: Name) -> LivePlan | None:
        """Return the plan of this name, or None, and protect the plan if it was on probation."""
        plan = self._protected.get(name)
        if plan is not None:
            try:
                self._protected.move_to_end(name)
            except KeyError:  # another thread has just evicted it
                _put(self._protected, name, plan, MAX_PROTECTED)
            return plan
        plan = self._probation.pop(name, None)
        if plan is None:
            return self._overflowed.get(name)
        _put(self._protected, name, plan, MAX_PROTECTED)
        return plan

    def put(self, name: Name, plan: LivePlan) -> None:
        """Add a plan on probation, unless its name is protected already."""
        if name not in self._protected:
            _put(self._probation, name, plan, MAX_PROBATION)

    def divert(self, name: Name, plan: LivePlan) -> None:
        """Replace the plan of a name by a plan with overflow counters, which other names share."""
        self._protected.pop(name, None)
        self._probation.pop(name, None)
        _put(self._overflowed, name, plan, MAX_OVERFLOWED)

    def admit(self, name: Name, plan: LivePlan) -> None:
        """Add the plan of values that the store has registered, in place of a plan with overflow counters."""
        self._overflowed.pop(name, None)
        self.put(name, plan)

    def trust(self, plan: LivePlan, until: float) -> None:
        """
        Set until when the values of a plan count as registered in the store.

        This is kept by counter key, so that it still holds for plans compiled from later documents.

        Args:
            until: When the store must be asked to register the values again, monotonic seconds.
        """
        plan.registered_until = until
        for i in plan.unregistered:
            _put(self._trusted, plan.bounds[i].key, until, MAX_TRUSTED)

    def trusted(self, plan: LivePlan) -> float:
        """
        Return until when all values of a plan count as registered, in monotonic seconds, or 0 if one does not or there
        are none.
        """
        return min((self._trusted.get(plan.bounds[i].key, 0.0) for i in plan.unregistered), default=0.0)

    def plans(self) -> Iterator[LivePlan]:
        """Yield all plans, of each kind the latest first. A plan with overflow counters comes once for each name."""
        for cache in (self._overflowed, self._protected, self._probation):
            yield from reversed(list(cache.values()))

    def clear(self) -> None:
        """Drop all plans and all else that is kept, as a child process does after a fork."""
        # Leases in the plans belong to the parent process, which still holds them.
        self.overflowed = 0
        self.full.clear()
        for cache in (self._probation, self._protected, self._overflowed, self._trusted):
            cache.clear()


def _put(plans: OrderedDict[K, V], name: K, value: V, size: int) -> None:
    # An OrderedDict, because a dict finds its first entry slowly after many deletions at its front.
    plans[name] = value
    if len(plans) > size:
        plans.popitem(last=False)
