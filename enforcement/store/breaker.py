"""The breaker: it keeps requests from waiting for a store that does not answer, and says once that it is away."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from enforcement.store.logs import RateLimitedLogger

logger = logging.getLogger("sluicegate.failover")

FAILURES_TO_OPEN: Final = 3
"""Calls in a row that must fail before the breaker opens; each of them took up to the time budget."""

# Not the module's own numbers: an application may have seeded them, and a fork would share any other's.
chance: Final = random.SystemRandom()


class Breaker:
    """
    Opens after failures in a row; only a probe in the background closes it.

    Attributes:
        open: Whether the store is taken to be away; read by every decision.
        cause: Why, in a word, as it was told last.
        opened_at: Monotonic seconds; 0 while closed.
        failures: Calls in a row that failed.
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
        """Make it usable in a child: another thread of the parent may have held a lock."""
        self._say = RateLimitedLogger(logger)
        self._lock = threading.Lock()

    def failed(self, cause: str) -> None:
        """Count a failure of the store."""
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
        Open at once: someone who knows says that the store is away.

        Args:
            cause: A word, and more after a colon. While it is open, another word is worth a line of its own.
        """
        if self.open:
            self._still(cause)
            return
        self.failures = FAILURES_TO_OPEN
        self.failed(cause)

    def _still(self, cause: str) -> None:
        if _word(cause) != self.cause:
            self.cause = _word(cause)
            self._say.warning(_word(cause), "%s is still away, for another cause now (%s).", self._name, cause)

    def succeeded(self) -> None:
        """Forget failures; called by a decision that the store made after one that it did not."""
        self.failures = 0

    def close(self) -> None:
        """Take the store for present again."""
        with self._lock:
            was_open, since = self.open, self.opened_at
            self.open, self.opened_at, self.failures = False, 0.0, 0
        if was_open:
            self._say.warning("back", "%s is back after %.1f s and decides again.", self._name, monotonic() - since)


def jittered(longest: float, least: float = 0.5) -> float:
    """Return a random span of *least* to 1 times *longest*: who lost the store in one moment does not return in one."""
    return longest * chance.uniform(least, 1.0)


def _word(cause: str) -> str:
    return cause.partition(":")[0]


__all__ = ["Breaker", "chance", "jittered"]
