"""The conformance vectors through both limiters, and through every door."""

from collections.abc import Iterator
from typing import Any

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
from tests.scale import scale


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
POLICY_DOORS = [ASGIPolicyDoor, WSGIPolicyDoor]
# What thousands of requests add up to is the store's doing. Every run sees it at the two limiters that all doors use.
MANY = 100


def through(doors: list[Any], vectors: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield each vector with each door; long ones at the limiters, and at the other doors in a full run."""
    for vector in vectors:
        is_long = sum(step.get("count", 1) for step in vector["steps"]) > MANY
        for door in doors:
            if not is_long or door in (SyncDoor, AsyncDoor):
                yield pytest.param(vector, door, id=f"{vector['id']}-{door.__name__}")
            elif scale(False, True):
                yield pytest.param(vector, door, id=f"{vector['id']}-{door.__name__}", marks=pytest.mark.proof)


@pytest.mark.parametrize(("vector", "door"), list(through(DOORS, load_vectors())))
def test_vector(vector, door, url, processes):
    """Every door answers every scenario as the design says."""
    Scenario({**vector, "id": f"{door.__name__}/{vector['id']}"}, door, url, processes).run()


@pytest.mark.parametrize(("vector", "door"), list(through(POLICY_DOORS, policy_vectors())))
def test_vector_as_a_published_policy(vector, door, url, processes):
    """The same limits, published for a token, mean the same at the doors that check tokens."""
    Scenario({**vector, "id": f"{door.__name__}/{vector['id']}"}, door, url, processes).run()
