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
    from enforcement.plan.binding import Costs
    from enforcement.state.live_plan import LivePlan
    from enforcement.state.published import PublishedState

DENIAL_SECONDS: Final = 0.25


class Denials:
    """What one process remembers; each denial stands in its plan."""

    def __init__(self, documents: PublishedState, counts: DecisionCounts) -> None:
        self._documents = documents
        self._counts = counts
        self._given_back = 0

    def known(self, plan: LivePlan, costs: Costs) -> Decision | None:
        """
        Return the denial that a plan remembers, if it holds for these costs.

        Args:
            plan: With a denial; whether it has one is asked by the caller, whom a call for nothing would cost more.
        """
        denial: Denial = plan.denied
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
        return denial.present if now < denial.renew_at else denial.renewed(now)

    def remember(self, plan: LivePlan, costs: Costs, decision: Decision) -> None:
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
    """
    A denial that this process remembers.

    Attributes:
        present: The denial as of a moment ago. Its spans have grown shorter since, which is worked out anew from
            ``renew_at`` on, monotonic seconds.
        until: Monotonic instant from which the store is asked again.
        recalled: The count of decisions made from memory.
    """

    __slots__ = (
        "_at",
        "_decision",
        "costs",
        "generation",
        "given_back",
        "minute",
        "present",
        "recalled",
        "renew_at",
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
        self._decision = self.present = decision
        self.costs, self.states, self.recalled = costs, states, recalled
        self.given_back, self.generation = given_back, generation
        self.minute = decision.reply.minute
        self._at = monotonic()
        self.until = self._at + seconds
        self.renew_at = 0.0

    def renewed(self, now: float) -> Decision:
        """Return the denial as of *now*, monotonic seconds, and keep it for the next hundredth of a second."""
        first, passed_us = self._decision, int((now - self._at) * 1_000_000)
        self.present = Decision(False, first.reason, "denial_cache", first.plan, first.reply.later(passed_us))
        self.renew_at = now + self.GRAIN_SECONDS
        return self.present


__all__ = ["Denial", "Denials"]
