"""
Decide requests part by part: some by permits on lease, the others by the store.

On a cluster there is one call for each slot. Either all counters are charged or none. If the store denies, permits are
put back into their leases. If they have expired by then, the store decides these parts as well.

The counters of the project are asked before the global ones. They deny most often, and then nothing has to be undone.
If a later part denies, the charges of the earlier parts are returned under the id of the request, so that sending the
correction twice does no harm. If it cannot be sent, it is recorded and replayed later. If the node of a part is
unavailable, this process decides for that part alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from struct import pack
from time import monotonic
from typing import Final

from enforcement.engine.asking import NOT_ASKED, NOT_RESTORED, Asker, StoreAnswer
from enforcement.failover.health import Health
from enforcement.leases.manager import LeaseKeeper
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Steps
from enforcement.plan.reply import MARKED, PLAIN, Reply
from enforcement.plan.request import Request
from enforcement.state.lease import Permit
from enforcement.state.live_plan import LivePlan, Part, PartLeases
from enforcement.state.parts import parts_by_tag
from enforcement.state.reservation import new_ident
from enforcement.state.settlement import concluding, correcting
from enforcement.store.errors import StoreError
from enforcement.store.resp import numbers

UNDONE_MS: Final = 60_000
"""How long the store remembers the id of an undone charge. Short, because a saturated limit causes many of them."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """
    The decision on one part.

    Attributes:
        part: The part.
        request: The request with the counters that were used. Some may be overflow counters in place of the part's own.
        answer: The answer of the node. If it has no reply, this process decided, alone or by its lease.
        overflowed: For each unregistered value of the part, 1 if its overflow counter was used, 0 if its own was.
        reply: The reply of the node or of this process, with marks.
        reason: ``ok``, or why the part denies.
        permit: The permit that admits the part. None: there is none.
    """

    part: Part
    request: Request[LivePlan]
    answer: StoreAnswer
    overflowed: Sequence[int]
    reply: Reply
    reason: str
    permit: Permit[LivePlan] | None = None

    @property
    def by_store(self) -> bool:
        """Whether the node of the part has charged it, now or when it was leased, and this process did not decide."""
        return self.answer.reply is not None or self.permit is not None

    @property
    def passed(self) -> bool:
        """Whether no limit of the part denies the request."""
        return self.reason == "ok"

    @property
    def charged(self) -> bool:
        """Whether permits were to be charged and no limit of the part denied the request."""
        return self.request.charge and self.passed and self.permit is None

    def refunds(self) -> Iterator[tuple[BoundLimit, int, int]]:
        """Yield each limit that took permits or slots, the negative number of them, and the mark of its window."""
        for i, bound in self.reply.charged(self.request.plan.bounds):
            if cost := bound.cost_of(self.request.costs):
                yield bound, -cost, self.reply.mark(i)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The decision on all parts together.

    Attributes:
        reply: The replies of all parts, merged into one.
        reason: The most serious reason of the parts that deny. ``ok`` if none denies.
        by_store: Whether every part was decided by its node.
        overflowed: For each unregistered value of the plan, 1 if its overflow counter was used, 0 if its own was.
        errors: The errors of the calls that failed.
    """

    reply: Reply
    reason: str
    by_store: bool
    overflowed: Sequence[int]
    errors: Sequence[StoreError]


@dataclass(slots=True)
class Taken:
    """
    The permits that a request has taken for some parts of its plan.

    Attributes:
        permits: Each with its part.
        until: When the first of them expires, monotonic seconds. Each must count in the window in which the request is
            admitted.
        others: The part that the store has to decide. None: there are permits of all parts.
        command: The encoded command that decides the others. Empty if there is none, or if they need several.
    """

    permits: Sequence[tuple[Part, Permit[LivePlan]]]
    until: float
    others: Part | None
    command: bytes = b""

    def reply(self, plan: LivePlan, decided: Reply | None = None) -> Reply:
        """
        Return the reply about all limits of a plan, which the *others* allow or deny.

        Args:
            decided: The reply of the store about the others. None if there are none.
        """
        rows = [(part, permit.reply, permit.left) for part, permit in self.permits]
        if decided is None or self.others is None:
            return _joined(plan, True, max(permit.reply.now_us for _, permit in self.permits), rows)
        return _joined(plan, decided.passed, decided.now_us, [*rows, (self.others, decided, 0)])


