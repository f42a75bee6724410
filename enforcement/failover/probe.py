"""
A decision that nobody waits for: it tells whether a store that answers would also decide.

A store may answer PING and be out of memory, read-only, without its functions, forbidden to this account, or too slow.
Requests would find that out one by one, so the background asks for them, with the time budget that they have.
"""

from __future__ import annotations

from typing import Final

from enforcement.model.keys import Keys
from enforcement.model.limits import MAX_NUMBER, Limit
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.request import Request
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

_LIMIT: Final = Limit(name="trial", quota=MAX_NUMBER, window_seconds=1)


class DecisionProbe:
    """
    Charges a counter of its own, which lives for a second.

    Args:
        pipe: With the time budget of a decision.
        keys: The counter is in the scope of global limits, which every account of an enforcer may write.
    """

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        plan = Plan((BoundLimit(_LIMIT, keys.scope("global") + "trial", "global"),))
        self._command = commands.decide(Request(plan, 1), 0, clock=False)

    def trouble(self) -> StoreError | None:
        """Return why requests would not be decided by the store; None: they would."""
        try:
            self._pipe.call(self._command)
        except StoreError as exc:
            return exc if exc.away else None
        return None

    def close(self) -> None:
        """Close its connection."""
        self._pipe.close()


__all__ = ["DecisionProbe"]
