"""The circuit breaker, which keeps requests from waiting for a server that does not answer."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from enforcement.logs import RateLimitedLogger

logger = logging.getLogger("sluicegate.failover")

FAILURES_TO_OPEN: Final = 3
"""How many calls in a row must fail before the breaker opens. Each of them may take the whole time budget."""

# Not the functions of the random module: an application may have seeded them, and forked children would share them.
chance: Final = random.SystemRandom()


class Breaker:
    """
    Opens after several failures in a row. Only a probe in the background closes it.

    Args:
        on_open: Called with the cause each time the breaker opens.
        name: What is unavailable then, as the subject of a log line.

    Attributes:
        open: Whether the store counts as unavailable; read by every decision.
        cause: The last cause, in one word.
        opened_at: Monotonic seconds; 0 while closed.
        failures: How many calls in a row have failed.
        openings: How often it opened.
    """

    def __init__(self, on_open: Callable[[str], None] = lambda cause: None, name: str = "The store") -> None:
        self.open = False
        self.cause = ""
        self._name = name
        self.opened_at = 0.0
        self.failures = 0
        self.openings = 0
        self._on_open = on_open
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the locks in a child process, because a thread of the parent may have held them."""
        self._say = RateLimitedLogger(logger)
        self._lock = threading.Lock()

    def failed(self, cause: str) -> None:
        """Count a failure, and open the breaker after too many."""
        with self._lock:
            self.failures += 1
            if self.open or self.failures < FAILURES_TO_OPEN:
                return
            self.open, self.opened_at = True, monotonic()
            self.openings += 1
            self.cause = _word(cause)
        text = "%s is away (%s); each limit is decided by its own rule until it is back."
        self._say.warning(_word(cause), text, self._name, cause)
        self._on_open(cause)

    def trip(self, cause: str) -> None:
        """
        Open the breaker at once, because the caller is sure that the store is unavailable.

        Args:
            cause: One word, then details after a colon. If the breaker is open already, a new word is logged.
        """
        if self.open:
            self._update_cause(cause)
            return
        self.failures = FAILURES_TO_OPEN
        self.failed(cause)

    def _update_cause(self, cause: str) -> None:
        if _word(cause) != self.cause:
            self.cause = _word(cause)
            self._say.warning(_word(cause), "%s is still away, for another cause now (%s).", self._name, cause)

    def succeeded(self) -> None:
        """Reset the count of failures, after a success that follows a failure."""
        self.failures = 0

    def close(self) -> None:
        """Close the breaker, so that the store is used again."""
        with self._lock:
            was_open, since = self.open, self.opened_at
            self.open, self.opened_at, self.failures = False, 0.0, 0
        if was_open:
            self._say.warning("back", "%s is back after %.1f s and decides again.", self._name, monotonic() - since)


def jittered(longest: float, least: float = 0.5) -> float:
    """Return a random part of *longest*, at least *least* of it, so that instances do not all return at once."""
    return longest * chance.uniform(least, 1.0)


def _word(cause: str) -> str:
    return cause.partition(":")[0]


__all__ = ["Breaker", "chance", "jittered"]
