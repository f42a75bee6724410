"""
Keep a sample of the denials of this process, until the background thread delivers it.

It shows an operator what is denied. It is no count: most denials are left out while there are many.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Final

from enforcement.model.limits import Limit
from enforcement.model.matching import Attributes, is_label
from enforcement.plan.decision import Decision

MOST_A_SECOND: Final = 20
MOST_WAITING: Final = 200
MOST_ATTRIBUTES: Final = 8
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
        # By the identity of the decision, which is kept with its row, so that no other object gets it.
        self._waiting: dict[int, tuple[Decision, list[Any]]] = {}

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
            if len(self._waiting) >= MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[id(decision)] = decision, _row(decision, project, token, at)

    def describe(self, decision: Decision, attributes: Attributes) -> None:
        """
        Add the attributes of a denied request that the limit looks at, if the denial is in the sample. Any thread may
        call this.
        """
        found = self._waiting.get(id(decision))
        limit = decision.limit
        if found is None or limit is None or not all(map(is_label, found[1][-1])):
            return
        deciding = next(it for it, state in zip(decision.bounds, decision.limits, strict=True) if state is limit)
        found[1][-1] = {
            name: _shown(source[name])
            for name in _names(deciding.limit)
            if name in (source := deciding.labels if is_label(name) else attributes)
        }

    def take(self) -> str | None:
        """Return the waiting denials as JSON and forget them, or return None if there are none."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return json.dumps([row for _, row in waiting.values()], separators=(",", ":")) if waiting else None


def _row(decision: Decision, project: str, token: str, at: int) -> list[object]:
    at_ms = (decision.decided_at_us or time.time_ns() // 1_000) // 1_000
    policy, limit, labels = "", "", {}
    if at >= 0:
        bound = decision.plan.bounds[at]
        policy, limit = bound.policy_id, bound.limit.name
        labels = {name: _shown(bound.labels[name]) for name in _names(bound.limit) if name in bound.labels}
    return [decision.id, at_ms, decision.reason, project, token, policy, limit, labels]


def _names(limit: Limit) -> list[str]:
    """Return the names of the attributes that a limit is partitioned by or matches, the former first."""
    match = limit.match
    rules = [name for name, rule in (("method", match.methods), ("path", match.path)) if rule]
    return list(dict.fromkeys((*limit.partition_by, *rules, *match.attributes)))[:MOST_ATTRIBUTES]


def _shown(value: str) -> str:
    cut = value[:MOST_CHARACTERS] + ("\N{HORIZONTAL ELLIPSIS}" if len(value) > MOST_CHARACTERS else "")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)
