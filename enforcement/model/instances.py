"""Name the states of an instance, and say how long its heartbeat is valid."""

from __future__ import annotations

from typing import Final

STARTING: Final = "starting"
OK: Final = "ok"
DEGRADED: Final = "degraded"
STATES: Final = (STARTING, OK, DEGRADED)
"""The states of an instance: without documents, as it should be, or without the store."""

HEARTBEAT_LIFETIME_MS: Final = 15_000
"""An instance whose last heartbeat is older counts as gone."""
