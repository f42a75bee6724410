"""Compile the counters of one request into their keys and the numbers that the store's functions need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from enforcement.model.algorithms import Spec
from enforcement.model.keys import dirty_beside
from enforcement.plan.binding import BoundLimit


class Plan:
    """
    The bounds of one request.

    Apart from what it works out once and keeps, it never changes. What a process knows about the counters, such as a
    lease or a remembered denial, stands in :class:`~enforcement.state.live_plan.LivePlan`.

    Attributes:
        bounds: In the order of the call.
        keys: Of the counters, in the same order.
        touches: The keys of a call: the counters, then the sets that name those which changed.
        revision: The published revision that it obeys; 0 for limits in code.
        fleet: Returns how many processes share its limits; None: no permits are taken ahead.
        enforces: Whether a limit may deny the request.
        has_shadows: Whether one is a shadow, which may deny without the request being denied.
        has_slots: Whether one is a concurrency limit, which must be admitted, not hit.
        has_charge_on: Whether one is charged by the status of the response.
        spread: Whether its counters have several hash tags, which on a cluster no single call reaches.
        follows_calendar: Whether its commands hold boundaries of a calendar, and so expire.
        ones: Index and cost of each bound for a request that costs 1.
        unregistered: Indices of the bounds whose values may have no counter yet.
        overflows: Whether one is bound to an overflow counter.
        header_cache: What the header fields of all its decisions have in common; :mod:`enforcement.plan.headers` alone
            reads and sets it.
    """

    __slots__ = (
        "_specs",
        "_specs_from_us",
        "_specs_until_us",
        "_texts",
        "bounds",
        "enforces",
        "fleet",
        "follows_calendar",
        "has_charge_on",
        "has_shadows",
        "has_slots",
        "header_cache",
        "keys",
        "ones",
        "overflows",
        "revision",
        "spread",
        "touches",
        "unregistered",
    )

    def __init__(
        self, bounds: tuple[BoundLimit, ...], *, revision: int = 0, fleet: Callable[[], int] | None = None
    ) -> None:
        self.bounds = bounds
        self.keys = [bound.key for bound in bounds]
        self.touches = [*self.keys, *dict.fromkeys(dirty_beside(bound.key) for bound in bounds if bound.durable)]
        self.revision = revision
        self.fleet = fleet
        self.enforces = any(not bound.limit.shadow for bound in bounds)
        self.has_shadows = any(bound.limit.shadow for bound in bounds)
        self.has_slots = any(bound.limit.algorithm == "concurrency" for bound in bounds)
        self.has_charge_on = any(bound.limit.charge_on for bound in bounds)
        self.spread = len({bound.tag for bound in bounds}) > 1
        self.follows_calendar = any(bound.limit.calendar not in (None, "lifetime") for bound in bounds)
        self.ones = tuple((bound.index, bound.cost_of(1)) for bound in bounds)
        self.unregistered = tuple(i for i, bound in enumerate(bounds) if bound.census is not None)
        self.overflows = any(bound.overflow for bound in bounds)
        self.header_cache: Any = None
        self._specs: tuple[Spec, ...] = ()
        self._texts: tuple[str, ...] = ()
        self._specs_from_us = self._specs_until_us = 0

    @property
    def leasable(self) -> bool:
        """Whether permits may be taken ahead. Every limit has to be leased: a strict one needs the store anyway."""
        return self.fleet is not None and bool(self.bounds) and all(bound.limit.leasable for bound in self.bounds)

    @property
    def durable_sets(self) -> list[str]:
        """The sets that name which of its durable counters changed."""
        return self.touches[len(self.keys) :]

    def lies_in(self, sets: frozenset[str]) -> bool:
        """Return whether *sets* has the set of changed counters of one of its durable counters."""
        return not sets.isdisjoint(self.touches)

    def specs(self, now_us: int) -> tuple[Spec, ...]:
        """Return what the functions have to know of each bound, with the calendar windows around *now_us*."""
        if not self._specs or self.expired(now_us):
            self._specs = tuple(bound.spec(now_us) for bound in self.bounds)
            self._texts = tuple(spec.text for spec in self._specs)
            windows = [spec.b for spec in self._specs if spec.letter == "f" and spec.b]
            self._specs_from_us = max((window[1] for window in windows), default=0)
            self._specs_until_us = min((window[2] for window in windows), default=0)
        return self._specs

    def texts(self, now_us: int) -> tuple[str, ...]:
        """Return :meth:`specs` as calls spell them."""
        self.specs(now_us)
        return self._texts

    def expired(self, now_us: int) -> bool:
        """Return whether *now_us* lies outside the calendar windows of the specs that were worked out last."""
        return self.follows_calendar and not self._specs_from_us <= now_us < self._specs_until_us

    def diverted(self, overflowed: Sequence[int]) -> tuple[BoundLimit, ...]:
        """
        Return the bounds, some of them to overflow counters.

        Args:
            overflowed: For each of :attr:`unregistered` 1 if its value shares the overflow counter, or 0.
        """
        bounds = list(self.bounds)
        for i, diverts in zip(self.unregistered, overflowed, strict=True):
            if diverts:
                bounds[i] = bounds[i].overflowing()
        return tuple(bounds)


NO_PLAN: Final = Plan(())
"""Of a request that is refused whatever its limits are."""


__all__ = ["NO_PLAN", "Plan"]
