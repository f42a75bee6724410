"""
Reserve permits with a record in the store, and settle them by their id from any process.

There is no I/O here. Flows are generators of steps, which both limiters run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from time import monotonic
from typing import Final

from enforcement.engine.asking import Asker
from enforcement.engine.engine import Engine
from enforcement.model.sizes import USUAL_RESERVATION_SHARE
from enforcement.plan.commands import Steps
from enforcement.plan.costs import Costs, check_costs, check_units, own_costs
from enforcement.plan.decision import Decision
from enforcement.plan.records import (
    About,
    Conclusion,
    RecordedRequest,
    RecordKeys,
    ReservationRecord,
    TooManyReservations,
    record_head,
    recorded,
    was_open,
)
from enforcement.reservations.recorded import RecordedReservation, UncertainReservation
from enforcement.state.live_plan import LivePlan
from enforcement.state.reservation import HeldReservation, new_ident
from enforcement.store import resp
from enforcement.store.errors import StoreError
from enforcement.usage.counts import TokenUsage

PROLONGED_SECONDS: Final = 60.0
"""How long a reservation outlives the process that prolongs it."""


class ReservationBook:
    """
    Makes and settles the reservations of one process that the store records.

    Args:
        engine: The parts that enforce limits in this process.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys = engine.keys
        self._health = engine.health
        self._denials = engine.denials
        self._asker = Asker(engine.health)

    def request(
        self, plan: LivePlan, costs: Costs, life_seconds: float | None, about: About
    ) -> RecordedRequest[LivePlan]:
        """
        Return a new request that is recorded when it is charged.

        Args:
            life_seconds: After this time it is lost. None: this process prolongs it until it is settled.
            about: See :class:`~enforcement.plan.records.RecordedRequest`.
        """
        instance, kept = self._engine.agent.identity.id, plan.record
        if kept is None or kept[0] != instance:
            kept = plan.record = instance, *self._common(plan, instance)
        _, tag, head, index, record = kept
        ident, life = new_ident(), life_seconds or PROLONGED_SECONDS
        where = RecordKeys(f"{tag}.{ident}", ident, index, record + ident)
        return RecordedRequest(plan, own_costs(costs), where, life_seconds=life, head=head, about=about)

    def _common(self, plan: LivePlan, instance: str) -> tuple[str, str, str, str]:
        """Return the hash tag of all records of a plan, how they begin, their index, and how their keys begin."""
        project, token = plan.subject
        tag = project if not plan.bounds or project in [bound.tag for bound in plan.bounds] else plan.bounds[0].tag
        head = {"project": project, "token": token, "instance": instance, "revision": plan.revision}
        where = RecordKeys.of(self._keys, tag, "")
        return (
            tag,
            record_head(head, self._engine.settings.reservation_share or USUAL_RESERVATION_SHARE),
            where.index,
            where.record,
        )

    def begin(self, request: RecordedRequest[LivePlan]) -> Decision | bytes | None:
        """
        Return the decision on a request if no call is needed, or the encoded command by which the store decides.

        Returns:
            None if one command is not enough, so that :meth:`deciding` must be run.
        Raises:
            ValueError: As in :meth:`deciding`.
        """
        plan, health = request.plan, self._health
        decision = self._engine.decider.decided_here(request)
        if decision is not None:
            return decision
        is_known = not plan.unregistered or monotonic() < plan.registered_until
        if health.fallback.owed or not is_known or (plan.spread and health.connector.one_slot_per_call):
            return None
        clock = health.clock is not None
        now_us = health.now_us() if plan.follows_calendar or clock else 0
        return request.encode(now_us, clock=clock, registers=False)

    def answered(self, request: RecordedRequest[LivePlan], came: object) -> object:
        """
        Return the decision that the store has made, by the reply to the command of :meth:`begin`.

        Args:
            came: The reply, or the StoreError in its place.
        Returns:
            If it has made none, the reply or the StoreError with which :meth:`deciding` must be run.
        """
        if isinstance(came, StoreError):
            return came
        try:
            decision = self._engine.decider.answer(request.plan, request.costs, True, request.ident, came)
        except StoreError as exc:
            return exc
        return came if decision is None else decision

    def deciding(self, request: RecordedRequest[LivePlan], came: object = None) -> Steps[Decision]:
        """
        Yield the commands that decide a request and record what they charge, and return the decision.

        While the store is away, this process decides, and nothing is recorded.

        Args:
            came: What :meth:`answered` has returned. None if no command was sent.
        Raises:
            ValueError: The costs are not valid, or limits in code would not count them.
        """
        decider = self._engine.decider
        decision = decider.decided_here(request) if came is None else None
        if decision is not None:
            return decision
        try:
            decision = yield from decider.deciding(request, came)
            if decision.ambiguous and not decision.allowed:
                # Nobody would settle what the store may have reserved for it.
                self._engine.slots.undo(request.ident, lambda: self.undoing(request.where.id))
            return decision
        except TooManyReservations as exc:
            return decider.refused(self._engine.planner.refusal(exc.reason, request.plan.subject))

    def lasting(self, plan: LivePlan, life_seconds: float) -> LivePlan:
        """Return a plan whose slots live as long as a reservation, or *plan* itself if it has none."""
        if not plan.has_slots:
            return plan
        seconds = math.ceil(life_seconds)
        bounds = [
            replace(bound, limit=replace(bound.limit, window_seconds=seconds)) if bound.letter == "c" else bound
            for bound in plan.bounds
        ]
        # A name of its own, as values of partitions are registered by the name of their plan.
        name = None if plan.name is None else (*plan.name, "lasting", seconds)
        return LivePlan(tuple(bounds), revision=plan.revision, usage=plan.usage, name=name, ids=plan.ids)

    def made(self, request: RecordedRequest[LivePlan], decision: Decision, *, prolongs: bool) -> HeldReservation:
        """
        Return the reservation of a request that was admitted.

        Args:
            prolongs: Whether this process prolongs it until it is settled.
        """
        arguments = self._health, self._denials, request.plan, request.costs, decision, request.ident
        life = PROLONGED_SECONDS if prolongs else 0.0
        if decision.source == "store":
            held_reservation: RecordedReservation | UncertainReservation = RecordedReservation(*arguments)
            held_reservation.life_seconds = life
        # A part of a cluster may have recorded it although another part could not be asked.
        elif decision.bounds and (decision.ambiguous or request.plan.parts is not None):
            held_reservation = UncertainReservation(*arguments)
        else:
            return HeldReservation(*arguments)
        held_reservation.where = request.where
        return held_reservation

    def settling(self, reservation_id: str, costs: Costs) -> Steps[bool]:
        """
        Yield the commands that settle a reservation of any process, and return whether it was open.

        Args:
            costs: A number of requests, or permits by unit. A unit that is not included keeps its estimate. 0 is 0 of
                every unit.
        Raises:
            ValueError: The id or the costs are not valid, or limits in code would not count them.
            StoreError: The store is unavailable, or the record cannot be read.
        """
        check_costs(costs)
        return self._concluding(reservation_id, costs)

    def releasing(self, reservation_id: str) -> Steps[bool]:
        """
        Yield the commands that give back what a reservation of any process has charged, see
        :meth:`~enforcement.plan.records.Conclusion.by_hand`, and return whether it was open. Raises as
        :meth:`settling` does.
        """
        return self._concluding(reservation_id, None)

    def undoing(self, reservation_id: str) -> Steps[bool]:
        """
        Yield the commands that give back all charges of a reservation whose request was never made, and return whether
        it was open. Raises as :meth:`settling` does.
        """
        return self._concluding(reservation_id, None, was_made=False)

    def _concluding(self, reservation_id: str, costs: Costs | None, *, was_made: bool = True) -> Steps[bool]:
        where = RecordKeys.from_id(self._keys, reservation_id)
        record = ReservationRecord.read((yield from self._asker.calling(resp.pack(recorded(where)))))
        if record is None:
            return False
        if costs is not None and not record.head.get("project"):  # limits in code
            check_units((charge.bound.limit for charge in record.charges), costs)
        conclusion = (Conclusion.by_hand if was_made else Conclusion.of)(record, costs)
        health = self._health
        command = conclusion.command(where, health.now_us(), health.clock and health.clock())
        was_there = was_open((yield from self._asker.calling(resp.pack(command))))
        if was_there:
            self._count(conclusion)
            self._denials.forget([charge.bound.key for charge in record.charges])
        return was_there

    def _count(self, conclusion: Conclusion) -> None:
        head, rows = conclusion.record.head, conclusion.charged()
        if not head.get("project"):  # limits in code are not reported
            return
        units = [(charge.bound.policy_id, charge.bound.limit.name, charge.bound.limit.unit) for charge, _ in rows]
        usage = TokenUsage(self._engine.usage, head["project"], head.get("token", ""), units)
        for index, (charge, delta) in enumerate(rows):
            if delta and charge.bound.letter != "c":
                usage.amend(conclusion.record.at_us // 60_000_000, index, delta)
