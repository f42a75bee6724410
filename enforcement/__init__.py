"""
Sluicegate's enforcement: rate limits and quotas that hold over a whole fleet of processes.

>>> from enforcement import Limit, Limiter, Denied

Importing this package does no I/O, and loads what talks to the store only when a limiter is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enforcement.decision import Decision, Denied, LimitState
from enforcement.limits import InvalidLimit, Limit, Match, Policy

if TYPE_CHECKING:
    from enforcement.limiter import Admission, Limiter

__all__ = ["Admission", "Decision", "Denied", "InvalidLimit", "Limit", "LimitState", "Limiter", "Match", "Policy"]


def __getattr__(name: str) -> Any:
    if name in ("Limiter", "Admission"):
        from enforcement import limiter

        return getattr(limiter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
