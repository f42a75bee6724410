"""The conformance vectors through both limiters, and through every door."""

import pytest

from enforcement.embedded import ValkeyServer
from tests.enforcement.doors.policy_vectors import ASGIPolicyDoor, WSGIPolicyDoor, policy_vectors
from tests.enforcement.doors.vector_doors import (
    DjangoDoor,
    DrfDoor,
    FastAPIDoor,
    FlaskDoor,
    StarletteDoor,
    WaitingDoor,
)
from tests.enforcement.vectors import AsyncDoor, Scenario, SyncDoor, load_vectors, pool


@pytest.fixture(scope="module")
def url():
    """Give a store that starts empty and without the function library."""
    with ValkeyServer(persistent=False) as server:
        yield server.url


@pytest.fixture(scope="module")
def processes(url):
    """Give processes for bursts."""
    yield from pool(url)


DOORS = [SyncDoor, AsyncDoor, WaitingDoor, FastAPIDoor, StarletteDoor, DjangoDoor, FlaskDoor, DrfDoor]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("vector", load_vectors(), ids=lambda vector: vector["id"])
def test_vector(vector, door, url, processes):
    """Every door answers every scenario as the design says."""
    Scenario({**vector, "id": f"{door.__name__}/{vector['id']}"}, door, url, processes).run()


@pytest.mark.parametrize("door", [ASGIPolicyDoor, WSGIPolicyDoor])
@pytest.mark.parametrize("vector", policy_vectors(), ids=lambda vector: vector["id"])
def test_vector_as_a_published_policy(vector, door, url, processes):
    """The same limits, published for a token, mean the same at the doors that check tokens."""
    Scenario({**vector, "id": f"{door.__name__}/{vector['id']}"}, door, url, processes).run()
