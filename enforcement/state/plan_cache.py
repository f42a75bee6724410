"""
Where one process keeps the plans of requests with attributes: bounded for all tokens together.

Values come from clients, so there may be any number of them. A plan that is asked for again is *protected* and stays
until others were used since; one that came once is on *probation* and makes room for the next. So whoever invents
values, each of them once, washes out nobody's plans but others that came once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from enforcement.state.live_plan import LivePlan

MAX_PROBATION: Final = 2_500
MAX_PROTECTED: Final = 7_500
MAX_OVERFLOWED: Final = 2_500
"""Values remembered as being on an overflow counter; they share a plan, so each is a name and no more."""

MAX_TRUSTED: Final = 10_000
MAX_TOLD: Final = 20
TOLD_SECONDS: Final = 600.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Name = Hashable
Limited = tuple[str, str, str]
"""Project id, policy id, name of the limit."""


class PlanCache:
    """
    Plans by name. Any thread may call: each step is one operation of an ordered mapping.

    Attributes:
        overflowed: Decisions that went to an overflow counter.
    """

    def __init__(self) -> None:
        self.overflowed = 0
        self._probation: OrderedDict[Name, LivePlan] = OrderedDict()
        self._protected: OrderedDict[Name, LivePlan] = OrderedDict()
        self._overflowed: OrderedDict[Name, LivePlan] = OrderedDict()
        self._trusted: OrderedDict[str, float] = OrderedDict()
        self._full: OrderedDict[Limited, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected) + len(self._overflowed)

    def get(self, name: Name) -> LivePlan | None:
        """Return the plan of this name, which is protected from then on."""
        plan = self._protected.get(name)
        if plan is not None:
            try:
                self._protected.move_to_end(name)
            except KeyError:  # another thread let go of it
                _put(self._protected, name, plan, MAX_PROTECTED)
            return plan
        plan = self._probation.pop(name, None)
        if plan is None:
            return self._overflowed.get(name)
        _put(self._protected, name, plan, MAX_PROTECTED)
        return plan

    def put(self, name: Name, plan: LivePlan) -> None:
        """Keep a plan under its own name."""
        if name not in self._protected:
            _put(self._probation, name, plan, MAX_PROBATION)

    def divert(self, name: Name, plan: LivePlan) -> None:
        """Keep the plan over overflow counters that a value shares with others."""
        self._protected.pop(name, None)
        self._probation.pop(name, None)
        _put(self._overflowed, name, plan, MAX_OVERFLOWED)

    def admit(self, name: Name, plan: LivePlan) -> None:
        """Keep the plan of a value that found a place."""
        self._overflowed.pop(name, None)
        self.put(name, plan)

    def trust(self, plan: LivePlan, until: float) -> None:
        """Take the values of a plan for enrolled until a monotonic instant, also under documents yet to come."""
        plan.registered_until = until
        for i in plan.unregistered:
            _put(self._trusted, plan.bounds[i].key, until, MAX_TRUSTED)

    def trusted(self, plan: LivePlan) -> float:
        """Return until when all values of a plan are taken for enrolled; 0: one of them is not known to be."""
        return min((self._trusted.get(plan.bounds[i].key, 0.0) for i in plan.unregistered), default=0.0)

    def note(self, limited: Limited, now: float) -> None:
        """Take note that a limit of a project had no place for a value just now, in monotonic seconds."""
        self._full[limited] = now
        self._full.move_to_end(limited)
        if len(self._full) > MAX_TOLD:
            self._full.popitem(last=False)

    def overflowing(self, now: float) -> list[Limited]:
        """Return the limits that had no place for a value lately; the latest ones, if there are many."""
        return [limited for limited, at in self._full.copy().items() if now - at < TOLD_SECONDS]

    def clear(self) -> None:
        """Forget everything: a child process has its own."""
        self.overflowed = 0
        for kept in (self._probation, self._protected, self._overflowed, self._trusted, self._full):
            kept.clear()


def _put(kept: OrderedDict[K, V], name: K, value: V, size: int) -> None:
    # Not a dict, which finds its first entry slowly when many before it were deleted.
    kept[name] = value
    if len(kept) > size:
        kept.popitem(last=False)


__all__ = ["PlanCache"]
