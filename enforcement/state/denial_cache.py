"""
Denials that one process remembers: a client that hammers a full limit does not reach the store.

One is believed until the limit lets something pass again, and never long: another process may give back or reset. What
this process gives back itself, and every change of the documents, ends all of them at once.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement.plan.decision import Decision
from enforcement.state.counts import Cell, DecisionCounts
from enforcement.state.usage import State, states_of

if TYPE_CHECKING:
    from enforcement.plan.plan import Costs, Plan
    from enforcement.state.published import PublishedState

DENIAL_SECONDS: Final = 0.25


class Denials:
    """What one process remembers; each denial stands in its plan."""

    def __init__(self, documents: PublishedState, counts: DecisionCounts) -> None:
        self._documents = documents
        self._counts = counts
        self._given_back = 0

    def known(self, plan: Plan, costs: Costs) -> Decision | None:
        """Return a denial that is remembered for these costs, if it still holds."""
        denial: Denial | None = plan.denied
        if denial is None:
            return None
        now = monotonic()
        if (
            now >= denial.until
            or denial.given_back != self._given_back
            or denial.generation != self._documents.generation
        ):
            plan.denied = None
            return None
        if costs != denial.costs:
            return None
        if plan.usage is not None:
            plan.usage.denied_again(denial.minute, denial.states)
        denial.recalled[0] += 1
        return denial.told(now)

    def remember(self, plan: Plan, costs: Costs, decision: Decision) -> None:
        """Keep a denial until it can pass; where no wait is known, as long as any may be kept."""
        waits = [decision.reply.wait(i) for i, bound in enumerate(plan.bounds) if not bound.limit.shadow]
        wait = DENIAL_SECONDS if min(waits) < 0 else min(DENIAL_SECONDS, max(waits) / 1_000_000)
        states = states_of(plan.bounds, costs, decision.reply, False)
        recalled = self._counts.cell("denial_cache", decision.reason)
        plan.denied = Denial(decision, costs, wait, self._given_back, self._documents.generation, states, recalled)

    def forget(self) -> None:
        """Something was given back or reset in this process: no denial is remembered any longer."""
        self._given_back += 1


class Denial:
    """A denial that this process remembers; told again with spans that have grown shorter since."""

    __slots__ = (
        "_at",
        "_retell",
        "_told",
        "costs",
        "decision",
        "generation",
        "given_back",
        "minute",
        "recalled",
        "states",
        "until",
    )

    GRAIN_SECONDS: Final = 0.01

    def __init__(
        self,
        decision: Decision,
        costs: Costs,
        seconds: float,
        given_back: int,
        generation: int,
        states: tuple[State, ...],
        recalled: Cell,
    ) -> None:
        self.decision, self.costs, self.states, self.recalled = decision, costs, states, recalled
        self.given_back, self.generation = given_back, generation
        self.minute = decision.reply.minute
        self._at = monotonic()
        self.until = self._at + seconds
        self._told = decision
        self._retell = 0.0

    def told(self, now: float) -> Decision:
        """Return the denial as of *now*, monotonic seconds; a span may be up to a hundredth of a second too long."""
        if now >= self._retell:
            self._retell = now + self.GRAIN_SECONDS
            d, passed_us = self.decision, int((now - self._at) * 1_000_000)
            self._told = Decision(False, d.reason, "denial_cache", d.plan, d.reply.later(passed_us))
        return self._told


__all__ = ["Denial", "Denials"]
