"""Requests without a token, on a real store."""

import asyncio
import json

import pytest

from enforcement import Anonymous, Denied, Limiter, aio
from enforcement.model.tokens import mint
from tests.enforcement.world import World, eventually, fixed

SHOP = Anonymous("shop")


def publish(world, *limits, policy=None, everywhere=None, **project):
    """Publish the project "shop" with an anonymous policy of these limits."""
    documents = {"global": {"schema": 1, "policy": everywhere}, **world.policy("guests", *limits)}
    return world.publish({**documents, **world.project(policy, anonymous_policy="pol_guests", **project)})


def test_the_anonymous_policy_counts_all_requests_without_a_token_together(limiter, world):
    """In a counter of its own, from which requests with a token take nothing."""
    publish(world, fixed(2))
    secret = mint("live")
    world.publish(tokens={secret: world.token("pol_guests")})

    assert [limiter.check(SHOP).reason for _ in range(3)] == ["ok", "ok", "limited"]
    assert limiter.check(secret).remaining == 1


def test_the_project_as_a_whole_and_its_requests_without_a_token_are_counted_apart(limiter, world):
    """The same policy may stand at both places of a project."""
    publish(world, fixed(2), policy="pol_guests")
    secret = mint("live")
    world.publish(tokens={secret: world.token()})

    assert [limiter.check(SHOP).remaining, limiter.check(secret).remaining] == [1, 1]


def test_the_global_and_the_anonymous_policy_are_one_decision_without_the_policy_of_the_project(limiter, world):
    """The limits of the project belong to its tokens."""
    world.publish({**world.policy("all", fixed(9, name="all")), **world.policy("own", fixed(0, name="own"))})
    publish(world, fixed(2, name="guests"), policy="pol_own", everywhere="pol_all")

    decision = limiter.check(SHOP)

    assert [(state.name, state.remaining) for state in decision.limits] == [("all", 8), ("guests", 1)]
    assert [origin["scope"] for origin in decision.explain()["limits"]] == ["global", "anonymous"]


def test_limits_are_partitioned_by_attributes(limiter, world):
    """Each address has its own counter, and a request without the attribute has none."""
    publish(world, fixed(1, partition_by=["ip"]))

    decisions = [limiter.check(SHOP, attributes={"ip": ip}).reason for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]

    assert decisions == ["ok", "ok", "limited"]
    assert limiter.check(SHOP).limits == ()


@pytest.mark.parametrize(
    ("project", "reason", "status"),
    [
        ({"active": False, "anonymous_policy": "pol_guests"}, "inactive_project", 403),
        ({"policy": "pol_guests"}, "token_required", 401),
        ({"slug": "another", "anonymous_policy": "pol_guests"}, "unknown_project", 401),
        ({"anonymous_policy": "pol_missing"}, "degraded_denied", 503),
    ],
)
def test_a_project_that_admits_no_request_without_a_token_says_why(limiter, world, project, reason, status):
    """A project without an anonymous policy is not one without limits."""
    documents = {"global": {"schema": 1, "policy": None}, **world.policy("guests", fixed(2))}
    world.publish({**documents, **world.project(**project)})

    decision = limiter.check(SHOP)

    assert (decision.allowed, decision.reason, decision.status) == (False, reason, status)
    assert decision.headers() == ({"Retry-After": "1"} if status == 503 else {})


def test_before_any_document_is_loaded_no_request_passes(server, world):
    """It is not known what the project admits."""
    with Limiter(server.url, timeout=1.0) as limiter:
        assert (limiter.check(SHOP).reason, limiter.check(SHOP).status) == ("degraded_denied", 503)


def test_a_change_of_the_policy_is_live_without_a_restart(limiter, world):
    """So is its end, and the use of its slug by another project."""
    publish(world, fixed(2))
    assert limiter.check(SHOP).remaining == 1
    revision = publish(world, fixed(10))

    assert eventually(lambda: limiter.revision == revision)
    assert limiter.check(SHOP).remaining == 8
    world.publish({**world.project(slug="old"), **world.project(ident="proj_2", anonymous_policy="pol_guests")})
    assert limiter.check(SHOP).remaining == 9
    world.publish(world.project(ident="proj_2"))
    assert limiter.check(SHOP).reason == "token_required"


