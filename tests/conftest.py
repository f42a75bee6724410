from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from enforcement.embedded import ValkeyServer
from enforcement.failover import outage_copy

if TYPE_CHECKING:
    import redis

pytest_plugins = ["tests.browsers", "tests.steady", "tests.tiers"]

HOUR_SECONDS = 3_600
NEAR_THE_HOUR_SECONDS = 15


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Set how Hypothesis runs before a module that uses it is imported. Its own import takes a third of a second."""
    if not isinstance(collector, pytest.Module) or "hypothesis" not in collector.path.read_text(encoding="utf-8"):
        return
    from hypothesis import HealthCheck, settings

    # How long an example takes says more about what else the machine does than about the example.
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


def pytest_runtest_setup() -> None:
    """Begin no test just before a whole hour: windows of hours and days end then, and what is left of them is new."""
    left = HOUR_SECONDS - time.time() % HOUR_SECONDS
    if left < NEAR_THE_HOUR_SECONDS:
        time.sleep(left)


@pytest.fixture(autouse=True, scope="session")
def shared_folder_of_processes() -> Iterator[None]:
    """Let processes that a test starts know of none that another run of the tests starts."""
    with tempfile.TemporaryDirectory(prefix="sg") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(autouse=True)
def no_shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the limiters of a test know of none but those that it makes known to each other."""
    monkeypatch.setattr(outage_copy, "shared_folder", lambda: None)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One real server a test run; take ``store`` instead, which is empty and known to the settings."""
    with ValkeyServer(persistent=False) as server:
        yield server


@pytest.fixture
def store(valkey: ValkeyServer, settings) -> Iterator[ValkeyServer]:
    """An empty store that the control plane uses; a test may freeze, kill or restart it."""
    import redis  # here, since most tests of the library do without

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
    import redis

    with redis.Redis.from_url(store.url, decode_responses=True, protocol=2) as client:
        yield client
