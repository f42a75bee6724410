"""
Deciding on a cluster a request whose counters lie in several slots: one call for each, all charged or none.

The project's part comes first: it denies most often, and then nothing is to be undone. What a part has charged when a
later one denies is given back under the id of the request, so that sending it twice does no harm; could it not be sent,
it is owed. A part whose node is away is decided by this process alone; the others are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement import protocol, resp
from enforcement.census import TRUST_SECONDS
from enforcement.errors import StoreTrouble
from enforcement.keys import together
from enforcement.plans import Bound, Costs, Plan
from enforcement.protocol import without_marks
from enforcement.reservation import correcting, new_ident

if TYPE_CHECKING:
    from enforcement.engine import Engine, Steps

UNDONE_MS: Final = 60_000
"""How long an id is remembered whose charge was given back. Under saturation there are many of them."""

_WIDTH: Final = 5


class InParts(StoreTrouble):
    """The counters of a plan lie in several slots: no single call reaches them."""

    def __init__(self) -> None:
        super().__init__("parts", executed=False, away=False)


@dataclass(frozen=True, slots=True)
class Part:
    """The bounds of a plan that lie in one slot, and their places among all."""

    plan: Plan
    places: tuple[int, ...]


def parts_of(plan: Plan) -> tuple[Part, ...]:
    """Return the parts of a plan in the order in which they are asked: what is global comes last."""
    bounds = plan.bounds
    of_one_tag = together(range(len(bounds)), lambda place: bounds[place].tag)
    ordered = sorted(of_one_tag, key=lambda places: bounds[places[0]].scope == "global")
    return tuple(Part(Plan(tuple(bounds[i] for i in places)), tuple(places)) for places in ordered)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """
    What one part said, by a reply with marks.

    Attributes:
        plan: Over the counters that were asked, which may be overflow counters where the part's are not.
        beyond: For each newcomer of the part 1, if it found no place, or 0.
        charged: Whether permits were charged.
        trouble: Why its node was asked in vain, if it was.
    """

    part: Part
    plan: Plan
    beyond: Sequence[int]
    reply: Sequence[int]
    charged: bool
    by_store: bool
    reason: str
    trouble: StoreTrouble | None = None

    @property
    def passed(self) -> bool:
        return self.reply[0] == 1

    def rows(self, costs: Costs) -> Iterator[tuple[Bound, int, int]]:
        """Give each limit that was charged, what gives it back, and the mark of its window."""
        for i, bound in enumerate(self.plan.bounds):
            wait, cost, mark = self.reply[4 + _WIDTH * i], bound.cost_of(costs), self.reply[6 + _WIDTH * i]
            if wait == 0 and cost:
                yield bound, -cost, mark


def deciding(engine: Engine, plan: Plan, costs: Costs, *, charge: bool, ident: str) -> Steps:
    """Steps that decide a request part by part; they return its Decision, told as one call would have told it."""
    if plan.parts is None:
        plan.parts = parts_of(plan)
    own, began = ident or new_ident(), monotonic()
    newcomers = bool(plan.newcomers) and began >= plan.enrolled_until
    outcomes: list[_Outcome] = []
    for part in plan.parts:
        charges = charge and all(outcome.passed for outcome in outcomes)
        outcomes.append((yield from _asking(engine, part, costs, own, charge=charges, enrols=newcomers)))
    troubles = [outcome.trouble for outcome in outcomes if outcome.trouble is not None]
    if not all(outcome.passed for outcome in outcomes):
        outcomes = yield from _undoing(engine, outcomes, costs, own)
    reply = _merged(plan, outcomes)
    if newcomers:
        plan = engine.planner.placed(plan, _beyond(plan, outcomes))
        if reply[0] == 1 and charge and all(outcome.by_store for outcome in outcomes):
            engine.planner.shelf.trust(plan, began + TRUST_SECONDS)
    if not ident:
        reply = without_marks(reply)
    if all(outcome.by_store for outcome in outcomes):
        return engine.answer(plan, costs, reply, charge=charge, ident=ident)
    reasons = [outcome.reason for outcome in outcomes if not outcome.passed]
    reason = max(reasons, key=_weight, default="ok")
    decision = engine.degraded(plan, costs, reply, reason, charge=charge, ident=ident)
    if troubles:
        decision.after(troubles[0].cause, ambiguous=any(trouble.executed for trouble in troubles))
    return decision


def _asking(engine: Engine, part: Part, costs: Costs, ident: str, *, charge: bool, enrols: bool) -> Steps:
    """Steps that ask one part, at its node or, if that is away, in this process."""
    plan, now_us, clock = part.plan, engine.now_us(), engine.clock is not None
    enrols = enrols and charge and bool(plan.newcomers)
    beyond = [0] * len(plan.newcomers)
    alone, trouble = plan.lies_in(engine.unrestored.sets), None
    for _ in range(0 if alone else 2):  # once more if the store's time lies in another window than this process thought
        try:
            if enrols:
                reply, *beyond = yield from engine.asking(protocol.enrol(plan, costs, now_us, clock=clock, ident=ident))
            else:
                command = protocol.decide(plan, costs, now_us, clock=clock, charge=charge, ident=ident)
                reply = resp.numbers((yield from engine.asking(command)))
        except StoreTrouble as exc:
            engine.failed(exc)
            trouble = exc
            break
        if reply[0] == protocol.NOT_RESTORED:
            engine.unrestored.add(plan.touches[len(plan.keys) :])
            break
        if not protocol.outside_calendar(reply):
            asked = _diverted(plan, beyond)
            asked.last = without_marks(reply)
            reason = "ok" if reply[0] == 1 else protocol.reason_of(asked, reply, _WIDTH)
            return _Outcome(part, asked, beyond, reply, charge and reply[0] == 1, True, reason)
        now_us = reply[1]
    if enrols:
        beyond = engine.fallback.beyond(plan)
    asked = _diverted(plan, beyond)
    reply, reason = engine.decide_alone(asked, costs, charge=charge, ident=ident, trouble=trouble)
    return _Outcome(part, asked, beyond, reply, charge and reply[0] == 1, False, reason, trouble)


def _undoing(engine: Engine, outcomes: Sequence[_Outcome], costs: Costs, ident: str) -> Steps:
    """Steps that give back what was charged before another part denied; return the outcomes as they are after that."""
    after = []
    for outcome in outcomes:
        if outcome.charged:
            rows = list(outcome.rows(costs))
            if outcome.by_store:
                yield from correcting(engine, rows, ident, once_for_ms=UNDONE_MS)
            else:
                _undo_here(engine, rows, ident, told=outcome.trouble is not None and outcome.trouble.executed)
            part = Part(outcome.plan, outcome.part.places)
            seen = yield from _asking(engine, part, costs, ident, charge=False, enrols=False)
            outcome = replace(seen, part=outcome.part, beyond=outcome.beyond)
        after.append(outcome)
    return after


def _undo_here(engine: Engine, rows: Sequence[tuple[Bound, int, int]], ident: str, *, told: bool) -> None:
    """Give back what this process charged alone; *told*: its node may have given slots, too, and frees them as well."""
    now_us = engine.now_us()
    for bound, delta, mark in rows:
        if bound.letter == "c":
            engine.fallback.leave(ident, bound, -delta, now_us)
            if told:
                engine.fallback.owe(ident, [(bound, 0, delta)], once=False)
        else:
            engine.fallback.amend(bound, delta, mark, now_us)


def _diverted(plan: Plan, beyond: Sequence[int]) -> Plan:
    return Plan(plan.diverted(beyond)) if any(beyond) else plan


def _beyond(plan: Plan, outcomes: Sequence[_Outcome]) -> list[int]:
    """Return for each newcomer of the whole plan whether it found no place."""
    said = {
        outcome.part.places[i]: diverts
        for outcome in outcomes
        for i, diverts in zip(outcome.part.plan.newcomers, outcome.beyond, strict=True)
    }
    return [said[place] for place in plan.newcomers]


def _merged(plan: Plan, outcomes: Sequence[_Outcome]) -> list[int]:
    """Return one reply in the order of the plan's bounds, as one call would have given it."""
    reply = [int(all(outcome.passed for outcome in outcomes)), max(outcome.reply[1] for outcome in outcomes)]
    rows = {
        place: outcome.reply[2 + _WIDTH * i : 2 + _WIDTH * (i + 1)]
        for outcome in outcomes
        for i, place in enumerate(outcome.part.places)
    }
    for place in range(len(plan.bounds)):
        reply += rows[place]
    return reply


def _weight(reason: str) -> int:
    """One hopeless denier makes the whole hopeless, and one who may not say yes alone comes before those who count."""
    return ("ok", "limited", "degraded_denied", "cost_exceeds_capacity").index(reason)


__all__ = ["InParts", "Part", "deciding", "parts_of"]