class PartDecider:
    """
    Decides requests part by part.

    Args:
        asker: Asks the node of each part.
        health: Decides for a part whose node is unavailable.
        leases: Fills the leases of parts.
    """

    def __init__(self, asker: Asker, health: Health, leases: LeaseKeeper) -> None:
        self._asker = asker
        self._health = health
        self._leases = leases
        self._parts_calls = health.connector.one_slot_per_call

    def taking(self, plan: LivePlan, leases: PartLeases, cost: int) -> Taken | None:
        """
        Take permits of as many parts as have some, and return them, or None if there are none.

        Args:
            cost: Permits of each limit that is leased, at least 1.
        """
        permits, until, lacking = [], inf, 0
        for bit, part, lease in leases.parts:
            permit = lease.permit(cost)
            if permit is None:
                lacking |= bit
            else:
                permits.append((part, permit))
                until = min(until, permit.until)
            if (permit is None or permit.left <= lease.low) and not lease.asking and lease.steady():
                part.plan.registered_until = plan.registered_until
                self._leases.ask(lease)
        return Taken(permits, until, leases.others(lacking)) if permits else None

    def put_back(self, taken: Taken) -> None:
        """Put back the permits of a request that the other parts have denied."""
        for _, permit in taken.permits:
            self._leases.put_back(permit)

    def read(self, plan: LivePlan, taken: Taken, raw: object) -> Reply | None:
        """
        Return the reply about all limits of a plan, by the raw reply to the call that decides those without a permit.

        Args:
            raw: The reply to a call with or without :data:`~enforcement.state.parts.MARKS`.

        Returns:
            None if that is not enough, so that :meth:`asking` must be run with the raw reply.
        Raises:
            StoreError: The raw reply has the wrong format.
        """
        found, others = numbers(raw), taken.others
        assert others is not None
        width = MARKED if len(found) != 2 + PLAIN * len(others.indexes) else PLAIN
        if len(found) != 2 + width * len(others.indexes) or found[0] < 0 or monotonic() >= taken.until:
            return None
        reply = Reply(found, width)
        others.plan.heard(reply)
        if not reply.passed:
            self.put_back(taken)
        return taken.reply(plan, reply)

    def asking(
        self, request: Request[LivePlan], *, registers: bool, taken: Taken | None = None, result: object = None
    ) -> Steps[Verdict]:
        """
        Yield the commands that decide a request part by part and undo it after a denial, and return a :class:`Verdict`.

        A part is charged only if all parts before it admit the request.

        Args:
            registers: Whether the store must first register the attribute values that are new to it.
            taken: The permits that the request has taken. None: it has none.
            result: The reply to the command that decides the first part, or the StoreError that it raised. None if it
                was not sent.
        """
        plan = request.plan
        ident = request.ident or new_ident()
        outcomes: list[_Outcome] = []
        if taken is not None and taken.others is not None:
            result = _marked(result, len(taken.others.indexes))
        for part in self._asked(plan, taken):
            # After a denial the other parts are only read, so that the reply still shows what all limits have left.
            charge = request.charge and all(outcome.passed for outcome in outcomes)
            of_part = request.of_part(part.plan, ident, charge=charge)
            outcomes.append((yield from self._asking(part, of_part, registers=registers, result=result)))
            result = None
        if taken is not None:
            yield from self._with_permits(request, ident, taken, outcomes)
        errors = [outcome.answer.error for outcome in outcomes if outcome.answer.error is not None]
        if not all(outcome.passed for outcome in outcomes):
            outcomes = yield from self._undoing(outcomes)
        reasons = [outcome.reason for outcome in outcomes if not outcome.passed]
        by_store = all(outcome.by_store for outcome in outcomes)
        overflowed = _overflowed(plan, outcomes) if registers else ()
        return Verdict(_merged(plan, outcomes), max(reasons, key=_weight, default="ok"), by_store, overflowed, errors)

    def _asked(self, plan: LivePlan, taken: Taken | None) -> Sequence[Part]:
        """Return the parts of a plan that the store has to decide."""
        others = None if taken is None else taken.others
        if others is None:
            return plan.parts or parts_by_tag(plan)
        return parts_by_tag(others.plan, others.indexes) if self._parts_calls else (others,)

    def _with_permits(
        self, request: Request[LivePlan], ident: str, taken: Taken, outcomes: list[_Outcome]
    ) -> Steps[None]:
        """Add the outcomes of the parts with permits, which the store decides if the permits have expired meanwhile."""
        if monotonic() < taken.until:
            for part, permit in taken.permits:
                of_part = request.of_part(part.plan, ident, charge=True)
                outcomes.append(_Outcome(part, of_part, NOT_ASKED, (), permit.reply, "ok", permit))
            return
        self.put_back(taken)
        for part, _ in taken.permits:
            of_part = request.of_part(part.plan, ident, charge=all(outcome.passed for outcome in outcomes))
            outcomes.append((yield from self._asking(part, of_part, registers=False)))

    def _asking(
        self, part: Part, request: Request[LivePlan], *, registers: bool, result: object = None
    ) -> Steps[_Outcome]:
        """
        Yield the commands that decide one part by its node, or decide it here if that is away, and return the outcome.

        Returns:
            An :class:`_Outcome`.
        """
        health, plan = self._health, part.plan
        registers = registers and request.charge and bool(plan.unregistered)
        answer = NOT_RESTORED
        if not plan.lies_in(health.lost_counters.sets):
            answer = yield from self._asker.asking(request, registers=registers, result=result)
        overflowed = answer.overflowed or [0] * len(plan.unregistered)
        if answer.reply is not None:
            used = request.over(_diverted(plan, overflowed))
            used.plan.heard(answer.reply)
            return _Outcome(part, used, answer, overflowed, answer.reply, answer.reply.reason(used.plan.bounds))
        # The node that knows which values are registered is unavailable, so this process counts them by itself.
        if registers:
            overflowed = health.fallback.overflowed(plan)
        used = request.over(_diverted(plan, overflowed))
        known = health.replies.about(used.plan)
        return _Outcome(part, used, answer, overflowed, *health.decide_alone(used, known, answer.error))

    def _undoing(self, outcomes: Sequence[_Outcome]) -> Steps[list[_Outcome]]:
        """
        Yield the commands that give back what the parts have charged, and return the outcomes of all parts after that.

        Returns:
            The outcomes of all parts after that. Those that were undone are asked again without a charge.
        """
        after = []
        for outcome in outcomes:
            if outcome.permit is not None:
                self._leases.put_back(outcome.permit)
            elif outcome.charged:
                rows, request = list(outcome.refunds()), outcome.request
                if outcome.by_store and request.where is not None:
                    yield from concluding(self._health, rows, request.where, request.plan.bounds)
                elif outcome.by_store:
                    yield from correcting(self._health, rows, request.ident, once_for_ms=UNDONE_MS)
                else:
                    self._undo_here(rows, outcome)
                part = Part(request.plan, outcome.part.indexes)
                peek = request.of_part(request.plan, request.ident, charge=False)
                peeked = yield from self._asking(part, peek, registers=False)
                outcome = replace(peeked, part=outcome.part, overflowed=outcome.overflowed)
            after.append(outcome)
        return after

    def _undo_here(self, rows: Sequence[tuple[BoundLimit, int, int]], outcome: _Outcome) -> None:
        """
        Undo the charges that this process made for a part, and add the corrections to the journal.

        If the call to the node may have been executed, the slots that it may have taken there are freed as well.
        """
        fallback, ident, now_us = self._health.fallback, outcome.request.ident, self._health.now_us()
        ambiguous = outcome.answer.error is not None and outcome.answer.error.executed
        for bound, delta, mark in rows:
            if bound.letter == "c":
                fallback.leave(ident, bound, -delta, now_us)
                if ambiguous:
                    fallback.owe(ident, [(bound, 0, delta)], once=False)
            else:
                fallback.amend(bound, delta, mark, now_us)


