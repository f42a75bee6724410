import time
from collections.abc import Iterator

import pytest
import redis
from django.test import TransactionTestCase
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from enforcement.embedded import ValkeyServer
from tests.emptying import empty

pytest_plugins = ["tests.browsers", "tests.databases", "tests.steady", "tests.tiers"]

# How long an example takes says more about what else the machine does than about the example.
hypothesis_settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy")

HOUR_SECONDS = 3_600
NEAR_THE_HOUR_SECONDS = 15


def pytest_runtest_setup() -> None:
    """Begin no test just before a whole hour: windows of hours and days end then, and what is left of them is new."""
    left = HOUR_SECONDS - time.time() % HOUR_SECONDS
    if left < NEAR_THE_HOUR_SECONDS:
        time.sleep(left)


@pytest.fixture(scope="session", autouse=True)
def quick_emptying() -> Iterator[None]:
    """Tests that commit leave an empty database behind in milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty)
        yield


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
