"""
Split plans into parts, and lease the permits of parts.

A plan is decided as a whole if one lease has permits of all its counters, or else by one call to the store. If only
some of its limits may be leased, or if one call cannot reach all its counters, it is decided part by part: some parts
by their leases, the others by the store. All requests of the process with the same counters share the lease of a part,
as a limit of a project applies to each of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakValueDictionary

from enforcement.model.keys import together
from enforcement.plan.binding import BoundLimit
from enforcement.state.lease import Lease
from enforcement.state.live_plan import LivePlan, Part

MARKS: Final = "-"
"""The id of a request that takes no slots, and whose reply has the marks of the windows, by which it can be undone."""


def marks_of(plan: LivePlan) -> str:
    """Return :data:`MARKS`, or an empty id if the replies without marks, which the store makes sooner, tell them."""
    return "" if all(bound.letter == "f" and not bound.limit.rollover for bound in plan.bounds) else MARKS


def part_of(plan: LivePlan, indexes: tuple[int, ...]) -> Part:
    """Return a new part with these bounds of a plan."""
    return Part(LivePlan(tuple(plan.bounds[i] for i in indexes)), indexes)


def parts_by_tag(plan: LivePlan, indexes: tuple[int, ...] | None = None) -> tuple[Part, ...]:
    """
    Return a plan split into parts of one hash tag each, in the order in which they are asked, the global part last.

    Args:
        indexes: For each bound of the plan its index among those of the whole plan. None: this is the whole plan. They
            are always the same for one plan, which keeps its parts.
    """
    if plan.parts is None:
        bounds, at = plan.bounds, indexes or tuple(range(len(plan.bounds)))
        by_tag = together(range(len(bounds)), lambda i: bounds[i].tag)
        ordered = sorted(by_tag, key=lambda found: bounds[found[0]].scope == "global")
        plan.parts = tuple(
            Part(LivePlan(tuple(bounds[i] for i in found)), tuple(at[i] for i in found)) for found in ordered
        )
    return plan.parts


class PartLeases:
    """
    The leases of some parts of a plan, in place of one lease of all its counters.

    Attributes:
        parts: The parts whose permits may be leased, each with its bit in the numbers that :meth:`others` takes. The
            plan of a part has the lease.
    """

    __slots__ = ("_others", "_plan", "parts")

    low: Final = -2
    """Below what :meth:`take` returns, so that nobody asks for permits because of it."""

    def __init__(self, plan: LivePlan, parts: tuple[Part, ...]) -> None:
        self.parts = tuple((1 << i, part) for i, part in enumerate(parts))
        self._plan = plan
        self._others: dict[int, Part | None] = {}

    def take(self, cost: int) -> int:
        """Return -1, because no permit of a part decides a request by itself."""
        return -1

    def others(self, lacking: int) -> Part | None:
        """
        Return the part that the store has to decide, or None if there is none.

        Args:
            lacking: The bits of the parts for which there is no permit.
        """
        if lacking not in self._others:
            leased = {i for bit, part in self.parts if not lacking & bit for i in part.indexes}
            indexes = tuple(i for i in range(len(self._plan.bounds)) if i not in leased)
            self._others[lacking] = part_of(self._plan, indexes) if indexes else None
        return self._others[lacking]

    def plans(self) -> Iterator[LivePlan]:
        """Yield the plans of all parts."""
        yield from (part.plan for _, part in self.parts)
        yield from (part.plan for part in self._others.copy().values() if part is not None)


class LeaseMaker:
    """
    Gives plans their leases.

    Args:
        one_slot_per_call: Whether one call only reaches counters that share a hash tag.
    """

    def __init__(self, *, one_slot_per_call: bool) -> None:
        self._one_slot_per_call = one_slot_per_call
        self._shared: WeakValueDictionary[Any, Lease] = WeakValueDictionary()

    def clear(self) -> None:
        """Drop the leases that plans share in a child process, because they belong to the parent."""
        self._shared.clear()

    def lend(self, plan: LivePlan) -> LivePlan:
        """Return *plan*, after adding empty leases of all limits, or of some parts, whose permits may be leased."""
        if plan.fleet is None:
            return plan
        bounds = plan.bounds
        leasable = [i for i, bound in enumerate(bounds) if bound.limit.leasable]
        if not leasable:
            return plan
        if len(leasable) == len(bounds) and not (plan.spread and self._one_slot_per_call):
            plan.lease = Lease(plan)
        elif not plan.has_slots:  # whoever takes slots needs the store for all limits
            alike = together(leasable, lambda i: _users(bounds[i]))
            plan.lease = PartLeases(plan, tuple(self._leased(plan, tuple(indexes)) for indexes in alike))
        return plan

    def _leased(self, plan: LivePlan, indexes: tuple[int, ...]) -> Part:
        """Return the part of a plan with these bounds, and with the lease of all requests that have the same ones."""
        name = tuple((plan.bounds[i].key, plan.bounds[i].limit) for i in indexes)
        lease = self._shared.get(name)
        if lease is None:
            part = part_of(plan, indexes)
            part.plan.lease = self._shared[name] = Lease(part.plan, decides=False)
            return part
        return Part(lease.plan, indexes)


def _users(bound: BoundLimit) -> str:
    """Return a name of the requests that have this counter. Limits with the same name are leased together."""
    return "|".join((bound.tag, bound.scope, *bound.limit.partition_by))
