"""Real stores for the library's tests."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from enforcement import Limiter, aio
from enforcement.embedded import ValkeyServer
from enforcement.engine import parts
from enforcement.leases import manager
from enforcement.state import lease
from enforcement.store import connection
from enforcement.testing import Store
from tests.enforcement.faults import FaultyPath
from tests.enforcement.leased import LeaseClock
from tests.enforcement.topologies import Cluster, execute
from tests.enforcement.world import World, eventually

# Seconds. A busy machine shall not make a decision fail over.
PATIENT = {"timeout": 1.0, "lookup": 1.0}


@pytest.fixture
def busy_host() -> None:
    """Let calls last longer on a host that is too busy, as they do."""


@pytest.fixture(autouse=True)
def idle_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no call last longer because this machine is busy: tests bound what a decision may take."""
    if "busy_host" not in request.fixturenames:
        monkeypatch.setattr(connection, "MOST_LAG_SECONDS", 0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """Give one server a module; tests that harm it start their own."""
    with ValkeyServer(persistent=False) as server:
        yield server
        server.kill()  # an orderly end takes a tenth of a second, and nobody needs what it has


@pytest.fixture
def world(server: ValkeyServer) -> World:
    """Give an empty store that has the function library, and a publisher for it."""
    Store(server).clear()
    return World(server.url)


@pytest.fixture
def make_limiter() -> Iterator[Callable[..., Limiter]]:
    """``make_limiter(server.url, instance="proxy-1")``: a limiter, which is closed after the test."""
    with ExitStack() as made:
        yield lambda url, **options: made.enter_context(closing(Limiter(url, **PATIENT | options)))


@pytest.fixture
def limiter(make_limiter: Callable[..., Limiter], server: ValkeyServer, world: World) -> Limiter:
    """Give a limiter that has whatever is published to the world."""
    return world.follow(make_limiter(server.url))


@pytest.fixture
async def aio_limiter(server: ValkeyServer, world: World) -> AsyncIterator[aio.Limiter]:
    limiter = aio.Limiter(server.url, **PATIENT)
    yield limiter
    await limiter.close()


@pytest.fixture
def path(server: ValkeyServer, world: World) -> Iterator[FaultyPath]:
    """Give a way to the server that a test may disturb."""
    path = FaultyPath(server.port)
    yield path
    path.close()


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
def lease_clock(monkeypatch: pytest.MonkeyPatch) -> LeaseClock:
    """Give the clock of all leases, which stands still unless the test sets it."""
    clock = LeaseClock()
    for module in (lease, manager, parts):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """Give a server that a test may freeze, kill and restart."""
    with ValkeyServer() as server:
        yield server
        server.kill()


@pytest.fixture
def no_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let limiters that start wait a moment, and not a second, for documents that nobody has published."""
    for start in (Limiter.start, aio.Limiter.start):
        monkeypatch.setattr(start, "__defaults__", (0.02,))


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """Give one cluster a worker: its nodes take writes two seconds after their start at the earliest."""
    with Cluster(replicas=False) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """
    Give three empty primaries without the function library. A test may kill and freeze them, and change the settings
    that are set here; a slot that it moves it moves back.
    """
    servers = shared_cluster.servers
    for server in servers:
        if not server.running:
            server.start()
        server.thaw()
        execute(
            server,
            "CONFIG",
            "SET",
            *("maxmemory", "0"),
            *("maxmemory-policy", "noeviction"),
            *("cluster-announce-port", "0"),
        )
    assert eventually(shared_cluster.healthy, 20)
    ports = {server.port for server in servers}
    for server in servers:
        # The others hear of an announced port a moment later.
        assert eventually(lambda server=server: {row[2][1] for row in execute(server, "CLUSTER", "SLOTS")} == ports, 20)
        execute(server, "FLUSHALL")
        execute(server, "FUNCTION", "FLUSH")
        execute(server, "CONFIG", "RESETSTAT")
    return shared_cluster
