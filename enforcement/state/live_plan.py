"""Plans with the state that this process keeps about their counters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal, NamedTuple

from enforcement.model.algorithms import Spec
from enforcement.model.limits import Limit
from enforcement.model.matching import Attributes
from enforcement.model.metered import Metering
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs, check_costs, check_units
from enforcement.plan.decision import Decision
from enforcement.plan.decision_ids import DecisionIds
from enforcement.plan.plan import Plan
from enforcement.plan.reply import NO_REPLY, Reply
from enforcement.state.counts import Cell
from enforcement.state.lease import Lease
from enforcement.usage.counts import State, TokenUsage

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


def part_of(plan: LivePlan, indexes: tuple[int, ...]) -> Part:
    """Return a new part with these bounds of a plan."""
    return Part(LivePlan(tuple(plan.bounds[i] for i in indexes)), indexes)


class PartLeases:
    """
    The leases of some parts of a plan, in place of one lease of all its counters.

    Attributes:
        parts: The parts whose permits may be leased, each with its bit in the numbers that :meth:`others` takes, and
            with its lease.
    """

    __slots__ = ("_others", "_plan", "parts")

    low: Final = -2
    """Below what :meth:`take` returns, so that nobody asks for permits because of it."""
    asking: Final[Literal[True]] = True
    """True, so that a type checker knows it from a lease, for which somebody may ask."""
    reply: Final = NO_REPLY

    def __init__(self, plan: LivePlan, parts: tuple[tuple[Part, Lease[LivePlan]], ...]) -> None:
        self.parts = tuple((1 << i, part, lease) for i, (part, lease) in enumerate(parts))
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
            leased = {i for bit, part, _ in self.parts if not lacking & bit for i in part.indexes}
            indexes = tuple(i for i in range(len(self._plan.bounds)) if i not in leased)
            self._others[lacking] = part_of(self._plan, indexes) if indexes else None
        return self._others[lacking]

    def plans(self) -> Iterator[LivePlan]:
        """Yield the plans of all parts."""
        yield from (part.plan for _, part, _ in self.parts)
        yield from (part.plan for part in self._others.copy().values() if part is not None)


class CachedDenial:
    """
    One cached denial.

    Attributes:
        costs: The costs that were denied.
        states: The state of each limit, for the usage report.
        minute: Minute of the denial by the store's time, minutes since the epoch.
        given_back: The value of ``Denials._given_back`` when it was cached. It is invalid after that has changed.
        generation: The generation of the documents when it was cached. It is invalid after that has changed.
        present: The decision to return. Its waiting times are correct to GRAIN_SECONDS.
        renew_at: When ``present`` must be computed again, monotonic seconds.
        until: When the store is asked again, monotonic seconds.
        recalled: The counter of decisions made from the cache.
    """

    __slots__ = (
        "_at",
        "_decision",
        "costs",
        "generation",
        "given_back",
        "minute",
        "present",
        "recalled",
        "renew_at",
        "states",
        "until",
    )

    GRAIN_SECONDS: Final = 0.01

    def __init__(
        self,
        decision: Decision,
        costs: Costs,
        seconds: float,
        given_back: int,
        generation: int,
        states: tuple[State, ...],
        recalled: Cell,
    ) -> None:
        self._decision = self.present = decision
        self.costs, self.states, self.recalled = costs, states, recalled
        self.given_back, self.generation = given_back, generation
        self.minute = decision.reply.minute
        self._at = monotonic()
        self.until = self._at + seconds
        self.renew_at = 0.0

    def renewed(self, now: float) -> Decision:
        """Return a new denial with the waiting times of *now*, monotonic seconds, and keep it for GRAIN_SECONDS."""
        first, passed_us = self._decision, int((now - self._at) * 1_000_000)
        self.present = Decision(False, first.reason, "denial_cache", first.plan, first.reply.later(passed_us))
        if first.plan.counts_units:
            self.present.on(self.costs)
        self.renew_at = now + self.GRAIN_SECONDS
        return self.present


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
        lease: Its lease, or the leases of some of its parts. None if no permits may be leased.
        asking: One object for each request that may wait, and for which the store is asked now.
        denied: Its cached denial. None if there is none.
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
        self.lease: Lease[LivePlan] | PartLeases | None = None
        self.asking: set[object] = set()
        self.denied: CachedDenial | None = None
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
