"""Processes of 0.2.0 and of this version beside each other, on one store."""

import pytest

from enforcement import Limiter
from enforcement.lua import LIBRARY_NAME
from enforcement.model.tokens import mint
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


def test_an_old_process_refuses_a_project_with_an_anonymous_policy_and_no_other(server, world, library):
    """It does not know the field, and what it cannot read is not "unlimited". Other documents have no such field."""
    closed, admits = mint("live"), mint("live")
    projects = {
        **world.project("pol_api", ident="proj_1", anonymous_policy="pol_api"),
        **world.project("pol_api", ident="proj_2", slug="other"),
    }
    documents = {"global": {"schema": 1, "policy": None}, **world.policy("api", fixed(QUOTA)), **projects}
    world.publish(documents, {closed: world.token(), admits: world.token(project="proj_2")})

    old = earlier.check(library, server.url, (closed, 1, {}), (admits, 1, {}))

    assert [(allowed, reason) for allowed, _, reason in old] == [(False, "degraded_denied"), (True, "ok")]
