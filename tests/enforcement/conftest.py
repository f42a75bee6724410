"""Real stores for the library's tests."""

from collections.abc import Iterator

import pytest

from enforcement.embedded import ValkeyServer
from enforcement.testing import Store
from tests.enforcement.world import World


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """Give one server a module; tests that harm it start their own."""
    with ValkeyServer(persistent=False) as server:
        yield server


@pytest.fixture
def world(server: ValkeyServer) -> World:
    """Give an empty store that has the function library, and a publisher for it."""
    Store(server).clear()
    return World(server.url)


@pytest.fixture
def documents(request: pytest.FixtureRequest) -> None:
    """Publish documents to the store of a test: a limiter that starts waits a second for them where there are none."""
    if "world" in request.fixturenames:
        world = request.getfixturevalue("world")
    elif "own_server" in request.fixturenames:
        world = World(request.getfixturevalue("own_server").url)
    else:
        return
    world.publish({"global": {"schema": 1, "policy": None}})


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """Give a server that a test may freeze, kill and restart."""
    with ValkeyServer() as server:
        yield server
        if server.running:
            server.thaw()
