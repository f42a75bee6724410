"""
Whether the store answers look-ups of tokens.

A look-up has ten times as long as a decision, and connections of its own. A store that is too slow for decisions may
still answer look-ups in time, and one that lost the connections of look-ups still decides. So neither says whether the
other works, and each has a circuit breaker.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from enforcement.model.keys import Keys
from enforcement.store import resp
from enforcement.store.absence import PacedAbsence
from enforcement.store.breaker import Breaker
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

ANSWERED_SECONDS: Final = 1.0
"""A store that answered a look-up so lately is not gone."""


class LookUps:
    """
    Tracks whether tokens can be looked up, and tries it in the background while they cannot.

    Args:
        pipe: Has the time budget of a look-up.
        keys: The keys of the store.
        budget: Seconds that a look-up may take.

    Attributes:
        breaker: While it is open, tokens that this process has not met are refused without a call.
    """

    def __init__(self, pipe: Pipe, keys: Keys, budget: float) -> None:
        self._pipe = pipe
        self._command = resp.pack(("MGET", keys.token("0" * 64), keys.revision))
        self._absence = PacedAbsence(monotonic)
        self._answered_at = float("-inf")
        self.breaker = Breaker(
            name="The look-up of tokens",
            consequence="tokens that this process has not met are refused",
            resumes="works",
            budget=budget,
        )

    def failed(self, exc: StoreError, *, store_away: bool) -> None:
        """
        Count a failed look-up unless its cause was the call itself.

        Args:
            store_away: Whether decisions cannot be made either. One failure then stops the look-ups, unless another one
                was just answered: the store is slow and not gone.
        """
        if not exc.away:
            return
        if store_away and monotonic() - self._answered_at > ANSWERED_SECONDS:
            self.breaker.trip(exc.cause)
        else:
            self.breaker.failed(exc.cause)

    def succeeded(self) -> None:
        """Count a look-up that succeeded."""
        self._answered_at = monotonic()
        if self.breaker.failures:
            self.breaker.succeeded()

    def examine(self, *, at_once: bool = False) -> None:
        """
        Try a look-up if none is made for requests, and let them be made again if it works.

        Args:
            at_once: Whether to do so without a pause since the last try.
        """
        if not self.breaker.open:
            return
        if (self._absence.is_due() or at_once) and self._answers():
            self._absence.end()
            self.breaker.close()

    def _answers(self) -> bool:
        try:
            self._pipe.call(self._command)
        except StoreError:
            return False
        return True

    def close(self) -> None:
        """Close the connection of the tries."""
        self._pipe.close()

    def after_fork(self) -> None:
        """Replace the lock of the parent in a child process."""
        self.breaker.after_fork()
