"""Whether a failure of one duty of the background thread means that the whole store is unavailable."""

from __future__ import annotations

import logging

from enforcement.store.cluster.slot_map import SlotMap

logger = logging.getLogger("sluicegate.agent")


class DutyFailures:
    """
    Handles failed duties of the background thread if the store is available or unavailable as a whole.

    No duty fails alone then. Each failure is raised, and the thread waits for the store.
    """

    def failed(self, duty: str, exc: Exception) -> None:
        """Raise *exc*. The subclass for a cluster logs it and returns, so that the other duties go on."""
        raise exc

    def succeeded(self, duty: str) -> None:
        """Do nothing when a duty succeeded. The subclass for a cluster logs that its node is back."""

    def is_degraded(self) -> bool:
        """Return False. The subclass for a cluster returns whether a node is unavailable."""
        return False

    def reset(self) -> None:
        """Do nothing. The subclass for a cluster clears the failures of earlier duties."""


class NodeDutyFailures(DutyFailures):
    """
    Handles failed duties on a cluster, where a duty may fail alone because its node is unavailable.

    Such a duty is tried again when it is due.

    Attributes:
        failing: For each duty that failed last time, the name of the error.
    """

    def __init__(self, slot_map: SlotMap) -> None:
        self._slot_map = slot_map
        self.failing: dict[str, str] = {}

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
        self.failing = {}


__all__ = ["DutyFailures", "NodeDutyFailures"]
