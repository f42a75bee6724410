"""Plans with the state that this process keeps about their counters."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from enforcement.model.algorithms import Spec
from enforcement.model.limits import Limit
from enforcement.model.matching import Attributes
from enforcement.model.metered import Metering
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs, check_costs, check_units
from enforcement.plan.decision_ids import DecisionIds
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply
from enforcement.usage.counts import TokenUsage

_CLOCK_SET_BACK_US: Final = 1_000_000
"""A reply that is so much older than the last one was sent after it, by a store whose clock was set back."""


class HiddenLimit(NamedTuple):
    """
    A limit that may apply to a request because of what is in its body, or because a server may read its path otherwise.

    Attributes:
        may_apply: Returns whether it may, by the other attributes of the request.
        resembles: Returns the same for a path in lower case, for limits with a path or methods.
        is_metered: Whether it counts tokens or money. It then denies all that has none that can be read, and otherwise
            only bodies that a server may understand all the same.
    """

    may_apply: Callable[[Attributes], bool]
    is_metered: bool
    resembles: Callable[[Attributes], bool] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """
    Some of the bounds of a plan.

    Attributes:
        plan: A plan of these bounds.
        indexes: For each of them its index among all bounds of the whole plan.
    """

    plan: LivePlan
    indexes: tuple[int, ...]


class MeteredCommon(NamedTuple):
    """
    The settings that all metered requests of a plan have in common.

    Attributes:
        limits: Its limits.
        names: The name under which the limiter knows the cost of each.
        rules: The rules of its policies for metered requests.
        waits_for_prices: Whether a limit counts money, or a bound has to know what the prices say of tokens.
        needs_prices: Whether one of these denies requests while there are no prices. A shadow does not.
    """

    limits: tuple[Limit, ...]
    names: tuple[str, ...]
    rules: Metering
    waits_for_prices: bool
    needs_prices: bool


class LivePlan(Plan):
    """
    A plan with the state that this process keeps about its counters.

    Other modules keep their state here too, so that a decision needs no look-up. Each such attribute is written and
    read only by the module that owns it.

    Attributes:
        name: Its name in the cache of plans with attributes. None if it is not in the cache.
        usage: Where its decisions are counted. None for limits in code.
        metering: The rules of its policies for metered requests. Only doors that meter read them. None if no limit of
            the token counts tokens or money, or looks at an attribute that only a meter reads.
        metered: What all metered requests of it have in common. Only :mod:`enforcement.doors.metered.admitting` reads
            and sets it.
        hidden: The limits that look at an attribute in the body, and would not apply to a body that cannot be read, and
            those of tokens and money for certain paths or methods. Only doors that meter look at them.
        lease: Its lease (:class:`~enforcement.state.lease.Lease`), or the leases of some of its parts
            (:class:`~enforcement.state.parts.PartLeases`). None if no permits may be leased.
        asking: One object for each request that may wait, and for which the store is asked now.
        denied: Its cached denial (:class:`~enforcement.state.denial_cache.CachedDenial`). None if there is none.
        last: The latest reply of the store, from which a fallback starts. None if there is none.
        command: The encoded command that charges one request. None if there is none yet, or if it depends on the time.
        record: The instance that recorded reservations last, the hash tag of their records, and how these begin. None
            if none were recorded.
        parts: The plan split by hash tag (:mod:`enforcement.state.parts`). None if it was not split yet.
        registered_until: Until when its values count as registered in the store, monotonic seconds. 0 if they are not.
        retry_at: When a plan with overflow counters asks for counters of its own again, monotonic seconds.
    """

    __slots__ = (
        "_once",
        "asking",
        "command",
        "denied",
        "hidden",
        "last",
        "lease",
        "metered",
        "metering",
        "name",
        "parts",
        "record",
        "registered_until",
        "retry_at",
        "usage",
    )

    def __init__(
        self,
        bounds: tuple[BoundLimit, ...],
        *,
        revision: int = 0,
        fleet: Callable[[], int] | None = None,
        usage: TokenUsage | None = None,
        name: tuple[Hashable, ...] | None = None,
        ids: DecisionIds | None = None,
    ) -> None:
        super().__init__(bounds, revision=revision, fleet=fleet, ids=ids)
        self.name = name
        self.usage = usage
        self.metering: tuple[Metering, ...] | None = None
        self.metered: MeteredCommon | None = None
        self.hidden: tuple[HiddenLimit, ...] = ()
        self.lease: Any = None
        self.asking: set[object] = set()
        self.denied: Any = None
        self.last: Reply | None = None
        self.command: bytes | None = None
        self.parts: tuple[Part, ...] | None = None
        self.record: tuple[str, str, str, str, str] | None = None
        self.registered_until = 0.0
        self.retry_at = 0.0
        self._once: tuple[tuple[Spec, ...], bytes] | None = None  # a pair, so that threads replace both at once

    @property
    def subject(self) -> tuple[str, str]:
        """The ids of the project and of the token. Both are empty for limits in code."""
        return ("", "") if self.usage is None else (self.usage.project, self.usage.token)

    def continue_from(self, old: LivePlan) -> None:
        """Take over what the store said last about the counters of a plan that this one replaces."""
        if old.last is not None:
            self.last = old.last.over(old.bounds, self.bounds)

    def heard(self, reply: Reply) -> None:
        """Keep a reply of the store as the last one, unless another thread has kept one that the store sent later."""
        last = self.last
        if last is None or not 0 < last.numbers[1] - reply.numbers[1] < _CLOCK_SET_BACK_US:
            self.last = reply

    def has_left(self, costs: Costs, count: int) -> bool:
        """Return whether so many such requests would pass, as far as the store has said."""
        last = self.last
        if last is None:
            return False
        if type(costs) is int and not (self.counts_units or self.has_shadows):
            return costs * count <= min(last.numbers[2 :: last.width], default=0)
        rows = [(i, bound) for i, bound in enumerate(self.bounds) if not bound.limit.shadow]
        return all(bound.cost_of(costs) * count <= last.remaining(i) for i, bound in rows)

    def check(self, costs: Costs) -> None:
        """
        Raise ValueError for costs that are not valid, or that no limit in code of this plan counts.

        Raises:
            ValueError: See :func:`~enforcement.plan.costs.check_costs` and, for limits in code, :func:`check_units`.
        """
        check_costs(costs)
        if self.usage is None and self.bounds:  # else limits in code are switched off
            check_units((bound.limit for bound in self.bounds), costs)

    def once(self, now_us: int) -> bytes | None:
        """
        Return the kept command that charges one request, or None if there is none for the window of *now_us*.

        Args:
            now_us: Unix time in microseconds.
        Returns:
            The encoded command. None if none is kept, or if it was made for another calendar window than *now_us*.
        """
        once = self._once
        return None if once is None or once[0] is not self._specs or self.expired(now_us) else once[1]

    def keep_once(self, command: bytes, specs: tuple[Spec, ...]) -> None:
        """Keep the encoded command that charges one request, for as long as the plan has these *specs*."""
        self._once = specs, command
        if not self.follows_calendar:
            self.command = command
