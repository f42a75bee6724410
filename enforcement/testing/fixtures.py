"""Fixtures for pytest, enabled by ``pytest_plugins = ["enforcement.testing"]``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

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
    async_fixture = pytest.fixture  # type: ignore[assignment]  # which anyio's plugin takes

# A budget that a busy machine keeps: what is tested is the limit, and not the machine.
TIMEOUT_SECONDS = 0.25


@pytest.fixture(scope="session")
def sluicegate_server() -> Iterator[ValkeyServer]:
    """One real server for the whole session, on a free port of the loopback address."""
    # Each change is in its file before it is answered, so that a kill loses nothing.
    with ValkeyServer(config={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture
def sluicegate_store(sluicegate_server: ValkeyServer) -> Store:
    """The store, empty."""
    store = Store(sluicegate_server)
    store.clear()
    return store


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at the beginning of the year 2100 until it is moved."""
    return Clock()


@pytest.fixture
def published(sluicegate_store: Store) -> Iterator[Published]:
    """What the store holds for its enforcers: at first one project, without a policy."""
    published = Published(sluicegate_store.url)
    published.globally(None)
    published.project()
    yield published
    published.close()


@pytest.fixture
def limiter(sluicegate_store: Store, published: Published, clock: Clock) -> Iterator[Limiter]:
    """A limiter for threads, on the test's clock."""
    limiter = Limiter(sluicegate_store.url, timeout=TIMEOUT_SECONDS, clock=clock)
    limiter.start()
    published.followers.append(limiter)
    yield limiter
    published.followers.remove(limiter)
    limiter.close()


@async_fixture
async def async_limiter(sluicegate_store: Store, published: Published, clock: Clock) -> AsyncIterator[aio.Limiter]:
    """A limiter for asyncio, on the test's clock; with pytest-asyncio or anyio."""
    limiter = aio.Limiter(sluicegate_store.url, timeout=TIMEOUT_SECONDS, clock=clock)
    await limiter.start()
    published.followers.append(limiter)
    yield limiter
    published.followers.remove(limiter)
    await limiter.close()


@pytest.fixture
def outage(sluicegate_store: Store, published: Published) -> Outage:
    """Takes the store away while a block runs; see :class:`~enforcement.testing.stores.Outage`."""
    return Outage(sluicegate_store.server, published.followers)
