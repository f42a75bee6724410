"""Limits that count by labels of tokens and match them, on a real store."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enforcement import Anonymous, aio
from enforcement.model.documents import InvalidDocument, parse_token
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.strict_json import dumps
from enforcement.model.tokens import mint
from tests.enforcement.world import World, fixed

FORGED = {"label.team": "blue", "label.owner": "eve", "ip": "192.0.2.1"}
_fresh = itertools.count()


def publish(world, *limits, everywhere=None, **project):
    """Publish a project whose policy has these limits."""
    documents = {"global": {"schema": 1, "policy": everywhere}, **world.policy("teams", *limits)}
    world.publish({**documents, **world.project("pol_teams", **project)})


def token(world, policy=None, **labels):
    """Publish a token with these labels and return its secret."""
    secret = mint("live")
    world.publish(tokens={secret: world.token(policy, **({"labels": labels} if labels else {}))})
    return secret


def by_team(quota, **more):
    """Return a limit for each team."""
    return fixed(quota, name="team", partition_by=["label.team"], **more)


def test_all_tokens_of_a_team_share_one_counter(limiter, world):
    """Beside a budget of their own. A token without the label does not fall under the limit."""
    publish(world, by_team(3))
    world.publish(world.policy("own", fixed(2, name="own")))
    one, two, blue = (token(world, "pol_own", team=team) for team in ("red", "red", "blue"))
    bare = token(world, owner="ann")

    assert [limiter.check(secret).allowed for secret in (one, one, two, two)] == [True, True, True, False]
    assert limiter.check(two).limit.name == "team"
    assert [origin.get("labels") for origin in limiter.check(two).explain()["limits"]] == [{"label.team": "red"}, None]
    assert [state.remaining for state in limiter.check(blue, costs=0).limits] == [3, 2]
    assert limiter.check(bare).limits == ()


def test_the_asyncio_limiter_decides_the_same(limiter, server, world):
    """On the same counter."""
    publish(world, by_team(2))
    one, two = token(world, team="red"), token(world, team="red")

    async def ask():
        async with aio.Limiter(server.url, timeout=1.0) as other:
            return (await other.check(two, attributes=FORGED)).remaining

    assert [limiter.check(one).remaining, asyncio.run(ask()), limiter.check(one).allowed] == [1, 0, False]


@pytest.mark.parametrize("more", [[], ["ip"]])
def test_a_label_among_the_attributes_of_a_request_is_not_read(limiter, world, more):
    """Neither in place of a label of the token nor where it has none."""
    matched = fixed(0, name="match", match={"attributes": {"label.owner": "eve"}})
    publish(world, fixed(1, name="team", partition_by=["label.team", *more]), matched)
    red, bare = token(world, team="red"), token(world)

    forged = limiter.check(red, attributes=FORGED)
    again = limiter.check(red, attributes={"ip": FORGED["ip"]})
    assert [state.name for state in forged.limits] == ["team"]
    assert (forged.allowed, again.allowed) == (True, False)
    assert limiter.check(bare, attributes=FORGED).limits == ()
    assert limiter.check(token(world, team="blue"), attributes=FORGED).allowed


@pytest.mark.parametrize(
    ("rule", "applies"),
    [("red", True), ("re*", True), (["blue", "red"], True), ("blue", False), ("RED", False), (["re*"], False)],
)
def test_a_limit_matches_a_label_as_any_attribute(limiter, world, rule, applies):
    """By a value, a glob or a list."""
    publish(world, fixed(0, match={"attributes": {"label.team": rule}}))

    assert limiter.check(token(world, team="red")).allowed is not applies


def test_a_limit_may_look_at_labels_and_attributes_of_the_request(limiter, world):
    """Both must be there. The values of the attribute are registered up to the cap of the project."""
    publish(world, fixed(1, partition_by=["label.team", "ip"], match={"methods": ["POST"]}), partition_cap=1)
    one, two = token(world, team="red"), token(world, team="red")
    post = {"method": "POST", "ip": "192.0.2.1"}

    assert limiter.check(one, attributes={"method": "GET", "ip": "192.0.2.1"}).limits == ()
    assert limiter.check(one, attributes={"method": "POST"}).limits == ()
    assert [limiter.check(secret, attributes=post).allowed for secret in (one, two)] == [True, False]
    assert [limiter.check(one, attributes={**post, "ip": ip}).allowed for ip in ("a", "b")] == [True, False]


def test_labels_need_no_room_among_the_values_of_a_project(limiter, world):
    """Only operators set them, so the cap on what clients may invent does not hold for them."""
    publish(world, by_team(1), partition_cap=1)

    assert all(limiter.check(token(world, team=f"team-{i}")).allowed for i in range(4))
    assert not world.client.keys("sg:*:n:*")


def test_a_limit_that_looks_only_at_labels_keeps_the_one_plan_of_the_token(limiter, world):
    """Whatever attributes its requests have."""
    publish(world, by_team(9), fixed(9, name="vip", match={"attributes": {"label.team": "red"}}))
    red = token(world, team="red")
    plans = {id(limiter.check(red, attributes=given).plan) for given in (None, FORGED, {"ip": "a"}, {"ip": "b"})}

    assert len(plans) == 1
    assert len(limiter._engine.planner.plan_cache) == 0


def test_a_changed_label_takes_effect_with_the_document(limiter, world):
    """The other team's counter goes on where it was."""
    publish(world, by_team(1))
    secret, other = token(world, team="red"), token(world, team="blue")
    assert [limiter.check(it).allowed for it in (secret, secret, other)] == [True, False, True]

    document = world.token()
    world.publish(tokens={secret: {**document, "labels": {"team": "green"}}})
    assert limiter.check(secret).allowed
    world.publish(tokens={secret: {**document, "labels": {"team": "blue"}}})
    assert not limiter.check(secret).allowed
    world.publish(tokens={secret: document})
    assert limiter.check(secret).limits == ()


