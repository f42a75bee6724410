"""
Keep a sample of the denials of this process, until the background thread delivers it.

It shows an operator what is denied. It is no count: most denials are left out while there are many.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Any, Final

from enforcement.plan.binding import BoundLimit
from enforcement.plan.decision import Decision
from enforcement.plan.plan import Plan

MOST_A_SECOND: Final = 20
MOST_WAITING: Final = 200
MOST_CHARACTERS: Final = 64
"""Characters of an attribute's value that are kept. It is a value of a tenant, so it may be long or unprintable."""


class DenialSample:
    """
    The sampled denials that are not delivered yet.

    In each second it takes at most MOST_A_SECOND, and one for each token and limit. Denials that are answered from the
    cache are not even offered, because each follows one of the store by less than a second.
    """

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Drop all denials in a child process, because the parent delivers them."""
        self._lock = threading.Lock()
        self._second = -1
        self._taken: set[tuple[str, str, str, int]] = set()
        self._waiting: deque[list[Any]] = deque(maxlen=MOST_WAITING)

    def note(self, decision: Decision) -> None:
        """Add a denial, if there is room for it in this second. Any thread may call this."""
        second = int(time.monotonic())
        if second == self._second and len(self._taken) >= MOST_A_SECOND:
            return
        project, token = decision.plan.subject
        if not project and decision.reason != "unknown_token":
            return  # Limits in code are not known to the control plane.
        limit = decision.limit
        at = -1 if limit is None else next(i for i, state in enumerate(decision.limits) if state is limit)
        name = project, token, decision.reason, at
        with self._lock:
            if second != self._second:
                self._second, self._taken = second, set()
            if name in self._taken or len(self._taken) >= MOST_A_SECOND:
                return
            self._taken.add(name)
        self._waiting.append(_row(decision, project, token, at))

    def take(self) -> str | None:
        """Return the waiting denials as JSON and forget them, or return None if there are none."""
        rows = []
        while self._waiting:
            rows.append(self._waiting.popleft())
        return json.dumps(rows, separators=(",", ":")) if rows else None


def _row(decision: Decision, project: str, token: str, at: int) -> list[Any]:
    at_ms = (decision.decided_at_us or time.time_ns() // 1_000) // 1_000
    policy, limit, values = "", "", {}
    if at >= 0:
        bound = decision.plan.bounds[at]
        policy, limit = bound.policy_id, bound.limit.name
        values = {name: _shown(value) for name, value in _partition_values(decision.plan, bound).items()}
    return [decision.id, at_ms, decision.reason, project, token, policy, limit, values]


def _partition_values(plan: Plan, bound: BoundLimit) -> dict[str, str]:
    """Return the attributes that a limit of this plan is partitioned by, with fingerprints for long values."""
    # The name of a plan holds, for each limit, its index and the values that it is partitioned by.
    names = bound.limit.partition_by
    parts = getattr(plan, "name", None) if names else None
    found = next((part for part in parts or () if isinstance(part, tuple) and part[0] == bound.index), (bound.index,))
    return {
        name: value if isinstance(value, str) else f"(long) {value[0]}"
        for name, value in zip(names, found[1:], strict=False)
    }


def _shown(value: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value[:MOST_CHARACTERS])


__all__ = ["MOST_A_SECOND", "MOST_CHARACTERS", "DenialSample"]
