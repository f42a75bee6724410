"""Name the states of an instance, and say how long its heartbeat is valid."""

from __future__ import annotations

from typing import Final

STARTING: Final = "starting"
OK: Final = "ok"
DEGRADED: Final = "degraded"
STATES: Final = (STARTING, OK, DEGRADED)
"""The states of an instance: without documents, as it should be, or in trouble with the store."""

SET_BACK: Final = "set_back"
"""The problem of a degraded instance whose store has an older state than it obeys."""
EVICTING: Final = "evicting"
"""The problem of a degraded instance whose store evicts keys."""
BAD_PRICES: Final = "bad_prices"
"""The problem of a degraded instance that refuses the published prices."""
PROBLEMS: Final = {
    SET_BACK: "the store was set back to an older state, which is not obeyed",
    EVICTING: "the store evicts keys, so counters are lost and limits admit more",
    BAD_PRICES: "the published prices break a rule, so the last good ones stay in use",
}
"""A description of each problem."""

HEARTBEAT_LIFETIME_MS: Final = 15_000
"""An instance whose last heartbeat is older counts as gone."""
