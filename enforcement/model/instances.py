"""What the fleet knows about one instance: its state, and how long its heartbeat counts."""

from __future__ import annotations

from typing import Final

STARTING: Final = "starting"
OK: Final = "ok"
DEGRADED: Final = "degraded"
STATES: Final = (STARTING, OK, DEGRADED)
"""The states of an instance: without documents, as it should be, or without the store."""

HEARTBEAT_LIFETIME_MS: Final = 15_000
"""An instance whose last heartbeat is older counts as gone."""
