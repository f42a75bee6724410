"""Processes of 0.2.0 and of this version beside each other, on one store."""

import pytest

from enforcement import Limiter
from enforcement.lua import LIBRARY_NAME
from tests import earlier
from tests.enforcement.world import fixed

QUOTA = 5
LIMITS = [
    fixed(QUOTA),
    {"name": "log", "algorithm": "sliding_log", "quota": 9, "window_seconds": 3_600},
    {"name": "each", "algorithm": "fixed_window", "quota": 9, "window_seconds": 3_600, "partition_by": ["ip"]},
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Give the library of 0.2.0."""
    return earlier.library_of_0_2(tmp_path_factory.mktemp("earlier"))


def libraries(world):
    """Return the names of the function libraries that the store has."""
    return {row[row.index("library_name") + 1] for row in world.client.function_list()}


def test_old_and_new_processes_decide_beside_each_other(server, world, library):
    """Both by the store. Each generation counts for itself, so at most twice the quota pass in such a window."""
    secret, attributes = world.everything(*LIMITS), {"ip": "192.0.2.1"}
    calls = [(secret, 1, attributes)] * (QUOTA + 1)
    with Limiter(server.url, timeout=2.0) as limiter:
        first = limiter.check(secret, attributes=attributes)
        old = earlier.check(library, server.url, *calls)
        new = [limiter.check(secret, attributes=attributes) for _ in range(QUOTA)]

    assert [row[0] for row in old] == [True] * QUOTA + [False]
    assert {row[1] for row in old} == {"store"}
    assert [first.allowed, *(decision.allowed for decision in new)] == [True] * QUOTA + [False]
    assert {first.source, *(decision.source for decision in new)} == {"store"}
    assert libraries(world) == {"sluicegate_2", LIBRARY_NAME}
