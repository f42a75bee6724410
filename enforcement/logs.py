"""
The loggers of this library, and a limit on how often they repeat themselves.

All loggers are children of ``sluicegate``. None of them has a handler of its own:

=========================== ==================================================================================
``sluicegate.failover``     the store is unavailable, is so for a new cause, or is back; durable counters are lost,
                            or back
``sluicegate.agent``        documents, heartbeats, usage: what the background thread does, and what the store refuses
``sluicegate.disk``         the last good documents on disk
``sluicegate.cluster``      tables of slots that could not be read
``sluicegate.slots``        slots of ``concurrency`` limits that were lost or not renewed
``sluicegate.doors``        clients whose address an integration cannot know, and which therefore share one counter
``sluicegate.proxy``        the ready-made proxy
=========================== ==================================================================================

No line contains a credential, and no line is written for each request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

QUIET_SECONDS: Final = 1.0
MAX_CAUSES: Final = 100


class RateLimitedLogger:
    """
    Logs at most one warning a second for each cause, and how many were left out.

    A store that fails and returns many times a second must neither fill a disk nor delay requests by slow logging.

    Args:
        logger: Writes the lines.
        clock: Returns monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def warning(self, cause: str, text: str, *args: object) -> None:
        """Log a warning, unless one of the same *cause* was logged within the last second."""
        left_out = self._left_out(cause)
        if left_out is None:
            return
        more = f" ({left_out} such lines were left out.)" if left_out else ""
        self._logger.warning(text + more, *args)

    def _left_out(self, cause: str) -> int | None:
        """Return how many lines were left out since the last one. None: leave this one out, too."""
        now = self._clock()
        with self._lock:
            at, left_out = self._last.pop(cause, (None, 0))
            if at is not None and now - at < QUIET_SECONDS:
                self._last[cause] = at, left_out + 1
                return None
            if len(self._last) >= MAX_CAUSES:
                del self._last[next(iter(self._last))]
            self._last[cause] = now, 0
        return left_out


__all__ = ["RateLimitedLogger"]
