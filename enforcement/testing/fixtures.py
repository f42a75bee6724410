"""Fixtures for pytest. ``pytest_plugins = ["enforcement.testing"]`` enables them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from enforcement.extras import Requirement

with Requirement("This fixture", "pytest"):
    import pytest

from enforcement import aio
from enforcement.embedded import ValkeyServer
from enforcement.limiter import Limiter
from enforcement.testing.clocks import Clock
from enforcement.testing.publisher import Published
from enforcement.testing.stores import Outage, Store

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:
    async_fixture = pytest.fixture  # type: ignore[assignment]  # The plugin of anyio runs it.

# A busy machine keeps this time budget, too. The tests are about limits, not about the machine.
TIMEOUT_SECONDS = 0.25


@pytest.fixture(scope="session")
def sluicegate_server() -> Iterator[ValkeyServer]:
    """Yield a real server for the whole session, on a free loopback port."""
    # The server writes each change to its file before the reply, so that a kill loses nothing.
    with ValkeyServer(config={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture
def sluicegate_store(sluicegate_server: ValkeyServer) -> Store:
    """Return an empty store."""
    store = Store(sluicegate_server)
    store.clear()
    return store


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still at the beginning of the year 2100 until the test moves it."""
    return Clock()


@pytest.fixture
def published(sluicegate_store: Store) -> Iterator[Published]:
    """Yield the documents in the store, which a test can change. At first there is one project without a policy."""
    published = Published(sluicegate_store.url)
    published.globally(None)
    published.project()
    yield published
    published.close()


@pytest.fixture
def limiter(sluicegate_store: Store, published: Published, clock: Clock) -> Iterator[Limiter]:
    """Yield a started limiter for threads that follows the clock of the test."""
    limiter = Limiter(sluicegate_store.url, timeout=TIMEOUT_SECONDS, clock=clock)
    limiter.start()
    published.followers.append(limiter)
    yield limiter
    published.followers.remove(limiter)
    limiter.close()


@async_fixture
async def async_limiter(sluicegate_store: Store, published: Published, clock: Clock) -> AsyncIterator[aio.Limiter]:
    """Yield a started limiter for asyncio that follows the clock of the test. It needs pytest-asyncio or anyio."""
    limiter = aio.Limiter(sluicegate_store.url, timeout=TIMEOUT_SECONDS, clock=clock)
    await limiter.start()
    published.followers.append(limiter)
    yield limiter
    published.followers.remove(limiter)
    await limiter.close()


@pytest.fixture
def outage(sluicegate_store: Store, published: Published) -> Outage:
    """
    Return a callable that makes the store unavailable for a block, see :class:`~enforcement.testing.stores.Outage`.
    """
    return Outage(sluicegate_store.server, published.followers)
