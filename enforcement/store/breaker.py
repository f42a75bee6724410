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

FAILURES_TO_OPEN: Final = 5
"""How many of the last calls must fail before the breaker opens. Each of them may take the whole time budget."""
FAILURES_IN_A_ROW: Final = 4
"""The breaker opens sooner if no call succeeds in between."""
CALLS_JUDGED: Final = 20
"""
How many of the last calls are looked at, or of the last pieces of replies, if each answers several calls.

Five of twenty is a share of a quarter. A store that fails every second or third call opens the breaker with its fifth
failure, however well it did before. If 1 % of the replies are late, four more among the next fifteen calls come once in
100,000 late replies, and three more in a row once in a million.
"""
LEAST_SPAN_SECONDS: Final = 1.0
"""Older failures are forgotten, unless the calls take so long that five of them do not fit into this span."""

# Not the functions of the random module: an application may have seeded them, and forked children would share them.
chance: Final = random.SystemRandom()


class Breaker:
    """
    Opens when a quarter of the last replies to decisions failed to come, or all of the very last ones.

    Only a probe in the background closes it.

    Args:
        on_open: Called with the cause each time the breaker opens.
        name: What is unavailable then, as the subject of a log line.
        consequence: What happens until it is available again, for the same line.
        resumes: What it does again when it is back, for another line.
        budget: Seconds that a call may take.
        on_doubt: Called after a failure that does not open it.

    Attributes:
        open: Whether the store counts as unavailable; read by every decision.
        cause: The last cause, in one word.
        opened_at: Monotonic seconds; 0 while closed.
        failures: How many of the last calls failed. While it is 0, nobody has to report a success.
        openings: How often it opened.
    """

    def __init__(
        self,
        on_open: Callable[[str], None] = lambda cause: None,
        name: str = "The store",
        *,
        consequence: str = "each limit is decided by its own rule",
        resumes: str = "decides",
        budget: float = 0.0,
        on_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        self.open = False
        self.cause = ""
        self._name = name
        self._consequence = consequence
        self._resumes = resumes
        self.opened_at = 0.0
        self.failures = 0
        self.openings = 0
        self._on_open = on_open
        self._on_doubt = on_doubt
        # Calls one after the other, each with its whole budget and a pause as long, must not outlast the span.
        self._span = max(LEAST_SPAN_SECONDS, 2 * FAILURES_TO_OPEN * budget)
        self._calls = 0
        # Number and time of each failed call, and the number of the call that makes it too old.
        self._failed: list[tuple[int, float, int]] = []
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the locks in a child process, because a thread of the parent may have held them."""
        self._say = RateLimitedLogger(logger)
        self._lock = threading.Lock()

    def failed(self, cause: str, crowd: int = 1) -> None:
        """
        Count a failed call unless the breaker is open, and open it after too many.

        Args:
            cause: One word, then details after a colon.
            crowd: See :class:`~enforcement.store.errors.StoreError`.
        """
        with self._lock:
            if self.open:
                return
            now = self._count()
            self._failed.append((self._calls, now, self._calls + CALLS_JUDGED * crowd))
            self.failures = len(self._failed)
            opens = self.failures >= FAILURES_TO_OPEN or self._in_a_row()
            if opens:
                self._open(cause, now)
        if opens:
            self._report_opening(cause)
        else:
            self._on_doubt()

    def succeeded(self) -> None:
        """Count a call that succeeded. This is needed only while ``failures`` is not 0."""
        with self._lock:
            self._count()
            self.failures = len(self._failed)

    def _count(self) -> float:
        """Count a call, forget the failures before the last ones, and return the monotonic seconds."""
        now = monotonic()
        self._calls += 1
        if self._failed:
            since = now - self._span
            self._failed = [failure for failure in self._failed if failure[1] >= since and failure[2] > self._calls]
        return now

    def _in_a_row(self) -> bool:
        """Return whether none of the last few calls succeeded."""
        before = self._calls - FAILURES_IN_A_ROW
        return self.failures >= FAILURES_IN_A_ROW and self._failed[-FAILURES_IN_A_ROW][0] > before

    def _open(self, cause: str, now: float) -> None:
        self.open, self.opened_at = True, now
        self.openings += 1
        self.cause = _word(cause)

    def _report_opening(self, cause: str) -> None:
        text = "%s is away (%s); %s until it is back."
        self._say.warning(_word(cause), text, self._name, cause, self._consequence)
        self._on_open(cause)

    def trip(self, cause: str) -> None:
        """
        Open the breaker at once, because the caller is sure that the store is unavailable.

        Args:
            cause: One word, then details after a colon. If the breaker is open already, a new word is logged.
        """
        with self._lock:
            was_open = self.open
            if not was_open:
                self._open(cause, monotonic())
        if was_open:
            self._update_cause(cause)
        else:
            self._report_opening(cause)

    def _update_cause(self, cause: str) -> None:
        if _word(cause) != self.cause:
            self.cause = _word(cause)
            self._say.warning(_word(cause), "%s is still away, for another cause now (%s).", self._name, cause)

    def close(self) -> None:
        """Close the breaker, so that the store is used again."""
        with self._lock:
            was_open, since = self.open, self.opened_at
            self.open, self.opened_at, self.failures = False, 0.0, 0
            self._failed.clear()
        if was_open:
            text = "%s is back after %.1f s and %s again."
            self._say.warning("back", text, self._name, monotonic() - since, self._resumes)


def jittered(longest: float, least: float = 0.5) -> float:
    """Return a random part of *longest*, at least *least* of it, so that instances do not all return at once."""
    return longest * chance.uniform(least, 1.0)


def _word(cause: str) -> str:
    return cause.partition(":")[0]
