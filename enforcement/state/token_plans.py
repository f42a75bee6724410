"""The plans of one token, made from one generation of the documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from enforcement.model.keys import Keys, fingerprint
from enforcement.model.matching import Attributes
from enforcement.model.metered import Metering
from enforcement.model.partitions import PartitionIndex
from enforcement.plan.decision import Decision
from enforcement.plan.decision_ids import DecisionIds
from enforcement.plan.rules import Rule
from enforcement.state.live_plan import HiddenLimit, LivePlan
from enforcement.state.parts import LeaseMaker
from enforcement.state.plan_cache import PlanCache
from enforcement.store_calls.emergency import Values
from enforcement.usage.counts import TokenUsage

if TYPE_CHECKING:
    from enforcement.http.own_limits import OwnLimit
    from enforcement.plan.plan import Plan

    OwnLimitParts = tuple[list[OwnLimit], list[tuple[list[int], Plan]]]
    """The limits of a token, and for each hash slot their indices and the plan of their counters."""

_MAX_VALUE_IN_NAME: Final = 64
_serials = count()


@dataclass(slots=True)
class TokenPlans:
    """
    The plans of one token, compiled from one generation of the documents.

    Attributes:
        rules: The limits that apply to the token.
        revision: Revision of the documents that the plans are made from.
        usage: Where decisions on this token are counted.
        until_us: When the first of the applied overrides ends, so that the plans must be compiled again; microseconds
            since the epoch. None if no override applied here ends.
        never_expires: Whether the token has no expiry date.
        always: The plan of every request. None if some rule looks at attributes.
        testers: For each rule, a function that returns whether a request's attributes match. None if every request
            matches.
        metering, hidden: See :class:`~enforcement.state.live_plan.LivePlan`.
        indexes: For each rule, the partition index of its values. None if the rule has no partitions.
        fleet: Returns how many processes share the limits. None if no permits may be leased.
        leases: Gives plans their leases.
        ids: Makes the ids of decisions.
        serial: Begins the name of each of these plans in the plan cache, so that no two tokens use the same name.
        own: What :mod:`enforcement.engine.own_limit_reader` keeps for the consumer's page. None: nothing.
    """

    rules: tuple[Rule, ...]
    revision: int
    usage: TokenUsage
    until_us: int | None
    never_expires: bool
    always: LivePlan | None
    testers: tuple[Callable[[Attributes], bool] | None, ...]
    indexes: tuple[PartitionIndex | None, ...]
    leases: LeaseMaker
    hidden: tuple[HiddenLimit, ...] = ()
    metering: tuple[Metering, ...] | None = None
    fleet: Callable[[], int] | None = None
    ids: DecisionIds | None = None
    serial: int = field(default_factory=_serials.__next__)
    own: OwnLimitParts | None = None

    def plan(self, attributes: Attributes, keys: Keys, plan_cache: PlanCache) -> LivePlan | Decision:
        """
        Return the cached plan of a request with these attributes, or a new one.

        A value that the store could not register, because its limit is full, is counted by the overflow counter.
        """
        matched = [r for r, test in zip(self.rules, self.testers, strict=True) if test is None or test(attributes)]
        values = [(r.index, *(_short(attributes[part]) for part in r.varies_by)) for r in matched]
        name = (self.serial, *values)
        plan = plan_cache.get(name)
        if plan is None or (plan.overflows and monotonic() >= plan.retry_at):
            bounds = tuple(rule.bind(keys, attributes, self.indexes[rule.index]) for rule in matched)
            plan = self.leases.lend(
                LivePlan(bounds, revision=self.revision, usage=self.usage, fleet=self.fleet, name=name, ids=self.ids)
            )
            plan.metering, plan.hidden = self.metering, self.hidden
            plan.registered_until = plan_cache.trusted(plan)
            if not plan.unregistered or plan.registered_until > monotonic():
                plan_cache.put(name, plan)  # any other plan is kept once the store has registered its values
        elif plan.overflows:
            plan_cache.overflowed += 1
        return plan


def _short(value: str) -> str | tuple[str]:
    """Return a short value unchanged, or the fingerprint of a long one in a tuple, which equals no short value."""
    return value if len(value) <= _MAX_VALUE_IN_NAME else (fingerprint((value,)),)


class SuspendingPlans(TokenPlans):
    """
    The plans of a token while values of attributes are suspended in its project.

    Args:
        suspended: The suspended values by the name of the attribute, each with the end of its suspension.
        refuse: Returns a new denial of a request with such a value, until an end or without one.
        plans: The other arguments, which are those of :class:`TokenPlans`.
    """

    __slots__ = ("refuse", "suspended")

    def __init__(self, *, suspended: Values, refuse: Callable[[Iterable[int | None]], Decision], **plans: Any) -> None:
        super().__init__(**plans)
        self.suspended = suspended
        self.refuse = refuse

    def plan(self, attributes: Attributes, keys: Keys, plan_cache: PlanCache) -> LivePlan | Decision:
        """Return a denial if the request has a suspended value, or its plan."""
        found = [
            values[attributes[name]]
            for name, values in self.suspended.items()
            if name in attributes and attributes[name] in values
        ]
        return self.refuse(found) if found else super().plan(attributes, keys, plan_cache)
