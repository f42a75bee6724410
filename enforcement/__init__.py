"""
Enforce rate limits and quotas over a whole fleet of processes.

>>> from enforcement import Limit, Limiter, Denied

Importing this package does no I/O. The modules that decide are loaded when a name of theirs is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.matching import Match

if TYPE_CHECKING:
    from enforcement.limiter import Admission, Limiter
    from enforcement.model.documents import Policy
    from enforcement.model.tokens import Anonymous
    from enforcement.plan.decision import Decision, Denied
    from enforcement.plan.limit_state import LimitState
    from enforcement.store.errors import StoreError

    __version__: str

__all__ = [
    "Admission",
    "Anonymous",
    "Decision",
    "Denied",
    "InvalidLimit",
    "Limit",
    "LimitState",
    "Limiter",
    "Match",
    "Policy",
    "StoreError",
    "__version__",
]

_LATER = {
    "Anonymous": "enforcement.model.tokens",
    "Policy": "enforcement.model.documents",
    "Decision": "enforcement.plan.decision",
    "Denied": "enforcement.plan.decision",
    "LimitState": "enforcement.plan.limit_state",
    "Admission": "enforcement.limiter",
    "Limiter": "enforcement.limiter",
    "StoreError": "enforcement.store.errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("enforcement.settings").VERSION
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    """Return a sorted list of the public names in this module, also of those that are loaded later."""
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