def _diverted(plan: LivePlan, overflowed: Sequence[int]) -> LivePlan:
    # The part is kept in its plan, so it must not change. Another request may find room for the same values.
    return LivePlan(plan.diverted(overflowed)) if any(overflowed) else plan


def _overflowed(plan: LivePlan, outcomes: Sequence[_Outcome]) -> list[int]:
    """Return for each unregistered value of the whole plan 1 if its overflow counter was used, or 0."""
    found = {
        outcome.part.indexes[i]: diverts
        for outcome in outcomes
        for i, diverts in zip(outcome.part.plan.unregistered, outcome.overflowed, strict=True)
    }
    return [found[i] for i in plan.unregistered]


def _merged(plan: LivePlan, outcomes: Sequence[_Outcome]) -> Reply:
    """Return the replies of all parts as one new reply, in the order of the plan's bounds."""
    now_us = max(outcome.reply.now_us for outcome in outcomes)
    rows = [(outcome.part, outcome.reply, outcome.permit.left if outcome.permit else 0) for outcome in outcomes]
    return _joined(plan, all(outcome.passed for outcome in outcomes), now_us, rows)


def _joined(plan: LivePlan, passed: bool, now_us: int, parts: Iterable[tuple[Part, Reply, int]]) -> Reply:
    """
    Return one new reply from the replies about all parts, in the order of the plan's bounds.

    Args:
        parts: Each with the reply about it, and the permits on lease that its limits have left as well.
    """
    joined = [int(passed), now_us] + [0] * (MARKED * len(plan.bounds))
    for part, reply, held in parts:
        found, width, at = reply.numbers, reply.width, 2
        for index in part.indexes:
            place = 2 + MARKED * index
            joined[place : place + width] = found[at : at + width]
            joined[place] += held
            at += width
    return Reply(joined, MARKED)


def _marked(raw: object, count: int) -> object:
    """
    Return a raw reply about so many fixed windows with their marks, which are their ends, or another one as it is.

    A charge is undone in the window that its mark names.
    """
    if type(raw) is not bytes or len(raw) != 8 * (2 + PLAIN * count):
        return raw
    found = numbers(raw)
    reply, marked = Reply(found), list(found[:2])
    for i in range(count):
        marked += [*reply.row(i), reply.now_us + reply.reset(i) if reply.reset(i) >= 0 else 0]
    return pack(f">{len(marked)}q", *marked)


def _weight(reason: str) -> int:
    """
    Return the severity of a reason. The request gets the most severe one.

    If one part can never admit the request, no wait helps. If one part cannot be decided without its node, the waiting
    time of a limited part says nothing.
    """
    return ("ok", "limited", "degraded_denied", "cost_exceeds_capacity").index(reason)
