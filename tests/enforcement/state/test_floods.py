"""A client that invents values: how much it can make the store and each process keep, and whom that harms."""

import json
import time

import pytest

from enforcement import Limiter
from enforcement.model.algorithms import FixedWindow, Reference
from enforcement.model.partitions import DEFAULT_CAP
from enforcement.model.tokens import digest, mint
from enforcement.state.published import PublishedState
from tests.enforcement.world import PROJECT, fixed
from tests.forks import Forked
from tests.scale import scale

# What a project may have counters for, and many more: whatever keeps something of every value grows without end.
CAP, VALUES = scale((2_000, 8_000), (DEFAULT_CAP, 1_000_000))
LONGEST_SECONDS = scale(300, 1_800)


def flood(server, secret, values, *options):
    """Let a process of its own ask for so many values; return what it told, line by line."""
    with Forked(["-m", "tests.enforcement.flood", server.url, secret, str(values), *options]) as process:
        told, _ = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 0
    return [json.loads(line) for line in told.splitlines()]


def publish(world, cap=DEFAULT_CAP):
    """Publish a project with this cap and one beside it; return a secret of each."""
    attacker, victim = mint("live"), mint("live")
    world.publish(
        {
            "global": {"schema": 1, "policy": None},
            **world.policy("api", fixed(1_000_000, name="user", partition_by=["user"])),
            **world.project(partition_cap=cap),
            **world.project(ident="proj_2"),
        },
        {attacker: world.token("pol_api"), victim: world.token("pol_api", project="proj_2")},
    )
    return attacker, victim


def counters(world, project):
    """Return how many counters of a project's fixed windows there are."""
    return len(world.client.keys(f"sg:{{{project}}}:c:*"))


@pytest.mark.proof
def test_a_flood_of_values_leaves_as_many_counters_as_the_cap_says(server, world, busy_host):
    """And one that the others share. Another project loses nothing, and the process grows by 50 MB at most."""
    attacker, victim = publish(world, cap=CAP)
    with Limiter(server.url, timeout=1.0) as limiter:
        before = [limiter.check(victim, attributes={"user": f"v{number}"}).remaining for number in range(100)]
        told = flood(server, attacker, VALUES)
        after = [limiter.check(victim, attributes={"user": f"v{number}"}).remaining for number in range(100)]

    assert counters(world, PROJECT) == CAP + 1
    assert (before, after) == ([999_999] * 100, [999_998] * 100)
    assert counters(world, "proj_2") == 100
    assert told[-1]["mb"] - told[0]["mb"] <= 50
    assert (told[-1]["source"], told[-1]["overflow"]) == ("store", True)


def test_control_without_a_cap_to_speak_of_each_value_has_a_counter(server, world):
    """The flood is real: a cap of a million stops none of its values."""
    attacker, _ = publish(world, cap=1_000_000)
    flood(server, attacker, CAP + 1_000)

    assert counters(world, PROJECT) == CAP + 1_000


def seconds(act, numbers):
    """Return the processor time of *act* for all of these numbers."""
    began = time.thread_time()
    for number in numbers:
        act(number)
    return time.thread_time() - began


def test_a_full_fallback_is_as_quick_as_an_empty_one():
    """Letting go of the counter that was not charged for longest takes no search."""
    reference = Reference()

    def keep(number):
        reference._write(f"k{number}", FixedWindow())

    filling = seconds(keep, range(50_000))
    replacing = seconds(keep, range(50_000, 150_000)) / 2

    assert len(reference.counters) == 50_000
    assert "k0" not in reference.counters
    assert replacing < 5 * filling


def test_unknown_tokens_fill_no_memory_and_wash_out_no_known_one():
    """What is remembered of tokens that are none is bounded, and kept apart from those that are."""
    documents = PublishedState()
    known = digest(mint("live"))
    text = json.dumps(
        {"schema": 1, "id": "tok_1", "project": PROJECT, "name": "t", "policy": None, "revoked": False,
         "expires_at_us": None, "overrides": []}
    )  # fmt: skip
    documents.remember(known, text, 0)

    def ask(number):
        documents.remember(f"{number:064x}", None, 0)

    filling = seconds(ask, range(10_000))
    replacing = seconds(ask, range(10_000, 40_000)) / 3

    assert len(documents._tokens._unknown) == 10_000
    assert documents.find(known).token.id == "tok_1"
    assert replacing < 5 * filling


@pytest.mark.parametrize("proven", [True, False])
def test_values_that_come_once_wash_out_no_plan_that_came_twice(server, world, proven):
    """A value that was asked for before the flood is at hand after it; one that came once has made room."""
    attacker, _ = publish(world)
    with Limiter(server.url, timeout=1.0) as limiter:
        for _ in range(1 + proven):
            limiter.check(attacker, attributes={"user": "regular"})
        plans = limiter._engine.planner.find(attacker).plan
        plan_cache = limiter._engine.planner.plan_cache
        for number in range(3_000):
            plan_cache.put((plans.serial, (0, f"flood-{number}")), limiter._engine.planner.plan_of(
                limiter._engine.planner.find(attacker), {"user": f"flood-{number}"}
            ))  # fmt: skip
        kept = plan_cache.get((plans.serial, (0, "regular")))

    assert (kept is not None) == proven
