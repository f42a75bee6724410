"""The background thread of an enforcer whose store is a cluster, of which a part may be away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from enforcement.engine.agent import FIRST_PROBE_SECONDS, Agent, logger
from enforcement.store.client import STORE_ERRORS


class ClusterAgent(Agent):
    """
    The agent of a cluster. Each duty may fail alone, for its node is away and others are not: it is tried again when it
    is due, and requests are decided as far as their own nodes answer. Finding nodes again is not its business.
    """

    def _begin(self) -> None:
        super()._begin()
        self._failing: dict[str, str] = {}
        self._away_since_us: int | None = None

    @property
    def state(self) -> str:
        """As of any agent; ``degraded`` while a node of the cluster is away."""
        return super().state if self._away_since_us is None else "degraded"

    def _turn(self) -> None:
        if not self._hooks.is_open():
            self._away_since_us = None
        elif self._away_since_us is None:
            self._away_since_us = self.now_us()
        self._settled()
        self._work()

    def _heartbeat(self) -> Mapping[str, Any]:
        return {**super()._heartbeat(), "degraded_since_us": self._away_since_us}

    def _attempt(self, duty: str, act: Callable[[], None]) -> None:
        try:
            super()._attempt(duty, act)
        except STORE_ERRORS as exc:
            if self._failing.get(duty) != type(exc).__name__:
                logger.warning("The node for the %s is away (%s: %s).", duty, type(exc).__name__, exc)
            self._failing[duty] = type(exc).__name__
            if duty == "log":
                self._change_log.close()
                self._stopping.wait(FIRST_PROBE_SECONDS)
        else:
            if self._failing.pop(duty, None) is not None:
                logger.warning("The node for the %s is back.", duty)

    def _lose(self, reason: str) -> None:
        logger.warning("The cluster did not answer as it should (%s).", reason)
        self._stopping.wait(FIRST_PROBE_SECONDS)


__all__ = ["ClusterAgent"]
