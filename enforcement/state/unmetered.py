"""
Report limits that count nothing, because no request gives a cost for their unit.

An operator who limits ``tokens`` sees the limit in the admin. If the proxy charges requests only, the limit admits
everything, and nobody would notice.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

from enforcement.plan.decision import Decision
from enforcement.state.live_plan import LivePlan
from enforcement.state.recent_limits import LimitName, RecentLimits

MAX_LOGGED: Final = 1_000

logger = logging.getLogger("sluicegate.limiter")


class UnmeteredLimits:
    """The published limits that this process has lately decided on without a cost for their unit."""

    def __init__(self) -> None:
        self._recent = RecentLimits()
        self._logged: set[tuple[str, str]] = set()

    def note(self, plan: LivePlan, decision: Decision) -> None:
        """
        Note the limits of a published plan that a decision left unmetered, and log each of them once. Limits in code
        raise errors.
        """
        if plan.usage is None:
            return
        for i in decision.unmetered_at():
            bound = plan.bounds[i]
            name = bound.policy_slug, bound.limit.name
            self._recent.note((plan.usage.project, *name), monotonic())
            if name not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(name)
                logger.warning(
                    "The limit %s/%s counts %s, but requests give no cost in that unit, so it admits everything.",
                    *name,
                    bound.limit.unit,
                )

    def now(self) -> list[LimitName]:
        """Return a list of (project id, policy slug, name) of the limits that were unmetered lately."""
        return self._recent.at(monotonic())

    def clear(self) -> None:
        """Forget what was noted, as a child process does after a fork."""
        self._recent.clear()
        self._logged.clear()
