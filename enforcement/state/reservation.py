"""
Reservations of permits.

A reservation charges an estimate, which is settled with the real cost or cancelled, once. It holds slots meanwhile.
There is no I/O here. Each method returns a generator of steps, which the limiter that made the reservation runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from enforcement.failover.health import Health
from enforcement.model.keys import marker_beside
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit, Costs, check_costs
from enforcement.plan.commands import REMEMBERED_MS, Correction, Steps
from enforcement.plan.decision import Decision
from enforcement.state.denial_cache import Denials
from enforcement.state.live_plan import LivePlan
from enforcement.store import resp
from enforcement.store.errors import StoreError


class Reservation:
    """
    The charges and slots of one admission.

    Args:
        costs: The estimate.
        decision: The decision that allowed it, made with *ident*, so that its reply names the window of each charge.
        ident: Id of the reservation in the store.
    """

    def __init__(
        self, health: Health, denials: Denials, plan: LivePlan, costs: Costs, decision: Decision, ident: str
    ) -> None:
        self.decision = decision
        self.ident = ident
        self._health = health
        self._denials = denials
        self._plan = plan
        self._costs = costs
        self._corrected = False
        self._left = False

    def settling(self, costs: Costs) -> Steps:
        """
        Replace the estimate by the real cost, once. A unit that is left out keeps its estimate.

        Raises:
            ValueError: See :func:`~enforcement.plan.binding.check_costs`.
        """
        check_costs(costs)
        real = {"requests": costs} if isinstance(costs, int) else costs
        return self._correcting([(b, real.get(b.limit.unit, cost) - cost, mark) for b, cost, mark in self._charged()])

    def charging_for(self, status: int) -> Steps:
        """Give back what limits with ``charge_on`` do not charge for a response of this HTTP status."""
        classes = {f"{status // 100}xx", str(status)}
        rows = [(b, -cost, mark) for b, cost, mark in self._charged() if _spares(b, classes)]
        return self._correcting(rows)

    def cancelling(self) -> Steps:
        """Give everything back, including the slots."""
        yield from self._correcting([(b, -cost, mark) for b, cost, mark in self._charged()])
        yield from self.leaving()

    def finishing(self, status: int | None) -> Steps:
        """Correct the charges for a response of this HTTP status, or give everything back if there was none."""
        return self.cancelling() if status is None else self.charging_for(status)

    def leaving(self) -> Steps:
        """Free the slots, once."""
        slots = [] if self._left else self.slots()
        self._left = True
        if not slots:
            return
        fallback, now_us = self._health.fallback, self._health.now_us()
        rows = [
            (bound, -count, 0)
            for bound, count in slots
            # If the decision is ambiguous, the store may hold them too: its reply did not arrive.
            if not fallback.leave(self.ident, bound, count, now_us) or self.decision.ambiguous
        ]
        if rows:
            yield from correcting(self._health, rows, self.ident, once_for_ms=None)

    def slots(self) -> list[tuple[BoundLimit, int]]:
        """Return the limits whose slots it took, each with the number of slots."""
        return [(bound, cost) for bound, cost, _ in self._taken() if bound.letter == "c" and cost]

    def renewing(self) -> list[tuple[BoundLimit, int]]:
        """Renew the slots that only this process counts now, and return those that the store must renew."""
        fallback, now_us, theirs = self._health.fallback, self._health.now_us(), []
        for bound, count in self.slots():
            if fallback.holds(self.ident, bound.key) or self._health.is_away(bound.key):
                fallback.renew(self.ident, bound, count, now_us)
            else:
                theirs.append((bound, count))
        return theirs

    def _taken(self) -> Iterator[tuple[BoundLimit, int, int]]:
        """Yield each limit that was charged, with the cost and the mark of its window."""
        reply = self.decision.reply
        # Not the plan's bounds: the decision may have used overflow counters in place of some.
        for i, bound in reply.charged(self.decision.bounds):
            yield bound, bound.cost_of(self._costs), reply.mark(i)

    def _charged(self) -> list[tuple[BoundLimit, int, int]]:
        return [row for row in self._taken() if row[0].letter != "c"]

    def _correcting(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> Steps:
        if self._corrected:
            return
        self._corrected = True
        rows = [row for row in rows if row[1]]
        if not rows:
            return
        self._count(rows)
        yield from correcting(self._health, rows, self.ident, once_for_ms=REMEMBERED_MS)
        self._denials.forget()

    def _count(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> None:
        if self._plan.usage is not None:
            minute = self.decision.reply.minute
            for bound, delta, _ in rows:
                self._plan.usage.amend(minute, bound.index, delta)


def correcting(
    health: Health, rows: Sequence[tuple[BoundLimit, int, int]], ident: str, *, once_for_ms: int | None
) -> Steps:
    """
    Correct charges in the store. While it is away, correct them here and owe them to it.

    Args:
        rows: For each counter its bound, the permits to add and the mark of the charge.
        once_for_ms: How long the store remembers the id, so that sending the same correction twice changes nothing.
            None if sending it twice is harmless anyway.
    """
    now_us = health.now_us()
    for group in health.together(rows):
        owed = [(bound, mark, delta) for bound, delta, mark in group]
        if health.is_away(group[0][0].key):
            if once_for_ms is None:
                health.fallback.owe(ident, owed, once=False)
            else:
                for bound, delta, mark in group:
                    health.fallback.amend(bound, delta, mark, now_us)
            continue
        corrections = [Correction(b.key, b.spec(now_us), delta, mark) for b, delta, mark in group]
        marker, clock = marker_beside(corrections[0].key, ident), health.clock and health.clock()
        try:
            command = commands.settle(corrections, marker, clock, ident=ident, once_for_ms=once_for_ms)
            reply = yield resp.pack(command)
        except StoreError as exc:
            health.failed(exc)
            # The store may have executed it. Sending it again is harmless: it finds the marker, or slots already free.
            health.fallback.owe(ident, owed, once=once_for_ms is not None)
            health.wake()
        else:
            if reply == commands.NOT_RESTORED:
                health.fallback.owe(ident, owed, once=once_for_ms is not None)


def _spares(bound: BoundLimit, classes: set[str]) -> bool:
    return bool(bound.limit.charge_on) and classes.isdisjoint(bound.limit.charge_on)


def new_ident() -> str:
    """Return an id for a reservation."""
    return uuid.uuid4().hex


__all__ = ["Reservation", "correcting", "new_ident"]
