"""
What the library writes to :mod:`logging`, and how often.

Every logger is a child of ``sluicegate``, and none has a handler of its own:

=========================== ==================================================================================
``sluicegate.failover``     the store is away, or back: one line each, and one more where the cause changes; durable
                            counters are lost, or back
``sluicegate.agent``        documents, heartbeats, usage: what the background thread does and is refused
``sluicegate.disk``         the last good documents on disk
``sluicegate.cluster``      tables of slots that could not be read
``sluicegate.slots``        slots of ``concurrency`` limits that were not renewed, or lost
``sluicegate.doors``        clients whose address a door cannot know, and which therefore share one count
``sluicegate.proxy``        the ready-made proxy
=========================== ==================================================================================

No line holds a credential, and no line is written for a single request.
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
    Warns at most once a second for each cause, and says how many such lines were left out.

    A store that comes and goes many times a second must not fill a disk, nor block a request that logs to a slow sink.

    Args:
        logger: Where to.
        clock: Seconds, monotonic.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def warning(self, cause: str, text: str, *args: object) -> None:
        """Log *text*, unless a line for the same *cause* was logged within the last second."""
        left_out = self._left_out(cause)
        if left_out is None:
            return
        more = f" ({left_out} such lines were left out.)" if left_out else ""
        self._logger.warning(text + more, *args)

    def _left_out(self, cause: str) -> int | None:
        """Return how many lines were left out since the last one, or None: this one is to be left out."""
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