def test_an_override_of_the_project_changes_its_quota(limiter, world):
    """As it does for the limits of its tokens."""
    override = {"id": "ovr_1", "policy": "pol_guests", "limit": "rpm", "quota": 5, "burst": None, "ends_at_us": None}
    publish(world, fixed(2), overrides=[override])

    assert limiter.check(SHOP).limit.quota == 5


def test_usage_is_counted_for_the_project_and_no_token(limiter, world):
    """The rows arrive in the stream from which the control plane takes them."""
    publish(world, fixed(1))
    for _ in range(3):
        limiter.check(SHOP)
    limiter.close()

    rows = [row for _, fields in world.client.xrange(world.keys.usage) for row in json.loads(fields["rows"])]
    counted: dict[tuple[str, ...], list[int]] = {}
    for _, *names, allowed, denied, degraded, cost in rows:  # in one batch or in two: the agent may send in between
        sums = counted.get(tuple(names), [0, 0, 0, 0])
        counted[tuple(names)] = [old + new for old, new in zip(sums, (allowed, denied, degraded, cost), strict=True)]
    assert counted == {
        ("proj_1", "", "", "", "requests"): [1, 2, 0, 1],
        ("proj_1", "", "pol_guests", "rpm", "requests"): [1, 2, 0, 1],
    }


def test_slots_are_held_without_a_token(limiter, world):
    """An admission holds them as it does for a token."""
    publish(world, {"name": "slots", "algorithm": "concurrency", "quota": 1, "window_seconds": 60})

    with limiter.admit(SHOP), pytest.raises(Denied), limiter.admit(SHOP):
        pass
    with limiter.admit(SHOP, costs=1) as admission:
        admission.settle(1)


def test_the_asyncio_limiter_decides_the_same(server, world):
    """With the same counter."""
    publish(world, fixed(2), {"name": "slots", "algorithm": "concurrency", "quota": 1, "window_seconds": 60})

    async def use():
        async with aio.Limiter(server.url, timeout=1.0) as limiter, limiter.admit(SHOP) as admission:
            return admission.decision.limits[0].remaining, (await limiter.check(SHOP)).reason

    assert asyncio.run(use()) == (1, "limited")


@pytest.mark.parametrize("token", [None, "", "shop", "anonymous", "proj_1"])
def test_nothing_but_the_value_itself_is_anonymous(limiter, world, token):
    """A caller that forgot the token, or a client that knows the slug, is refused."""
    publish(world, fixed(2))
    limiter.check(SHOP)

    assert limiter.check(token).reason == "unknown_token"


@pytest.mark.parametrize("project", ["", "Shop", "a b", "-a", "a" * 64, "é", None, 7, "a\n"])
def test_what_cannot_be_a_slug_is_refused(project):
    """When the door is made, not at its first request."""
    with pytest.raises(ValueError, match="project: must be 1 to 63 lower-case letters, digits and hyphens"):
        Anonymous(project)


def test_a_key_or_limits_do_not_go_with_it():
    """They are for limits in code."""
    with Limiter() as limiter:
        with pytest.raises(TypeError, match="key: must be None"):
            limiter.open_admission(SHOP, "user:1")
        with pytest.raises(TypeError, match="must be Limit values"):
            limiter.hit([SHOP], "user:1")


def test_a_document_of_the_wrong_type_is_refused(limiter, world):
    """The last good one stays."""
    publish(world, fixed(2))
    assert limiter.check(SHOP).allowed
    world.publish(world.project(anonymous_policy=7))

    assert limiter.check(SHOP).allowed


def test_while_the_store_is_away_the_process_decides(own_server):
    """By the rule of each limit, as for a token."""
    world = World(own_server.url)
    publish(world, fixed(3))
    with Limiter(own_server.url, timeout=0.2) as limiter:
        assert limiter.check(SHOP).remaining == 2
        own_server.kill()
        decisions = [limiter.check(SHOP) for _ in range(3)]

    assert [(decision.reason, decision.source) for decision in decisions] == [
        ("ok", "fallback"),
        ("ok", "fallback"),
        ("limited", "fallback"),
    ]
