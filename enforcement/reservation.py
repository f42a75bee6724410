"""
A reservation: permits charged on an estimate, settled with the real cost or cancelled, once; and slots held meanwhile.

No I/O: each verb is a generator of steps, driven by whichever limiter made the reservation.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement import protocol
from enforcement.decision import Decision
from enforcement.keys import marker_beside
from enforcement.logs import Seldom
from enforcement.place import Pipe
from enforcement.plans import Bound, Costs, Plan, check_costs
from enforcement.protocol import Correction, StoreTrouble

if TYPE_CHECKING:
    from enforcement.engine import Engine, Steps

logger = logging.getLogger("sluicegate.slots")

REMEMBERED_MS: Final = 3_600_000
"""How long the store remembers that a reservation was settled."""


class Reservation:
    """
    What one admission charged.

    Args:
        costs: The estimate.
        decision: The admission; made with *ident*, so its reply names the window of each charge.
    """

    def __init__(self, engine: Engine, plan: Plan, costs: Costs, decision: Decision, ident: str) -> None:
        self.decision = decision
        self.ident = ident
        self._engine = engine
        self._plan = plan
        self._costs = costs
        self._corrected = False
        self._left = False

    def settling(self, costs: Costs) -> Steps:
        """
        Steps that replace the estimate by the real cost, once; a unit left out keeps its estimate.

        Raises:
            ValueError: See :func:`~enforcement.plans.check_costs`.
        """
        check_costs(costs)
        real = {"requests": costs} if isinstance(costs, int) else costs
        return self._correcting([(b, real.get(b.limit.unit, cost) - cost, mark) for b, cost, mark in self._charged()])

    def charging_for(self, status: int) -> Steps:
        """Steps that give back what limits with ``charge_on`` do not charge for an answer of this HTTP status."""
        classes = {f"{status // 100}xx", str(status)}
        rows = [(b, -cost, mark) for b, cost, mark in self._charged() if _spares(b, classes)]
        return self._correcting(rows)

    def cancelling(self) -> Steps:
        """Steps that give everything back, slots included."""
        yield from self._correcting([(b, -cost, mark) for b, cost, mark in self._charged()])
        yield from self.leaving()

    def leaving(self) -> Steps:
        """Steps that free the slots."""
        slots = [] if self._left else self.slots()
        self._left = True
        if not slots:
            return
        fallback, now_us = self._engine.fallback, self._engine.now_us()
        rows = [
            (bound, -count, 0)
            for bound, count in slots
            # A store that was asked in vain may have given them, too, and tell nobody.
            if not fallback.leave(self.ident, bound, count, now_us) or self.decision.ambiguous
        ]
        if rows:
            yield from correcting(self._engine, rows, self.ident, once_for_ms=None)

    def slots(self) -> list[tuple[Bound, int]]:
        """Return the slots that it took: each limit and how many."""
        return [(bound, cost) for bound, cost, _ in self._taken() if bound.letter == "c" and cost]

    def renewing(self) -> list[tuple[Bound, int]]:
        """Prolong the slots that this process gave alone, and return those that the store has to prolong."""
        fallback, now_us, theirs = self._engine.fallback, self._engine.now_us(), []
        for bound, count in self.slots():
            if fallback.holds(self.ident, bound.key):
                fallback.renew(self.ident, bound, count, now_us)
            elif not self._engine.is_away(bound.key):
                theirs.append((bound, count))
        return theirs

    def _taken(self) -> Iterator[tuple[Bound, int, int]]:
        """Give each limit that was charged, with the cost and the mark of its window."""
        reply = self.decision.reply
        for i, bound in enumerate(self.decision.bounds):  # of which some may be overflow counters, unlike the plan's
            wait, mark = reply[4 + 5 * i], reply[6 + 5 * i]
            if wait == 0:
                yield bound, bound.cost_of(self._costs), mark

    def _charged(self) -> list[tuple[Bound, int, int]]:
        return [row for row in self._taken() if row[0].letter != "c"]

    def _correcting(self, rows: Sequence[tuple[Bound, int, int]]) -> Steps:
        if self._corrected:
            return
        self._corrected = True
        rows = [row for row in rows if row[1]]
        if not rows:
            return
        self._count(rows)
        yield from correcting(self._engine, rows, self.ident, once_for_ms=REMEMBERED_MS)
        self._engine.denials.forget()

    def _count(self, rows: Sequence[tuple[Bound, int, int]]) -> None:
        if self._plan.usage is not None:
            minute = self.decision.reply[1] // 60_000_000
            for bound, delta, _ in rows:
                self._plan.usage.amend(minute, bound.index, delta)


def correcting(engine: Engine, rows: Sequence[tuple[Bound, int, int]], ident: str, *, once_for_ms: int | None) -> Steps:
    """
    Steps that correct charges: in the store, or here and later there while it is away.

    Args:
        rows: For each counter its bound, the permits to add and the mark of the charge.
        once_for_ms: How long the store remembers the id, so that a second sending changes nothing; None: where that is
            harmless by itself.
    """
    now_us = engine.now_us()
    for group in engine.together(rows):
        owed = [(bound, mark, delta) for bound, delta, mark in group]
        if engine.is_away(group[0][0].key):
            if once_for_ms is None:
                engine.fallback.owe(ident, owed, once=False)
            else:
                for bound, delta, mark in group:
                    engine.fallback.amend(bound, delta, mark, now_us)
            continue
        corrections = [Correction(b.key, b.spec(now_us), delta, mark) for b, delta, mark in group]
        marker, clock = marker_beside(corrections[0].key, ident), engine.clock and engine.clock()
        try:
            command = protocol.settle(corrections, marker, clock, ident=ident, once_for_ms=once_for_ms)
            reply = yield protocol.pack(command)
        except StoreTrouble as exc:
            engine.failed(exc)
            # It may have been executed; sending it again is harmless, for the marker is there or slots are freed.
            engine.fallback.owe(ident, owed, once=once_for_ms is not None)
            engine.agent.wake()
        else:
            if reply == protocol.NOT_RESTORED:
                engine.fallback.owe(ident, owed, once=once_for_ms is not None)


def _spares(bound: Bound, classes: set[str]) -> bool:
    return bool(bound.limit.charge_on) and classes.isdisjoint(bound.limit.charge_on)


def new_ident() -> str:
    """Return an id for a reservation."""
    return uuid.uuid4().hex


class SlotKeeper:
    """
    Knows the slots of all open reservations of a process, and renews each three times a lifetime, in one thread.

    Args:
        renews: Whether it does; a test's clock stands still, and so do its slots.
    """

    def __init__(self, pipe: Pipe, *, renews: bool = True) -> None:
        self._pipe = pipe
        self._renews = renews
        self._open: dict[str, tuple[float, float, Reservation]] = {}  # id -> next renewal, interval, reservation
        self._held: dict[str, dict[str, int]] = {}  # key -> id -> slots
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._say = Seldom(logger)

    def keep(self, reservation: Reservation) -> None:
        """Keep the slots of a reservation until it is dropped."""
        slots = reservation.slots()
        if not slots:
            return
        interval = min(bound.limit.window_seconds or 1 for bound, _ in slots) / 3
        with self._wake:
            for bound, count in slots:
                self._held.setdefault(bound.key, {})[reservation.ident] = count
            self._open[reservation.ident] = monotonic() + interval, interval, reservation
            if not self._renews:
                return
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sluicegate-slots", daemon=True)
                self._thread.start()
            self._wake.notify()

    def drop(self, reservation: Reservation) -> None:
        """Keep them no longer."""
        with self._wake:
            if self._open.pop(reservation.ident, None) is None:
                return
            for bound, _ in reservation.slots():
                of_key = self._held[bound.key]
                del of_key[reservation.ident]
                if not of_key:
                    del self._held[bound.key]

    def held(self, key: str) -> dict[str, int]:
        """Return the slots of one counter that open reservations hold: how many under each id."""
        with self._wake:
            return dict(self._held.get(key, ()))

    def _run(self) -> None:
        while True:
            with self._wake:
                due = min((row[0] for row in list(self._open.values())), default=monotonic() + 60)
                self._wake.wait(max(0.0, due - monotonic()))
                if not self._open:
                    self._thread = None  # nobody holds slots: the next one starts a thread anew
                    return
            for reservation in self._due():
                self._renew(reservation)

    def _due(self) -> list[Reservation]:
        """Return what is to be renewed now, and set the time of its next renewal."""
        now, due = monotonic(), []
        with self._wake:
            for ident, (at, interval, reservation) in self._open.items():
                if at <= now:
                    self._open[ident] = now + interval, interval, reservation
                    due.append(reservation)
        return due

    def _renew(self, reservation: Reservation) -> None:
        slots = reservation.renewing()
        try:
            renewed = sum(self._pipe.call(command) for command in _renewals(slots, reservation.ident))
        except StoreTrouble as exc:
            self._say.warning(exc.cause, "Slots were not renewed (%s).", exc.cause)
        else:
            if renewed < sum(count for _, count in slots):
                self._say.warning("lost", "Slots were lost: they outlived their lifetime without a renewal.")


def _renewals(slots: Sequence[tuple[Bound, int]], ident: str) -> Iterator[bytes]:
    """Give the commands that renew slots: one for each hash tag, for a cluster takes no other."""
    by_scope: dict[str, list[tuple[Bound, int]]] = {}
    for bound, count in slots:
        by_scope.setdefault(bound.key[: bound.key.index("}")], []).append((bound, count))
    for some in by_scope.values():
        yield protocol.pack(protocol.renew(some, ident, None))


__all__ = ["Reservation", "SlotKeeper", "correcting", "new_ident"]
