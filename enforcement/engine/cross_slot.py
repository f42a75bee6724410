"""
Deciding on a cluster a request whose counters lie in several slots: one call for each, all charged or none.

The project's part comes first: it denies most often, and then nothing is to be undone. What a part has charged when a
later one denies is given back under the id of the request, so that sending it twice does no harm; could it not be sent,
it is owed. A part whose node is away is decided by this process alone; the others are not.
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
from enforcement.state.reservation import correcting, new_ident
from enforcement.store.errors import StoreError

UNDONE_MS: Final = 60_000
"""How long an id is remembered whose charge was given back. Under saturation there are many of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """The bounds of a plan that lie in one slot, and their places among all."""

    plan: LivePlan
    places: tuple[int, ...]


def parts_of(plan: LivePlan) -> tuple[Part, ...]:
    """Return the parts of a plan in the order in which they are asked: what is global comes last."""
    bounds = plan.bounds
    of_one_tag = together(range(len(bounds)), lambda place: bounds[place].tag)
    ordered = sorted(of_one_tag, key=lambda places: bounds[places[0]].scope == "global")
    return tuple(Part(LivePlan(tuple(bounds[i] for i in places)), tuple(places)) for places in ordered)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """
    What one part said, by a reply with marks.

    Attributes:
        request: Over the counters that were asked, which may be overflow counters where the part's are not.
        answer: What came of asking its node; without a reply, this process decided.
        overflowed: For each unregistered value of the part 1 if it found no place, or 0.
    """

    part: Part
    request: Request[LivePlan]
    answer: Answer
    overflowed: Sequence[int]
    reply: Reply
    reason: str

    @property
    def by_store(self) -> bool:
        """Whether its node decided."""
        return self.answer.reply is not None

    @property
    def passed(self) -> bool:
        """Whether every limit of the part admits the request."""
        return self.reply.passed

    @property
    def charged(self) -> bool:
        """Whether permits were charged."""
        return self.request.charge and self.reply.passed

    def refunds(self) -> Iterator[tuple[BoundLimit, int, int]]:
        """Yield each limit that was charged, the permits that give it back, and the mark of its window."""
        for i, bound in self.reply.charged(self.request.plan.bounds):
            if cost := bound.cost_of(self.request.costs):
                yield bound, -cost, self.reply.mark(i)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What all parts together say.

    Attributes:
        reply: As one call would have given it.
        reason: The weightiest of the parts that deny; ``ok`` if none does.
        by_store: Whether every part was decided by its node.
        overflowed: For each unregistered value of the plan 1 if it found no place, or 0.
        errors: The failed calls.
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
        asker: Asks for each part.
        health: Decides for a part whose node is away.
    """

    def __init__(self, asker: Asker, health: Health) -> None:
        self._asker = asker
        self._health = health

    def asking(self, request: Request[LivePlan], *, registers: bool) -> Steps:
        """Steps that decide a request part by part; they return a :class:`Verdict`."""
        plan = request.plan
        if plan.parts is None:
            plan.parts = parts_of(plan)
        ident = request.ident or new_ident()
        outcomes: list[_Outcome] = []
        for part in plan.parts:
            charge = request.charge and all(outcome.passed for outcome in outcomes)
            asked = Request(part.plan, request.costs, charge, ident)
            outcomes.append((yield from self._asking(part, asked, registers=registers)))
        errors = [outcome.answer.error for outcome in outcomes if outcome.answer.error is not None]
        if not all(outcome.passed for outcome in outcomes):
            outcomes = yield from self._undoing(outcomes)
        reasons = [outcome.reason for outcome in outcomes if not outcome.passed]
        by_store = all(outcome.by_store for outcome in outcomes)
        overflowed = _overflowed(plan, outcomes) if registers else ()
        return Verdict(_merged(plan, outcomes), max(reasons, key=_weight, default="ok"), by_store, overflowed, errors)

    def _asking(self, part: Part, request: Request[LivePlan], *, registers: bool) -> Steps:
        """Steps that ask one part, at its node or, if that is away, in this process."""
        health, plan = self._health, part.plan
        registers = registers and request.charge and bool(plan.unregistered)
        answer = NOT_RESTORED
        if not plan.lies_in(health.lost_counters.sets):
            answer = yield from self._asker.asking(request, registers=registers)
        overflowed = answer.overflowed or [0] * len(plan.unregistered)
        if answer.reply is not None:
            asked = request.over(_diverted(plan, overflowed))
            asked.plan.last = answer.reply
            return _Outcome(part, asked, answer, overflowed, answer.reply, answer.reply.reason(asked.plan.bounds))
        if registers:
            overflowed = health.fallback.overflowed(plan)
        asked = request.over(_diverted(plan, overflowed))
        return _Outcome(part, asked, answer, overflowed, *health.decide_alone(asked, asked.plan.last, answer.error))

    def _undoing(self, outcomes: Sequence[_Outcome]) -> Steps:
        """Steps that give back what was charged before another part denied; they return the outcomes after that."""
        after = []
        for outcome in outcomes:
            if outcome.charged:
                rows, ident = list(outcome.refunds()), outcome.request.ident
                if outcome.by_store:
                    yield from correcting(self._health, rows, ident, once_for_ms=UNDONE_MS)
                else:
                    self._undo_here(rows, outcome)
                part = Part(outcome.request.plan, outcome.part.places)
                seen = yield from self._asking(part, replace(outcome.request, charge=False), registers=False)
                outcome = replace(seen, part=outcome.part, overflowed=outcome.overflowed)
            after.append(outcome)
        return after

    def _undo_here(self, rows: Sequence[tuple[BoundLimit, int, int]], outcome: _Outcome) -> None:
        """Give back what this process charged alone; a node that may have given slots, too, frees them as well."""
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
    return LivePlan(plan.diverted(overflowed)) if any(overflowed) else plan


def _overflowed(plan: LivePlan, outcomes: Sequence[_Outcome]) -> list[int]:
    """Return for each unregistered value of the whole plan whether it found no place."""
    found = {
        outcome.part.places[i]: diverts
        for outcome in outcomes
        for i, diverts in zip(outcome.part.plan.unregistered, outcome.overflowed, strict=True)
    }
    return [found[place] for place in plan.unregistered]


def _merged(plan: LivePlan, outcomes: Sequence[_Outcome]) -> Reply:
    """Return one reply in the order of the plan's bounds, as one call would have given it."""
    numbers = [int(all(outcome.passed for outcome in outcomes)), max(outcome.reply.now_us for outcome in outcomes)]
    rows = {
        place: [*outcome.reply.row(i), outcome.reply.mark(i)]
        for outcome in outcomes
        for i, place in enumerate(outcome.part.places)
    }
    for place in range(len(plan.bounds)):
        numbers += rows[place]
    return Reply(numbers, MARKED)


def _weight(reason: str) -> int:
    """One hopeless denier makes the whole hopeless, and one who may not say yes alone comes before those who count."""
    return ("ok", "limited", "degraded_denied", "cost_exceeds_capacity").index(reason)


__all__ = ["CrossSlot", "Part", "Verdict", "parts_of"]
