"""
Split plans into parts, and lease the permits of parts.

A plan is decided as a whole if one lease has permits of all its counters, or else by one call to the store. If only
some of its limits may be leased, or if one call cannot reach all its counters, it is decided part by part: some parts
by their leases, the others by the store. All requests of the process with the same counters share the lease of a part,
as a limit of a project applies to each of its tokens.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakValueDictionary

from enforcement.model.keys import together
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.state.lease import Lease
from enforcement.state.live_plan import LivePlan, Part, PartLeases, part_of

MARKS: Final = "-"
"""The id of a request that takes no slots, and whose reply has the marks of the windows, by which it can be undone."""


def marks_of(plan: LivePlan) -> str:
    """Return :data:`MARKS`, or an empty id if the replies without marks, which the store makes sooner, tell them."""
    return "" if all(bound.letter == "f" and not bound.limit.rollover for bound in plan.bounds) else MARKS


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


class LeaseMaker:
    """
    Gives plans their leases.

    Args:
        one_slot_per_call: Whether one call only reaches counters that share a hash tag.
    """

    def __init__(self, *, one_slot_per_call: bool) -> None:
        self._one_slot_per_call = one_slot_per_call
        self._shared: WeakValueDictionary[tuple[tuple[str, Limit], ...], Lease[LivePlan]] = WeakValueDictionary()

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

    def _leased(self, plan: LivePlan, indexes: tuple[int, ...]) -> tuple[Part, Lease[LivePlan]]:
        """Return the part of a plan with these bounds, and with the lease of all requests that have the same ones."""
        name = tuple((plan.bounds[i].key, plan.bounds[i].limit) for i in indexes)
        lease = self._shared.get(name)
        if lease is None:
            part = part_of(plan, indexes)
            part.plan.lease = self._shared[name] = lease = Lease(part.plan, decides=False)
            return part, lease
        return Part(lease.plan, indexes), lease


def _users(bound: BoundLimit) -> str:
    """Return a name of the requests that have this counter. Limits with the same name are leased together."""
    return "|".join((bound.tag, bound.scope, *bound.limit.partition_by))
