"""
Cache denials, so that retries against a full limit do not reach the store.

A denial is kept until the limit can admit the request again, but no longer than DENIAL_SECONDS, because another process
may return permits or reset the counter. All denials become invalid at once when this process returns permits or resets
a counter, and when the documents change.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement.plan.costs import own_costs
from enforcement.plan.decision import Decision
from enforcement.state.counts import DecisionCounts
from enforcement.state.live_plan import CachedDenial, LivePlan
from enforcement.usage.counts import states_of
from enforcement.usage.denial_sample import DenialSample

if TYPE_CHECKING:
    from enforcement.plan.costs import Costs
    from enforcement.state.published import PublishedState
    from enforcement.waiting.queues import Queues

DENIAL_SECONDS: Final = 0.25
"""How long a denial is kept at most."""


class Denials:
    """
    The cached denials of one process.

    Each denial is stored in its plan (``LivePlan.denied``). This class knows whether they are still valid.
    """

    def __init__(self, documents: PublishedState, counts: DecisionCounts, sample: DenialSample, queues: Queues) -> None:
        self._documents = documents
        self._counts = counts
        self._sample = sample
        self._queues = queues
        self._given_back = 0

    def known(self, plan: LivePlan, denial: CachedDenial, costs: Costs) -> Decision | None:
        """
        Count and return the cached denial of a plan, or return None if it has ended or is for other costs.

        Args:
            denial: The one that the caller found in *plan*. Another thread may have dropped it since.
        Returns:
            None if the store must be asked.
        """
        now = monotonic()
        if (
            now >= denial.until
            or denial.given_back != self._given_back
            or denial.generation != self._documents.generation
        ):
            plan.denied = None
            return None
        if costs != denial.costs:  # a smaller cost might pass
            return None
        if plan.usage is not None:
            plan.usage.denied_again(denial.minute, denial.states)
        denial.recalled[0] += 1
        return denial.present if now < denial.renew_at else denial.renewed(now)

    def count(self, decision: Decision) -> None:
        """Count a decision by its source and reason, and offer a denial to the sample."""
        self._counts.count(decision.source, decision.reason)
        if not decision.allowed:
            self._sample.note(decision)

    def add(self, plan: LivePlan, costs: Costs, decision: Decision, *, remembers: bool) -> None:
        """Count a denial of the store, and store it in its plan if *remembers*."""
        if plan.counts_units:
            decision.on(costs)  # which limit denies depends on it
        self.count(decision)
        if remembers:
            self.remember(plan, costs, decision)

    def remember(self, plan: LivePlan, costs: Costs, decision: Decision) -> None:
        """Store a denial in its plan until the request can pass, for at most DENIAL_SECONDS."""
        # Shadow limits never deny. Below 0 no wait helps, but another process may reset the counter.
        waits = [decision.reply.wait(i) for i, bound in enumerate(plan.bounds) if not bound.limit.shadow]
        wait = DENIAL_SECONDS if min(waits) < 0 else min(DENIAL_SECONDS, max(waits) / 1_000_000)
        states = states_of(plan.bounds, costs, decision.reply, False)
        recalled = self._counts.cell("denial_cache", decision.reason)
        plan.denied = CachedDenial(
            decision, own_costs(costs), wait, self._given_back, self._documents.generation, states, recalled
        )

    def forget(self, keys: Iterable[str]) -> None:
        """Invalidate all denials, because this process has returned permits of these counters, or reset them."""
        self._given_back += 1
        self.freed(keys)

    def freed(self, keys: Iterable[str]) -> None:
        """Have those asked for again who wait for slots of these counters, because this process has freed some."""
        if self._queues.by_key:
            self._queues.returned(keys)
