"""
Decide requests whose counters lie in several slots of a cluster.

There is one call for each slot. Either all counters are charged or none.

The counters of the project are asked before the global ones. They deny most often, and then nothing has to be undone.
If a later part denies, the charges of the earlier parts are returned under the id of the request, so that sending the
correction twice does no harm. If it cannot be sent, it is recorded and replayed later. If the node of a part is
unavailable, this process decides for that part alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from enforcement.engine.asking import NOT_RESTORED, Answer, Asker
from enforcement.failover.health import Health
from enforcement.model.keys import together
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Steps
from enforcement.plan.reply import MARKED, Reply
from enforcement.plan.request import Request
from enforcement.state.live_plan import LivePlan
from enforcement.state.reservation import new_ident
from enforcement.state.settlement import concluding, correcting
from enforcement.store.errors import StoreError

UNDONE_MS: Final = 60_000
"""How long the store remembers the id of an undone charge. Short, because a saturated limit causes many of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """
    The bounds of a plan that lie in one slot.

    Attributes:
        plan: A plan of these bounds.
        indexes: For each of them its index among all bounds of the whole plan.
    """

    plan: LivePlan
    indexes: tuple[int, ...]


def parts_of(plan: LivePlan) -> tuple[Part, ...]:
    """
    Return a plan split into parts of one hash tag each, in the order in which they are asked, the global part last.
    """
    bounds = plan.bounds
    by_tag = together(range(len(bounds)), lambda i: bounds[i].tag)
    ordered = sorted(by_tag, key=lambda indexes: bounds[indexes[0]].scope == "global")
    return tuple(Part(LivePlan(tuple(bounds[i] for i in indexes)), tuple(indexes)) for indexes in ordered)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """
    The decision on one part.

    Attributes:
        part: The part.
        request: The request with the counters that were used. Some may be overflow counters in place of the part's own.
        answer: The answer of the node. If it has no reply, this process decided.
        overflowed: For each unregistered value of the part, 1 if its overflow counter was used, 0 if its own was.
        reply: The reply of the node or of this process, with marks.
        reason: ``ok``, or why the part denies.
    """

    part: Part
    request: Request[LivePlan]
    answer: Answer
    overflowed: Sequence[int]
    reply: Reply
    reason: str

    @property
    def by_store(self) -> bool:
        """Whether the node of the part decided, and not this process."""
        return self.answer.reply is not None

    @property
    def passed(self) -> bool:
        """Whether no limit of the part denies the request."""
        return self.reply.passed

    @property
    def charged(self) -> bool:
        """Whether permits were to be charged and no limit of the part denied the request."""
        return self.request.charge and self.reply.passed

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


class CrossSlot:
    """
    Decides requests whose counters lie in several slots of a cluster.

    Args:
        asker: Asks the node of each part.
        health: Decides for a part whose node is unavailable.
    """

    def __init__(self, asker: Asker, health: Health) -> None:
        self._asker = asker
        self._health = health

    def asking(self, request: Request[LivePlan], *, registers: bool) -> Steps:
        """
        Yield the commands that decide a request part by part and undo it after a denial, and return a :class:`Verdict`.

        A part is charged only if all parts before it admit the request.

        Args:
            registers: Whether the store must first register the attribute values that are new to it.
        """
        plan = request.plan
        if plan.parts is None:
            plan.parts = parts_of(plan)
        ident = request.ident or new_ident()
        outcomes: list[_Outcome] = []
        for part in plan.parts:
            # After a denial the other parts are only read, so that the reply still shows what all limits have left.
            charge = request.charge and all(outcome.passed for outcome in outcomes)
            of_part = request.of_part(part.plan, ident, charge=charge)
            outcomes.append((yield from self._asking(part, of_part, registers=registers)))
        errors = [outcome.answer.error for outcome in outcomes if outcome.answer.error is not None]
        if not all(outcome.passed for outcome in outcomes):
            outcomes = yield from self._undoing(outcomes)
        reasons = [outcome.reason for outcome in outcomes if not outcome.passed]
        by_store = all(outcome.by_store for outcome in outcomes)
        overflowed = _overflowed(plan, outcomes) if registers else ()
        return Verdict(_merged(plan, outcomes), max(reasons, key=_weight, default="ok"), by_store, overflowed, errors)

    def _asking(self, part: Part, request: Request[LivePlan], *, registers: bool) -> Steps:
        """
        Yield the commands that decide one part by its node, or decide it here if that is away, and return the outcome.

        Returns:
            An :class:`_Outcome`.
        """
        health, plan = self._health, part.plan
        registers = registers and request.charge and bool(plan.unregistered)
        answer = NOT_RESTORED
        if not plan.lies_in(health.lost_counters.sets):
            answer = yield from self._asker.asking(request, registers=registers)
        overflowed = answer.overflowed or [0] * len(plan.unregistered)
        if answer.reply is not None:
            used = request.over(_diverted(plan, overflowed))
            used.plan.last = answer.reply
            return _Outcome(part, used, answer, overflowed, answer.reply, answer.reply.reason(used.plan.bounds))
        # The node that knows which values are registered is unavailable, so this process counts them by itself.
        if registers:
            overflowed = health.fallback.overflowed(plan)
        used = request.over(_diverted(plan, overflowed))
        known = health.replies.about(used.plan)
        return _Outcome(part, used, answer, overflowed, *health.decide_alone(used, known, answer.error))

    def _undoing(self, outcomes: Sequence[_Outcome]) -> Steps:
        """
        Yield the commands that give back what the parts have charged, and return the outcomes of all parts after that.

        Returns:
            The outcomes of all parts after that. Those that were undone are asked again without a charge.
        """
        after = []
        for outcome in outcomes:
            if outcome.charged:
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
    numbers = [int(all(outcome.passed for outcome in outcomes)), max(outcome.reply.now_us for outcome in outcomes)]
    rows = {
        index: [*outcome.reply.row(i), outcome.reply.mark(i)]
        for outcome in outcomes
        for i, index in enumerate(outcome.part.indexes)
    }
    for index in range(len(plan.bounds)):
        numbers += rows[index]
    return Reply(numbers, MARKED)


def _weight(reason: str) -> int:
    """
    Return the rank of a reason, higher the more serious it is, as the most serious one becomes that of the request.

    If one part can never admit the request, no wait helps. If one part cannot be decided without its node, the waiting
    time of a limited part says nothing.
    """
    return ("ok", "limited", "degraded_denied", "cost_exceeds_capacity").index(reason)
