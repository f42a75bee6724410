"""Name the states of an instance, and say how long its heartbeat is valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

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

SLOTS: Final = "slots"
"""The reason of a limit that an instance cannot enforce because it never learns when a request has ended."""
CHARGE_ON: Final = "charge_on"
"""The reason of one that it cannot enforce because it never learns the status of a response."""
GLOBAL: Final = "global"
"""The reason of one that it cannot enforce because its account of the store may not use global counters."""
UNSUPPORTED_REASONS: Final = {
    SLOTS: "counts slots",
    CHARGE_ON: "is charged by the status of the response",
    GLOBAL: "is global, which the account of the store may not count",
}
"""Why an instance cannot enforce a limit, as what follows its name. It refuses requests under it."""

HEARTBEAT_LIFETIME_MS: Final = 15_000
"""An instance whose last heartbeat is older counts as gone."""


def reasons_against(limit: Any) -> Iterator[str]:
    """
    Yield the reasons for which an instance that never sees the response cannot enforce a limit.

    Args:
        limit: A limit, or its row in SQL.
    """
    if limit.algorithm == "concurrency":
        yield SLOTS
    if limit.charge_on:
        yield CHARGE_ON
