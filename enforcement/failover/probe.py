"""
A decision for no request, made to see whether the store can decide.

A store may answer PING although it is out of memory, read-only, too slow, without the functions, or not permitted to
this account. Requests would discover that one by one. So the background thread tries it first, with their time budget.
"""

from __future__ import annotations

from typing import Final

from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_NUMBER
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.request import Request
from enforcement.store.absence import TRIES
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

_LIMIT: Final = Limit(name="trial", quota=MAX_NUMBER, window_seconds=1)


def probe_command(keys: Keys) -> bytes:
    """Return the encoded call that charges a counter of its own, which expires after a second."""
    plan = Plan((BoundLimit(_LIMIT, keys.probe, "global"),))
    return commands.decide(Request(plan, 1), 0, clock=False)


class DecisionProbe:
    """
    Charges a counter of its own, which expires after a second.

    Args:
        pipe: Has the time budget of a decision.
        keys: The keys of the store.
    """

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._command = probe_command(keys)

    def error(self) -> StoreError | None:
        """Ask the store for a decision, and return the StoreError if it cannot decide, or None if it can."""
        try:
            self._pipe.call(self._command)
        except StoreError as exc:
            return exc if exc.away else None
        return None

    def steady_error(self) -> StoreError | None:
        """
        Ask the store for several decisions, and return the StoreError of the first that it cannot make, or None.
        """
        errors = (self.error() for _ in range(TRIES))
        return next((exc for exc in errors if exc is not None), None)

    def close(self) -> None:
        """Close the connection of the probe."""
        self._pipe.close()
