"""
List the loggers of this library, and limit how often they repeat themselves.

All loggers are children of ``sluicegate``. None of them has a handler of its own:

=========================== ==================================================================================
``sluicegate.failover``     the store became unavailable, has a new cause of that, or is available again; durable
                            counters were lost or restored
``sluicegate.agent``        the background thread loads documents and sends heartbeats and usage, or the store refuses
                            one of these
``sluicegate.disk``         the copy of the documents on disk cannot be written or read
``sluicegate.cluster``      the slot table of a cluster cannot be read
``sluicegate.limiter``      a limit of a policy counts nothing, because the costs of a request do not name its unit
``sluicegate.reservations`` a stream of a provider reported no usage, so that its estimate stays charged, or an answer
                            used more than a bound had reserved
``sluicegate.slots``        slots of ``concurrency`` limits were lost or not renewed
``sluicegate.denials``      each denial of an integration with its reason and id, at the level ``INFO``
``sluicegate.doors``        an integration cannot find out the address of a client, so such clients share one counter,
                            or charges a request twice
``sluicegate.proxy``        the ready-made proxy
``sluicegate.service``      the decision service cannot enforce a limit, is asked by a proxy that it does not trust, or
                            has failed
=========================== ==================================================================================

No line contains a credential, and no line is written for each request that passes.
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
    Logs at most one warning for each cause in some seconds, and the number of suppressed warnings.

    A store that fails and recovers many times a second must not fill the disk or delay requests by slow logging.

    Args:
        logger: The logger to write to.
        clock: Returns monotonic seconds.
        seconds: How long the next warning of a cause is suppressed.
    """

    def __init__(
        self, logger: logging.Logger, clock: Callable[[], float] = monotonic, seconds: float = QUIET_SECONDS
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._seconds = seconds
        self._last: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def warning(self, cause: str, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a warning, with the traceback of *exc_info*, unless one of the same *cause* was logged a moment ago."""
        suppressed = self._suppressed(cause)
        if suppressed is None:
            return
        more = f" ({suppressed} similar warnings were suppressed.)" if suppressed else ""
        self._logger.warning(message + more, *args, exc_info=exc_info)

    def _suppressed(self, cause: str) -> int | None:
        """
        Return how many warnings of a cause were suppressed since the last logged one, or None to suppress this one.
        """
        now = self._clock()
        with self._lock:
            at, suppressed = self._last.pop(cause, (None, 0))
            if at is not None and now - at < self._seconds:
                self._last[cause] = at, suppressed + 1
                return None
            # A cause may contain text from the store, so there may be any number of them.
            if len(self._last) >= MAX_CAUSES:
                del self._last[next(iter(self._last))]
            self._last[cause] = now, 0
        return suppressed
