from collections.abc import Iterator

import pytest
import redis

from enforcement.embedded import ValkeyServer


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Put the files with browser tests last.

    Playwright's event loop runs in the thread of the tests from the first of them to the end of the run; a test that
    starts a loop of its own could not run after it.
    """
    browsing = {item.path for item in items if "page" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in browsing)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One real server a test run; take ``store`` instead, which is empty and known to the settings."""
    with ValkeyServer(persistent=False) as server:
        yield server


@pytest.fixture
def store(valkey: ValkeyServer, settings) -> Iterator[ValkeyServer]:
    """An empty store that the control plane uses; a test may freeze, kill or restart it."""
    if not valkey.running:
        valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        client.function_flush()
    settings.REDIS_URL = valkey.url
    yield valkey
    if valkey.running:
        valkey.thaw()
    else:
        valkey.start()


@pytest.fixture
def client_of_store(store: ValkeyServer) -> Iterator[redis.Redis]:
    """A plain client that sees what is really in the store."""
    with redis.Redis.from_url(store.url, decode_responses=True, protocol=2) as client:
        yield client
