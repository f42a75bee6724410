"""Overrides for one value of what a limit is partitioned by, on a real store."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from enforcement import aio
from enforcement.model.documents import InvalidDocument, Policy, parse_project, parse_token
from enforcement.model.limits import Limit
from enforcement.model.strict_json import dumps
from enforcement.model.tokens import mint
from enforcement.plan.rules import Subject, rules_of
from tests.enforcement.world import fixed

BY_TEAM = {"name": "team", "partition_by": ["label.team"]}
BY_MODEL = {"name": "model", "partition_by": ["model"]}


def override(quota, partition=None, *, limit="team", ident="ovr_1", burst=None, ends_at_us=None):
    """Return an override as a document has it."""
    row = {"id": ident, "policy": "pol_p", "limit": limit, "quota": quota, "burst": burst, "ends_at_us": ends_at_us}
    return row | ({"partition": partition} if partition else {})


def publish(world, *overrides, limits, **project):
    """Publish a project with overrides, whose policy has these limits."""
    world.publish({**world.policy("p", *limits), **world.project("pol_p", overrides=list(overrides), **project)})


def token(world, *overrides, **labels):
    """Publish a token with these labels and return its secret."""
    secret = mint("live")
    own = {"labels": labels} if labels else {}
    world.publish(tokens={secret: world.token(overrides=list(overrides), **own)})
    return secret


def quotas(limiter, secret, **attributes):
    """Return the quota of each limit of a request, without charging it."""
    return [state.quota for state in limiter.check(secret, costs=0, attributes=attributes).limits]


def test_all_tokens_of_a_team_have_the_raised_quota_in_the_same_counter(limiter, world):
    """What they used before counts on, and no other team has it."""
    publish(world, limits=[fixed(2, **BY_TEAM)])
    one, two, other = (token(world, team=team) for team in ("web", "web", "data"))
    assert [limiter.check(one).allowed, limiter.check(two).allowed, limiter.check(two).allowed] == [True, True, False]

    publish(world, override(4, {"label.team": "web"}), limits=[fixed(2, **BY_TEAM)])

    decisions = [limiter.check(secret) for secret in (one, two, one)]
    assert [(it.allowed, it.limit.quota, it.limit.remaining) for it in decisions] == [
        (True, 4, 1),
        (True, 4, 0),
        (False, 4, 0),
    ]
    assert decisions[0].explain()["limits"][0]["override"] == "ovr_1"
    keys = {it.explain()["limits"][0]["counter"] for it in decisions}
    assert len(keys) == 1
    assert limiter.check(other).explain()["limits"][0]["counter"] not in keys
    assert quotas(limiter, other) == [2]
    assert limiter.check(other).explain()["limits"][0]["override"] is None


def test_the_raised_quota_holds_over_many_processes_at_once(server, world, limiter):
    """Exactly as many are admitted, whichever token and limiter asks."""
    publish(world, override(30, {"label.team": "web"}), limits=[fixed(5, **BY_TEAM)])
    secrets = [token(world, team="web") for _ in range(3)]
    other = token(world, team="data")

    async def ask():
        async with aio.Limiter(server.url, timeout=1.0) as another:
            asked = [another.check(secret) for secret in secrets * 10]
            return sum(decision.allowed for decision in await asyncio.gather(*asked))

    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(asyncio.run, ask())
        mine = sum(limiter.check(secret).allowed for secret in secrets * 10)
    assert mine + theirs.result() == 30
    assert sum(limiter.check(other).allowed for _ in range(9)) == 5


def test_an_override_that_has_ended_does_nothing(world):
    """And the plans of a token are made again when the first of its overrides ends."""
    rows = [override(9, {"model": "big"}, limit="model", ends_at_us=50), override(5, limit="model", ends_at_us=80)]
    project = parse_project(dumps(world.project("pol_p", overrides=rows)["project:proj_1"]))
    limit = Limit(name="model", algorithm="fixed_window", quota=2, window_seconds=60, partition_by=("model",))
    subject = Subject(project, None, {"pol_p": Policy("pol_p", "p", (limit,))}, None)

    (before,), (between,), (after,) = (rules_of(subject, now_us) for now_us in (49, 50, 80))

    assert (before.of({"model": "big"}).limit.quota, before.limit.quota, before.ends_us) == (9, 5, [80, 50])
    assert (between.of({"model": "big"}).limit.quota, between.ends_us) == (5, [80])
    assert (after.limit.quota, after.ends_us) == (2, [])


def test_an_override_may_be_for_a_value_of_an_attribute_of_requests(limiter, world):
    """The rest has the other quota, and each value the counter that it had."""
    publish(world, override(3, {"model": "big"}, limit="model"), limits=[fixed(1, **BY_MODEL)])
    secret = token(world)

    assert [limiter.check(secret, attributes={"model": "big"}).allowed for _ in range(4)] == [True, True, True, False]
    assert [limiter.check(secret, attributes={"model": "small"}).allowed for _ in range(2)] == [True, False]


def test_no_request_chooses_the_team_that_it_counts_for(limiter, world):
    """An attribute with the name of a label is not read."""
    publish(world, override(9, {"label.team": "web"}), limits=[fixed(2, **BY_TEAM)])
    data, bare = token(world, team="data"), token(world)

    assert quotas(limiter, data, **{"label.team": "web"}) == [2]
    assert quotas(limiter, bare, **{"label.team": "web"}) == []


def test_the_most_exact_override_is_taken_and_that_of_the_token_first(limiter, world):
    """Of those of one holder, the one for more values."""
    limit = fixed(1, name="both", partition_by=["label.team", "model"])
    rows = [
        override(2, limit="both", ident="ovr_1"),
        override(3, {"label.team": "web"}, limit="both", ident="ovr_2"),
        override(4, {"label.team": "web", "model": "big"}, limit="both", ident="ovr_3"),
    ]
    publish(world, *rows, limits=[limit])
    web, data = token(world, team="web"), token(world, team="data")
    own = token(world, override(7, limit="both", ident="ovr_4"), team="web")

    assert quotas(limiter, web, model="big") == [4]
    assert quotas(limiter, web, model="small") == [3]
    assert quotas(limiter, data, model="big") == [2]
    assert quotas(limiter, own, model="big") == [7]


def test_values_beyond_the_cap_share_the_quota_of_the_policy(limiter, world):
    """An override is for the counter of its value, and not for the one that all others share."""
    rows = [override(50, {"model": "late"}, limit="model")]
    publish(world, *rows, limits=[fixed(2, **BY_MODEL)], partition_cap=1)
    secret = token(world)
    limiter.check(secret, attributes={"model": "first"})

    decision = limiter.check(secret, attributes={"model": "late"})

    assert (decision.explain()["limits"][0]["overflow"], decision.limit.quota) == (True, 2)
    assert decision.explain()["limits"][0]["override"] is None


def test_an_override_of_a_partition_that_the_limit_no_longer_has_does_nothing(limiter, world):
    """It is not read as one for all values."""
    publish(world, override(9, {"label.owner": "ann"}), limits=[fixed(2, **BY_TEAM)])

    assert quotas(limiter, token(world, team="web", owner="ann")) == [2]


def test_a_burst_that_it_leaves_out_is_that_of_the_policy(limiter, world):
    """And not that of the override for all values."""
    bucket = {**fixed(10, **BY_TEAM), "algorithm": "token_bucket", "burst": 20}
    rows = [override(30, burst=40, ident="ovr_1"), override(50, {"label.team": "web"}, ident="ovr_2")]
    publish(world, *rows, limits=[bucket])

    full = [limiter.check(token(world, team=team), costs=0).limits[0].remaining for team in ("web", "data")]
    assert full == [20, 40]


def test_a_token_with_an_override_of_its_team_keeps_one_plan_for_all_requests(limiter, world):
    """So a plain check does no more than before."""
    publish(world, override(9, {"label.team": "web"}), limits=[fixed(2, **BY_TEAM)])
    secret = token(world, team="web")

    first, second = limiter.check(secret), limiter.check(secret, attributes={"model": "big"})

    assert first.plan is second.plan


@pytest.mark.parametrize(
    ("partition", "rule"),
    [
        ({}, "1 to 4"),
        ([], "1 to 4"),
        (dict.fromkeys("abcde", "x"), "1 to 4"),
        ({"Team": "web"}, "an attribute must be"),
        ({"label." + "x" * 64: "web"}, "an attribute must be"),
        ({"label.team": 1}, "must be a string of 1 to 128"),
        ({"label.team": ""}, "must be a string of 1 to 128"),
        ({"label.team": "x" * 129}, "must be a string of 1 to 128"),
        ({"model": "x" * 257}, "must be a string of 1 to 256"),
        ({"label.team": " web"}, "space at either end"),
        ({"label.team": "we\nb"}, "control characters"),
    ],
)
def test_a_document_with_a_wrong_partition_is_refused_as_a_whole(world, partition, rule):
    """A mistake in it never raises another counter."""
    row = {**override(9), "partition": partition}
    for parse, document in ((parse_token, world.token()), (parse_project, world.project()["project:proj_1"])):
        with pytest.raises(InvalidDocument, match=rule):
            parse(dumps({**document, "overrides": [row]}))
