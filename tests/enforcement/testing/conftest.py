"""The fixtures that the library ships, for its own tests of them."""

from enforcement.testing import (  # noqa: F401
    async_limiter,
    clock,
    limiter,
    outage,
    published,
    sluicegate_server,
    sluicegate_store,
)
