"""
A decision for no request, made to see whether the store can decide.

A store may answer PING although it is out of memory, read-only, too slow, without the functions, or not permitted to
this account. Requests would discover that one by one. So the background thread tries it first, with their time budget.
"""

from __future__ import annotations

from time import monotonic
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
    plan = Plan((BoundLimit(_LIMIT, keys.scope("global") + "trial", "global"),))
    return commands.decide(Request(plan, 1), 0, clock=False)


class DecisionProbe:
    """
    Charges a counter of its own, which expires after a second.

    Args:
        pipe: Has the time budget of a decision.
        keys: The keys of the store. The counter is among those of global limits, which every enforcer may write.
        budget: Seconds that a decision may take.
    """

    def __init__(self, pipe: Pipe, keys: Keys, budget: float) -> None:
        self._pipe = pipe
        self._budget = budget
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
        Ask the store for several decisions, and return a StoreError if it cannot make each in time, or None if it can.

        A reply that came in time for its connection may still be later than a decision may be: timeouts are counted in
        ticks of the kernel.
        """
        for _ in range(TRIES):
            began = monotonic()
            if (exc := self.error()) is not None:
                return exc
            if monotonic() - began > self._budget:
                return StoreError("timeout", f"a decision took longer than {self._budget * 1_000:g} ms")
        return None

    def close(self) -> None:
        """Close the connection of the probe."""
        self._pipe.close()
