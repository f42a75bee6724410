"""The conformance vectors through both limiters, and through every door."""

from collections import Counter
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
# Every run sees all scenarios at the two limiters that all doors use. The arithmetic of an algorithm, and what
# thousands of requests add up to, is the store's doing. What a door makes of a decision differs in these files.
OF_DOORS = ("concurrency", "headers", "refunds", "reserve_settle", "several_limits")
OF_EACH_OTHER_FILE = 2
MANY = 100


def of_doors(vectors: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the scenarios that every run sends through every door."""
    seen: Counter[str] = Counter()
    for vector in vectors:
        file, _, _ = vector["id"].partition("/")
        if sum(step.get("count", 1) for step in vector["steps"]) <= MANY:
            seen[file] += 1
            if file in OF_DOORS or seen[file] <= OF_EACH_OTHER_FILE:
                yield vector


def through(doors: list[Any], vectors: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield each vector with each door; at other doors than the limiters some of them, and all in a full run."""
    always = {vector["id"] for vector in of_doors(vectors)}
    for vector in vectors:
        for door in doors:
            if vector["id"] in always or door in (SyncDoor, AsyncDoor):
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
