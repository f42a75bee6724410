"""Keep the counters of one request in the form that calls to the store need."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Final

from enforcement.model.algorithms import Spec
from enforcement.model.keys import dirty_beside
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import REQUESTS, Costs
from enforcement.plan.decision_ids import DecisionIds

if TYPE_CHECKING:
    from enforcement.plan.headers import HeaderCache


class Plan:
    """
    The limits of one request, each bound to its counter.

    A plan never changes, except for values that it computes once and keeps. What a process knows about the counters,
    such as a lease or a cached denial, is in :class:`~enforcement.state.live_plan.LivePlan`.

    Attributes:
        bounds: The bound limits, in the order of the call.
        keys: The keys of the counters, in the same order.
        touches: The keys of a call. After the counters come the sets in which the store lists changed durable counters.
        revision: The published revision of its limits. 0 for limits in code.
        fleet: A function that returns how many processes share the limits. None: permits are not leased.
        enforces: Whether a limit can deny the request, because it is not in shadow mode.
        has_shadows: Whether a limit is in shadow mode. Such a limit is counted and never denies.
        has_slots: Whether a limit is a concurrency limit. Then ``admit()`` is needed instead of ``hit()``.
        counts_units: Whether a limit counts another unit than requests. A plain cost does not name that unit.
        counts_no_requests: Whether no limit counts requests. This is also so if there is no limit.
        has_charge_on: Whether a limit is charged by the status of the response.
        spread: Whether the counters have different hash tags. On a cluster they then need more than one call.
        follows_calendar: Whether a limit follows a calendar. Its commands contain a window, and expire with it.
        ones: For a request of cost 1, the index and cost of each bound.
        unregistered: The indices of the bounds whose partition values may not be registered in the store.
        overflows: Whether a limit is bound to its overflow counter.
        ids: Makes the ids of its decisions. None: they have none.
        fragments: What records of reservations have of its limits. Only :mod:`enforcement.plan.records` reads and sets
            it.
        header_cache: What the header fields of all decisions have in common. Only :mod:`enforcement.plan.headers` reads
            and sets it.
    """

    __slots__ = (
        "_specs",
        "_specs_from_us",
        "_specs_until_us",
        "_texts",
        "_unmetered",
        "_unmetered_units",
        "bounds",
        "counts_no_requests",
        "counts_units",
        "enforces",
        "fleet",
        "follows_calendar",
        "fragments",
        "has_charge_on",
        "has_shadows",
        "has_slots",
        "header_cache",
        "ids",
        "keys",
        "ones",
        "overflows",
        "revision",
        "spread",
        "touches",
        "unregistered",
    )

    def __init__(
        self,
        bounds: tuple[BoundLimit, ...],
        *,
        revision: int = 0,
        fleet: Callable[[], int] | None = None,
        ids: DecisionIds | None = None,
    ) -> None:
        self.bounds = bounds
        self.ids = ids
        self.keys = [bound.key for bound in bounds]
        self.touches = [*self.keys, *dict.fromkeys(dirty_beside(bound.key) for bound in bounds if bound.durable)]
        self.revision = revision
        self.fleet = fleet
        self.enforces = any(not bound.limit.shadow for bound in bounds)
        self.has_shadows = any(bound.limit.shadow for bound in bounds)
        self.has_slots = any(bound.limit.algorithm == "concurrency" for bound in bounds)
        units = [bound.limit.unit for bound in bounds]
        self.counts_units = units.count(REQUESTS) < len(units)
        self.counts_no_requests = REQUESTS not in units
        self.has_charge_on = any(bound.limit.charge_on for bound in bounds)
        self.spread = len({bound.tag for bound in bounds}) > 1
        self.follows_calendar = any(bound.limit.calendar not in (None, "lifetime") for bound in bounds)
        self.ones = tuple((bound.index, bound.cost_of(1)) for bound in bounds)
        self.unregistered = tuple(i for i, bound in enumerate(bounds) if bound.partitions is not None)
        self.overflows = any(bound.overflow for bound in bounds)
        self.header_cache: HeaderCache | None = None
        self.fragments: str | None = None
        self._unmetered: tuple[int, ...] | None = None
        self._unmetered_units: tuple[frozenset[str], tuple[int, ...]] | None = None  # for the units named last
        self._specs: tuple[Spec, ...] = ()
        self._texts: tuple[str, ...] = ()
        self._specs_from_us = self._specs_until_us = 0

    @property
    def subject(self) -> tuple[str, str]:
        """The ids of the project and of the token. Both are empty for limits in code."""
        return "", ""

    @property
    def one_of_each(self) -> Costs:
        """The costs of one permit of each unit that a limit counts, which are 1 if all count requests."""
        return {bound.limit.unit: 1 for bound in self.bounds} if self.counts_units else 1

    @property
    def durable_sets(self) -> list[str]:
        """The keys of the sets in which the store lists changed durable counters."""
        return self.touches[len(self.keys) :]

    def lies_in(self, sets: frozenset[str]) -> bool:
        """Return whether *sets* contains one of :attr:`durable_sets`."""
        return not sets.isdisjoint(self.touches)

    def __reduce__(self) -> tuple[Callable[..., Plan], tuple[tuple[BoundLimit, ...], int, int]]:
        """
        Return what pickle needs to make the plan anew, which is its limits without what this process knows of counters.
        """
        return _restored, (self.bounds, self.revision, self.fleet() if self.fleet else 0)

    def unmetered(self, costs: int | Container[str]) -> tuple[int, ...]:
        """
        Return the indices of the bounds that got no cost, because their unit is not named.

        Args:
            costs: A number of requests, or the units that are named.
        """
        units = self._unmetered_units
        if units is not None and units[0] == costs:
            return units[1]
        if isinstance(costs, int) and costs == 0:
            return ()
        if not isinstance(costs, int):
            result = tuple([i for i, bound in enumerate(self.bounds) if not bound.names_cost(costs)])
            if isinstance(costs, frozenset):  # nothing else is sure to stay as it is
                self._unmetered_units = costs, result
            return result
        if self._unmetered is None:  # it is the same for every number of requests
            self._unmetered = tuple(i for i, bound in enumerate(self.bounds) if bound.limit.unit != REQUESTS)
        return self._unmetered

    def specs(self, now_us: int) -> tuple[Spec, ...]:
        """Return the numbers by which the store decides on each limit, with the calendar windows around *now_us*."""
        if not self._specs or self.expired(now_us):
            self._specs = tuple(bound.spec(now_us) for bound in self.bounds)
            self._texts = tuple(spec.text for spec in self._specs)
            windows = [spec.windows for spec in self._specs if spec.windows]
            self._specs_from_us = max((window[1] for window in windows), default=0)
            self._specs_until_us = min((window[2] for window in windows), default=0)
        return self._specs

    def texts(self, now_us: int) -> tuple[str, ...]:
        """Return the :meth:`specs` as strings, one argument of a call for each limit."""
        if not self._specs or self.follows_calendar:
            self.specs(now_us)
        return self._texts

    def expired(self, now_us: int) -> bool:
        """Return whether *now_us* is outside the calendar windows for which :meth:`specs` was computed last."""
        return self.follows_calendar and not self._specs_from_us <= now_us < self._specs_until_us

    def diverted(self, overflowed: Sequence[int]) -> tuple[BoundLimit, ...]:
        """
        Return a copy of the bounds, with overflow counters for the values that could not be registered.

        Args:
            overflowed: For each item of :attr:`unregistered`, 1 if there was no room for its value, else 0.
        """
        bounds = list(self.bounds)
        for i, diverts in zip(self.unregistered, overflowed, strict=True):
            if diverts:
                bounds[i] = bounds[i].overflowing()
        return tuple(bounds)


class RefusedPlan(Plan):
    """
    The plan of a request that is refused before its limits are looked up.

    Args:
        subject: The ids of the project and of the token, empty if they are not known.
    """

    __slots__ = ("_subject",)

    def __init__(self, *, revision: int, ids: DecisionIds | None, subject: tuple[str, str]) -> None:
        super().__init__((), revision=revision, ids=ids)
        self._subject = subject

    @property
    def subject(self) -> tuple[str, str]:
        """The ids of the project and of the token."""
        return self._subject


def _restored(bounds: tuple[BoundLimit, ...], revision: int, fleet: int) -> Plan:
    """Return a new plan from what was pickled. Its permits are not leased here, so *fleet* is only shown."""
    return Plan(bounds, revision=revision, fleet=(lambda: fleet) if fleet else None)


NO_PLAN: Final = Plan(())
"""The plan of a request that is refused before its limits are looked up."""
