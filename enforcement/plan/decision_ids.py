"""Make the ids of the decisions of one process. The module ``decision_id`` has their format."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    from enforcement.plan.decision_id import DecisionKey
    from enforcement.plan.limit_state import LimitState

    class Subjected(Protocol):
        """The part of a :class:`~enforcement.plan.plan.Plan` that an id is made from."""

        @property
        def subject(self) -> tuple[str, str]: ...

    class Named(Protocol):
        """The part of a :class:`~enforcement.plan.decision.Decision` that its id is made from."""

        reason: str
        source: str

        @property
        def revision(self) -> int: ...
        @property
        def decided_at_us(self) -> int: ...
        @property
        def limit(self) -> LimitState | None: ...
        @property
        def plan(self) -> Subjected: ...


class DecisionIds:
    """
    Makes the ids of the decisions of one process.

    Args:
        instance: Returns the name of this instance.
        now_us: Returns the estimated time of the store, for decisions that have none of their own.
        secret: Returns the secret that the fleet shares, or an empty string if there is none. Ids are then made with a
            random key of this process: they tell decisions apart, and nobody can open them.
    """

    def __init__(self, instance: Callable[[], str], now_us: Callable[[], int], secret: Callable[[], str]) -> None:
        self._instance = instance
        self._now_us = now_us
        self._secret = secret
        self._own = secrets.token_hex(32)
        self._serials = count(secrets.randbelow(65_536))
        self._key: DecisionKey | None = None

    def of(self, decision: Named) -> str:
        """Return a new id for a decision."""
        # Most processes deny nothing for a long time, and the module takes as long to import as ten others.
        from enforcement.plan.decision_id import LAST_MS, DecisionFacts, DecisionKey, mark_of

        secret, key = self._secret() or self._own, self._key
        if key is None or key.secret != secret:
            key = self._key = DecisionKey(secret)
        limit = decision.limit if decision.reason in ("limited", "cost_exceeds_capacity", "degraded_denied") else None
        project, token = decision.plan.subject
        facts = DecisionFacts(
            at_ms=min(max(0, (decision.decided_at_us or self._now_us()) // 1_000), LAST_MS),
            serial=next(self._serials) & 0xFFFF,
            reason=decision.reason,
            source=decision.source,
            revision=decision.revision,
            instance=self._instance(),
            token=token,
            project_mark=mark_of(project),
            limit="" if limit is None else label_of(limit.policy, limit.name),
        )
        return key.seal(facts)


def label_of(policy: str, limit: str) -> str:
    """Return ``policy/limit``, or the name of a limit in code."""
    return f"{policy}/{limit}" if policy else limit
