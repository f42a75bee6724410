"""
Read the counters of all limits of one consumer, for the consumer. Nothing is charged.

It takes the road of look-ups, which have more time than decisions and connections of their own. So neither a flood of
such reads nor their failures change how requests are decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from enforcement.engine.asking import AWAY, NOT_RESTORED, Asker, StoreAnswer
from enforcement.failover.health import Health
from enforcement.http.own_limits import OwnLimits, Reading, own_limits
from enforcement.model.keys import Keys
from enforcement.model.lease_bounds import unused_max
from enforcement.model.matching import Attributes, check_attributes
from enforcement.model.sizes import MAX_NUMBER
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Steps
from enforcement.plan.plan import Plan
from enforcement.plan.request import Request
from enforcement.state.planner import Planner
from enforcement.state.token_cache import TokenEntry
from enforcement.state.token_plans import TokenPlans

if TYPE_CHECKING:
    from enforcement.state.token_plans import OwnLimitParts

HOPELESS_COST: Final = MAX_NUMBER + 1
"""
A cost that every limit denies. The store then charges nothing, registers no value of a partition, and still tells what
is left. It looks up which values have a counter of their own.
"""


class OwnLimitReader:
    """
    Reads the counters of a consumer.

    Args:
        keys: The keys of the store.
        planner: Knows the limits of tokens.
        health: Knows whether the store is available.
        fleet: Returns how many processes share the limits.
    """

    def __init__(self, keys: Keys, planner: Planner, health: Health, *, fleet: Callable[[], int]) -> None:
        self._keys = keys
        self._planner = planner
        self._health = health
        self._fleet = fleet
        # A page that is slow says nothing about decisions, which have less time and other connections.
        self._asker = Asker(health, health.failed_beside)

    def reading(self, token: object, attributes: Attributes) -> Steps[OwnLimits | None] | None:
        """
        Return steps that read the limits of a token, which this process has just met.

        Args:
            token: As the client sent it, or Anonymous.
            attributes: Those of the request, which select the counters of partitioned limits.
        Returns:
            A generator of commands. Its result is :class:`OwnLimits`, or None if the store does not tell all counters.
            None in its place: the documents have changed since, so that the token must be looked up again.
        Raises:
            ValueError: The attributes are not a small mapping of strings.
        """
        entry = self._planner.find(token)
        plans = entry.plan if isinstance(entry, TokenEntry) else None
        return self._reading(plans, check_attributes(attributes)) if isinstance(plans, TokenPlans) else None

    def _reading(self, plans: TokenPlans, attributes: Attributes) -> Steps[OwnLimits | None]:
        limits, parts = self._parts(plans, attributes)
        seen: dict[int, Reading] = {}
        at_us, fleet = 0, self._fleet()
        for indexes, plan in parts:
            answer = yield from self._asking(plan)
            if answer.reply is None:
                return None
            at_us = max(at_us, answer.reply.now_us)
            seen.update(zip(indexes, _readings(plan, answer), strict=True))
        found = [
            replace(it, reading=seen.get(i), unused_max=unused_max(it.rule.limit, fleet)) for i, it in enumerate(limits)
        ]
        return OwnLimits(at_us or self._health.now_us(), plans.revision, found)

    def _parts(self, plans: TokenPlans, attributes: Attributes) -> OwnLimitParts:
        """Return the limits of a token and a plan for each hash slot, kept in *plans* if no attribute selects one."""
        if plans.own is not None:
            return plans.own
        limits = own_limits(plans.rules, plans.indexes, self._keys, attributes)
        bounds = {i: own.bound for i, own in enumerate(limits) if own.bound is not None}
        groups = self._health.connector.groups(list(bounds), lambda i: bounds[i].tag) if bounds else ()
        parts = limits, [(indexes, _plan([bounds[i] for i in indexes])) for indexes in groups]
        if not any(plans.indexes):
            plans.own = parts
        return parts

    def _asking(self, plan: Plan) -> Steps[StoreAnswer]:
        """Yield the commands that read the counters of one slot, and return a :class:`StoreAnswer`."""
        health = self._health
        if health.is_away(plan.keys[0]):
            return AWAY
        if plan.lies_in(health.lost_counters.sets):
            return NOT_RESTORED
        unpaid = yield from self._asker.paying(plan)
        if unpaid is not None:
            return unpaid
        request = Request(plan, {bound.limit.unit: HOPELESS_COST for bound in plan.bounds}, charge=False)
        return (yield from self._asker.asking(request, registers=bool(plan.unregistered)))


def _plan(bounds: Sequence[BoundLimit]) -> Plan:
    """
    Return a new plan of counters that are read, with those of limits with a rollover once more behind them, as plain
    ones.

    What is left of such a limit contains what was carried. So only the plain reading tells what is used.
    """
    return Plan((*bounds, *(_plain(bound) for bound in bounds if bound.limit.rollover)))


def _plain(bound: BoundLimit) -> BoundLimit:
    """Return a copy of a bound with a rollover that is read as a plain window of the greatest quota."""
    return replace(bound, limit=replace(bound.limit, quota=MAX_NUMBER, rollover=None, published=True), scope="key")


def _readings(plan: Plan, answer: StoreAnswer) -> Iterator[Reading]:
    """Yield a reading for each counter of a plan, in the order of its bounds, without those that are read as plain."""
    reply = answer.reply
    assert reply is not None
    diverted = {i for i, diverts in zip(plan.unregistered, answer.overflowed, strict=True) if diverts}
    rolling = [i for i, bound in enumerate(plan.bounds) if bound.limit.rollover]
    used = {i: MAX_NUMBER - reply.remaining(at) for at, i in enumerate(rolling, len(plan.bounds) - len(rolling))}
    for i, bound in enumerate(plan.bounds[: len(plan.bounds) - len(rolling)]):
        left, reset_us = reply.remaining(i), reply.reset(i)
        charged = used.get(i, bound.limit.capacity - left)
        yield Reading(charged, max(0, left), reset_us if reset_us >= 0 else None, i in diverted)