def test_a_global_limit_counts_a_label_over_all_projects(limiter, world):
    """A policy of a project counts it in the project, also if another project has the same policy."""
    world.publish(world.policy("all", fixed(2, name="all", partition_by=["label.team"])))
    publish(world, by_team(1), everywhere="pol_all")
    world.publish(world.project("pol_teams", ident="proj_2", slug="other"))
    here, there = token(world, team="red"), mint("live")
    world.publish(tokens={there: world.token(project="proj_2", labels={"team": "red"})})

    assert [limiter.check(secret).allowed for secret in (here, there)] == [True, True]
    assert [state.remaining for state in limiter.check(here, costs=0).limits] == [0, 0]


def test_requests_without_a_token_have_no_labels(limiter, world):
    """Not even forged ones."""
    publish(world, by_team(0), anonymous_policy="pol_teams")

    assert limiter.check(Anonymous("shop"), attributes=FORGED).limits == ()


def test_permits_of_a_label_are_leased(limiter, world):
    """As those of any limit, with never more than the quota."""
    publish(world, by_team(50, consistency="leased"))
    secrets = [token(world, team="red") for _ in range(2)]

    assert sum(limiter.check(secret).allowed for secret in secrets * 60) <= 50
    assert sum(limiter.check(secret).allowed for secret in secrets * 60) == 0


def test_a_sampled_denial_names_the_label_of_the_token(limiter, world):
    """Not the one that the request claims."""
    publish(world, fixed(1, name="team", partition_by=["label.team", "ip"]))
    red = token(world, team="red")
    limiter.check(red, attributes=FORGED)
    limiter.check(red, attributes=FORGED)

    assert '{"label.team":"red","ip":"192.0.2.1"}' in limiter._engine.usage.sample.take()


TEAMS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(["team", "owner"]), TEAMS), min_size=2, max_size=5))
def test_two_tokens_share_a_counter_exactly_if_the_label_is_equal(server, limiter, labels):
    """Whatever characters it has, and whatever other labels there are."""
    world = World(server.url)
    world.followers.append(limiter)
    slug = f"p{next(_fresh)}"
    world.publish({**world.policy(slug, by_team(1)), **world.project(f"pol_{slug}")})
    teams = [it["team"] for it in labels if "team" in it]
    allowed = [limiter.check(token(world, **it)).allowed for it in labels if "team" in it]

    assert allowed == [team not in teams[:i] for i, team in enumerate(teams)]
    assert all(limiter.check(token(world, **it)).limits == () for it in labels if "team" not in it)


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        (None, "must be an object"),
        ([], "must be an object"),
        ({"Team": "red"}, "a name must be"),
        ({"label.": "red", "a": 1}, "the value of a must be a string, got 1"),
        ({"team": True}, "must be a string"),
        ({"team": ""}, "must have 1 to 128 characters, got 0"),
        ({"team": "a\x7f"}, "control characters"),
        ({f"n{i}": "v" for i in range(17)}, "must be at most 16, got 17"),
    ],
)
def test_a_document_with_wrong_labels_is_refused_as_a_whole(world, limiter, labels, rule):
    """Its token is denied, and not admitted without the limits of its team."""
    document = {**world.token(), "labels": labels}
    with pytest.raises(InvalidDocument, match=f"^labels: .*{rule}"):
        parse_token(dumps(document))
    publish(world, by_team(9))
    secret = mint("live")
    world.publish(tokens={secret: document})

    assert limiter.check(secret).reason == "degraded_denied"


@pytest.mark.parametrize("rule", ["", ["red", ""]])
def test_a_limit_that_matches_an_empty_label_is_refused(rule):
    """No label is empty, so the limit would never apply. One that is published already stays as it is."""
    limit = fixed(0, match={"attributes": {"label.team": rule}})
    with pytest.raises(InvalidLimit, match=r"^match.attributes: A label is never empty, so label.team must not match"):
        Limit.from_json(limit)

    assert Limit.from_json(limit, published=True).match.fits({"label.team": "blue"}) is False


def test_published_limits_with_names_of_no_label_are_kept():
    """An enforcer must go on with what 0.2 accepted, though it matches nothing."""
    old = fixed(1, partition_by=["label."], match={"attributes": {"label.9": "x"}})

    assert Limit.from_json(old, published=True).partition_by == ("label.",)
