"""The handling of failed duties of the background thread."""

from __future__ import annotations

import logging
from typing import Final

from enforcement.store.cluster.slot_map import SlotMap

logger = logging.getLogger("sluicegate.agent")


FAILURES_TO_WARN: Final = 3
"""In a row. A store that is unavailable is reported by its breaker before."""


class DutyFailures:
    """Counts the failures of each duty of the background thread, which tries a duty again when it is due."""

    def __init__(self) -> None:
        self.reset()

    def failed(self, duty: str, exc: Exception) -> None:
        """Log the failure of a duty, and warn once if the duty failed several times in a row."""
        count = self._in_a_row[duty] = self._in_a_row.get(duty, 0) + 1
        logger.info("The %s failed (%s: %s).", duty, type(exc).__name__, exc)
        if count == FAILURES_TO_WARN:
            logger.warning("The %s failed %d times in a row (%s: %s).", duty, count, type(exc).__name__, exc)

    def succeeded(self, duty: str) -> None:
        """Count from 0 again, and log that a duty works again if a warning was logged."""
        if self._in_a_row.pop(duty, 0) >= FAILURES_TO_WARN:
            logger.warning("The %s works again.", duty)

    def is_degraded(self) -> bool:
        """Return False. The subclass for a cluster returns whether a node is unavailable."""
        return False

    def reset(self) -> None:
        """Clear the failures of earlier duties, as the thread is about to start."""
        self._in_a_row: dict[str, int] = {}


class NodeDutyFailures(DutyFailures):
    """
    Handles failed duties on a cluster, where a duty may fail alone because its node is unavailable.

    Such a duty is tried again when it is due.

    Attributes:
        failing: For each duty that failed last time, the name of the error.
    """

    def __init__(self, slot_map: SlotMap) -> None:
        self._slot_map = slot_map
        super().__init__()

    def failed(self, duty: str, exc: Exception) -> None:
        """Log the failure of a duty, once for each kind of error in a row."""
        error = type(exc).__name__
        if self.failing.get(duty) != error:
            logger.warning("The node for the %s is away (%s: %s).", duty, error, exc)
        self.failing[duty] = error

    def succeeded(self, duty: str) -> None:
        """Log that a duty works again after it failed."""
        if self.failing.pop(duty, None) is not None:
            logger.warning("The node for the %s is back.", duty)

    def is_degraded(self) -> bool:
        """Return whether a node is unavailable."""
        return bool(self._slot_map.away())

    def reset(self) -> None:
        """Clear the failures of earlier duties."""
        self.failing: dict[str, str] = {}
