"""
Settle, cancel and end reservations of permits.

A reservation is charged with an estimated cost. It is then settled with the real cost or cancelled, once. Until it
ends, it holds slots of ``concurrency`` limits.

There is no I/O here. Most methods return a generator of steps (:data:`~enforcement.plan.commands.Steps`), which the
limiter that made the reservation runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import urandom
from typing import TYPE_CHECKING

from enforcement.failover.health import Health
from enforcement.model.lease_bounds import unused_max
from enforcement.model.limits import Limit
from enforcement.model.metered import BOUND
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import REMEMBERED_MS, Steps
from enforcement.plan.costs import REQUESTS, Costs
from enforcement.plan.decision import Decision
from enforcement.state.denial_cache import Denials
from enforcement.state.live_plan import LivePlan
from enforcement.state.settlement import correcting

if TYPE_CHECKING:
    from enforcement.plan.records import RecordKeys


class HeldReservation:
    """
    The charges and slots of one admitted request.

    Args:
        costs: The estimated cost.
        decision: The decision that admitted the request. It was made with *ident*, so that its reply has the mark of
            the window of each charge.
        ident: Id of the reservation in the store.

    Attributes:
        where: Where the store has its record. None: nowhere.
        life_seconds: How long its record stays open after it was prolonged last. 0: nothing is to be prolonged.
        settled_elsewhere: Whether an operator or another process had settled it before this one did, or it was lost.
    """

    where: RecordKeys | None = None
    life_seconds: float = 0.0
    settled_elsewhere = False
    _corrected = False
    _left = False
    _kept: Sequence[tuple[BoundLimit, int, int]] | None = None
    _slots: Sequence[tuple[BoundLimit, int]] | None = None

    def __init__(
        self, health: Health, denials: Denials, plan: LivePlan, costs: Costs, decision: Decision, ident: str
    ) -> None:
        self.decision = decision
        self.ident = ident
        self._health = health
        self._denials = denials
        self._plan = plan
        self._costs = costs

    @property
    def estimate(self) -> Costs:
        """The costs for which it was made."""
        return self._costs

    @property
    def id(self) -> str:
        """The id by which any process can settle it. Empty: the store has no record of it."""
        return ""

    @property
    def is_bound(self) -> bool:
        """Whether a policy of the request says that its estimate is the most that it may cost."""
        return any(rules.estimate == BOUND for rules in self._plan.metering or ())

    @property
    def concluded(self) -> bool:
        """Whether its charges are final, as it was settled or cancelled."""
        return self._corrected

    @property
    def left(self) -> bool:
        """Whether its slots were freed, or are being freed."""
        return self._left

    def settling(self, costs: Costs) -> Steps[None]:
        """
        Yield the commands that replace the estimated cost by the real cost, once.

        Args:
            costs: A number of requests, or permits by unit. A unit that is not included keeps its estimate. 0 is 0 of
                every unit.
        Raises:
            ValueError: As for the estimate, see :meth:`LivePlan.check <enforcement.state.live_plan.LivePlan.check>`.
        """
        return self._correcting(self._differences(costs))

    def concluding(self, costs: Costs | None, *, is_last_word: bool = True) -> Steps[None]:
        """
        Yield the commands that settle the reservation and free its slots.

        Args:
            costs: As for :meth:`settling`. None: the estimate is kept.
            is_last_word: Whether it is settled also if the store has recorded it as lost.
        Raises:
            ValueError: As :meth:`settling` does.
        """
        if costs is not None:
            yield from self.settling(costs)
        yield from self.leaving()

    def _differences(self, costs: Costs) -> list[tuple[BoundLimit, int, int]]:
        """Return for each limit the permits by which the real cost is higher, below 0 if it is lower, and its mark."""
        self._plan.check(costs)
        if costs == 0:
            return [(b, -cost, mark) for b, cost, mark in self._charged()]
        real = {REQUESTS: costs} if isinstance(costs, int) else costs
        return [(b, b.settled_cost(real, cost) - cost, mark) for b, cost, mark in self._charged()]

    def amending(self, deltas: Mapping[str, int]) -> Steps[None]:
        """
        Yield the commands that change the charges of the present windows by a difference, whether it fits or not, once.

        Args:
            deltas: Permits to add by unit, below 0 to give back. A counter that is full gets nothing back.
        Raises:
            ValueError: A number of permits breaks the rules for costs.
        """
        self._plan.check({unit: abs(delta) for unit, delta in deltas.items()})
        reply, rows = self.decision.reply, []
        for i, bound in reply.charged(self.decision.bounds):
            delta = deltas.get(bound.limit.unit, 0)
            if delta < 0 and bound.limit.leasable and self._plan.fleet:
                delta = -min(-delta, self._returnable(bound.limit, reply.remaining(i)))
            if bound.letter != "c":
                rows.append((bound, delta, reply.mark(i)))
        return self._correcting(rows)

    def _returnable(self, limit: Limit, remaining: int) -> int:
        """
        Return how many permits were used for certain. The others may be in leases that are still to be handed out.

        Who gives back more than was used would otherwise lift the counter above full.
        """
        fleet = self._plan.fleet() if self._plan.fleet else 1
        return max(0, limit.capacity - remaining - unused_max(limit, fleet))

    def charging_for(self, status: int) -> Steps[None]:
        """Yield the commands that give back, once, the permits of limits whose ``charge_on`` lacks this HTTP status."""
        classes = {f"{status // 100}xx", str(status)}
        rows = [(b, -cost, mark) for b, cost, mark in self._charged() if _spares(b, classes)]
        return self._correcting(rows)

    def cancelling(self) -> Steps[None]:
        """Yield the commands that give back what the reservation charged, unless it is settled, and free its slots."""
        yield from self._correcting([(b, -cost, mark) for b, cost, mark in self._charged()])
        yield from self.leaving()

    def finishing(self, status: int | None) -> Steps[None]:
        """
        Yield the commands that correct the charges by the HTTP status of the response, or give back everything for
        None.

        Args:
            status: HTTP status of the response. None if there was no response, which cancels the reservation.
        """
        return self.cancelling() if status is None else self.charging_for(status)

    def leaving(self) -> Steps[None]:
        """Yield the commands that free the slots of the reservation, once."""
        slots = () if self._left else self.slots()
        self._left = True
        if not slots:
            return
        fallback, now_us = self._health.fallback, self._health.now_us()
        rows = [
            (bound, -count, 0)
            for bound, count in slots
            # After an ambiguous decision the store may hold the slots too, because only its reply was lost.
            if not fallback.leave(self.ident, bound, count, now_us) or self.decision.ambiguous
        ]
        if rows:
            yield from correcting(self._health, rows, self.ident, once_for_ms=None)
        self._denials.freed([bound.key for bound, _ in slots])

    def slots(self) -> Sequence[tuple[BoundLimit, int]]:
        """Return the limits whose slots the reservation holds, each with the number of slots."""
        if not self._plan.has_slots:
            return ()
        if self._slots is None:
            self._slots = [(bound, cost) for bound, cost, _ in self._taken() if bound.letter == "c" and cost]
        return self._slots

    def renewing(self) -> list[tuple[BoundLimit, int]]:
        """
        Renew the slots that this process counts while the store is away, and return limit and number of the others.

        Returns:
            The other slots, which must be renewed in the store, each limit with the number of slots.
        """
        fallback, now_us, in_store = self._health.fallback, self._health.now_us(), []
        for bound, count in self.slots():
            if fallback.holds(self.ident, bound.key) or self._health.is_away(bound.key):
                fallback.renew(self.ident, bound, count, now_us)
            else:
                in_store.append((bound, count))
        return in_store

    def _taken(self) -> Sequence[tuple[BoundLimit, int, int]]:
        """Return each limit that admitted the request, slots included, with its cost and the mark of its window."""
        if self._kept is None:
            reply = self.decision.reply
            # The bounds of the decision and not those of the plan, because overflow counters may have been charged.
            charged = reply.charged(self.decision.bounds)
            self._kept = [(bound, bound.cost_of(self._costs), reply.mark(i)) for i, bound in charged]
        return self._kept

    def _charged(self) -> Sequence[tuple[BoundLimit, int, int]]:
        taken = self._kept or self._taken()
        return [row for row in taken if row[0].letter != "c"] if self._plan.has_slots else taken

    def _correcting(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> Steps[None]:
        if self._corrected:
            return
        self._corrected = True
        rows = [row for row in rows if row[1]]
        if not rows:
            return
        self._count(rows)
        yield from self._sending(rows)
        self._denials.forget([bound.key for bound, delta, _ in rows if delta < 0])

    def _sending(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> Steps[object]:
        return correcting(self._health, rows, self.ident, once_for_ms=REMEMBERED_MS)

    def _count(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> None:
        if self._plan.usage is not None:
            minute = self.decision.reply.minute
            for bound, delta, _ in rows:
                if bound.letter != "c":
                    self._plan.usage.amend(minute, bound.index, delta)


def _spares(bound: BoundLimit, classes: set[str]) -> bool:
    return bool(bound.limit.charge_on) and classes.isdisjoint(bound.limit.charge_on)


def new_ident() -> str:
    """Return a new random id for a reservation or a settlement."""
    return urandom(16).hex()
