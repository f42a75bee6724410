"""A sample of the denials goes to the store with the usage."""

import contextlib
import json

import pytest

from enforcement import Anonymous, Denied, Limit, Limiter
from enforcement.model.matching import Match
from enforcement.model.tokens import mint
from enforcement.usage import denial_sample

NOTHING = Limit(name="nothing", quota=0, window_seconds=60, partition_by=("ip",))
PER_HOUR = Limit(name="per-hour", quota=1, window_seconds=3_600)


@pytest.fixture
def sampled(server, world, monkeypatch):
    """Call a function with a limiter in one second, and return the entries that it has left in the store."""

    def run(act):
        monkeypatch.setattr(denial_sample.time, "monotonic", lambda: 7.0)
        with Limiter(server.url, timeout=1.0, instance="proxy-7") as limiter:
            limiter.start()
            act(limiter)
        entries = [fields for _, fields in world.client.xrange(world.keys.denials)]
        return [(entry["instance"], row) for entry in entries for row in json.loads(entry["rows"])]

    return run


def test_a_denial_is_sampled_with_its_values(sampled, world):
    """With the attributes that the limit is partitioned by, and no other."""
    world.published.policy("api", NOTHING)
    world.published.project("shop")
    token = world.published.token(policy="api", project="shop")
    made = []
    rows = sampled(lambda limiter: made.append(limiter.check(token, attributes={"ip": "10.0.0.1", "path": "/x"})))

    (decision,) = made
    ids = ["proj_1", "tok_1", "pol_api", "nothing"]
    expected = [decision.id, decision.decided_at_us // 1_000, "cost_exceeds_capacity", *ids, {"ip": "10.0.0.1"}]
    assert rows == [("proxy-7", expected)]


def test_one_token_and_limit_is_sampled_once_a_second(sampled, world):
    """However often it is denied, from the store or from the cache."""
    world.published.policy("api", PER_HOUR)
    world.published.project("shop")
    token = world.published.token(policy="api", project="shop")
    rows = sampled(lambda limiter: [limiter.check(token, costs=1 + i % 2) for i in range(20)])

    assert [row[2:4] for _, row in rows] == [["cost_exceeds_capacity", "proj_1"], ["limited", "proj_1"]]


def test_a_second_has_at_most_twenty(sampled, world):
    """A flood costs the process nothing after that."""
    world.published.project("shop")
    tokens = [world.published.token(project="shop", revoked=True) for _ in range(25)]
    rows = sampled(lambda limiter: [limiter.check(token) for token in tokens])

    assert [row[4] for _, row in rows] == [f"tok_{i}" for i in range(1, 21)]


def test_admitted_requests_and_limits_in_code_are_not_sampled(sampled, world):
    """The key of a limit in code may be a person's, and the control plane does not know the limit."""
    world.published.policy("api", PER_HOUR)
    world.published.project("shop")
    token = world.published.token(policy="api", project="shop")

    assert sampled(lambda limiter: (limiter.check(token), limiter.hit(Limit(quota=0, window_seconds=60), "me"))) == []


def test_unknown_tokens_are_sampled_without_a_name(sampled, world):
    """One a second, so that a guesser is seen. What was sent is in no row."""
    world.published.project("shop")
    rows = sampled(lambda limiter: [limiter.check(mint("live")) for _ in range(5)])

    assert [row[2:] for _, row in rows] == [["unknown_token", "", "", "", "", {}]]


def test_values_of_tenants_are_bounded(sampled, world):
    """Long ones are cut, and characters that a terminal would obey are replaced."""
    world.published.policy("api", Limit(name="n", quota=0, window_seconds=60, partition_by=("a", "b")))
    world.published.project("shop")
    token = world.published.token(policy="api", project="shop")
    rows = sampled(lambda limiter: limiter.check(token, attributes={"a": "x" * 1_000, "b": "1\x1b[2J\n"}))

    values = rows[0][1][-1]
    assert values["b"] == "1�[2J�"
    assert values["a"] == "x" * 64 + "…"


MATCHING = Limit(
    name="chat",
    quota=0,
    window_seconds=60,
    partition_by=("ip",),
    match=Match(methods=("POST", "PUT"), path="/v1/*", attributes={"plan": ("free", "gold"), "ip": "10.*"}),
)


def test_a_denial_is_sampled_with_what_its_limit_matches(sampled, world):
    """Each with its own values, though the requests share a counter. What no rule of the limit reads is left out."""
    world.published.policy("api", MATCHING, Limit(name="other", quota=9, window_seconds=60, partition_by=("team",)))
    world.published.project("shop")
    tokens = [world.published.token(policy="api", project="shop") for _ in range(2)]
    requests = [
        {"method": "POST", "path": "/v1/chat", "plan": "gold", "ip": "10.0.0.1"},
        {"method": "PUT", "path": "/v1/files", "plan": "free", "ip": "10.0.0.1"},
    ]

    def deny(limiter):
        limiter.check(tokens[0], attributes=requests[0] | {"team": "red"})
        with contextlib.suppress(Denied), limiter.admit(tokens[1], attributes=requests[1] | {"team": "red"}):
            pass

    assert [row[-1] for _, row in sampled(deny)] == requests


def test_a_row_has_at_most_eight_attributes(sampled, world):
    """Those that the limit is partitioned by come first."""
    names = [f"a{letter}" for letter in "abcdefghijkl"]
    match = Match(attributes=dict.fromkeys(names, "*"))
    world.published.policy("api", Limit(name="n", quota=0, window_seconds=60, partition_by=("b",), match=match))
    world.published.project("shop")
    token = world.published.token(policy="api", project="shop")
    rows = sampled(lambda limiter: limiter.check(token, attributes=dict.fromkeys([*names, "b"], "x")))

    assert list(rows[0][1][-1]) == ["b", *names[:7]]


def test_denials_without_a_token_are_sampled_once_for_each_project(sampled, world):
    """Anonymous requests have a project and no token."""
    world.published.policy("guests", PER_HOUR)
    for slug in ("shop", "chat"):
        world.published.project(slug, anonymous_policy="guests")
    rows = sampled(lambda limiter: [limiter.check(Anonymous(slug), costs=2) for slug in ("shop", "shop", "chat")])

    assert [row[2:5] for _, row in rows] == [["cost_exceeds_capacity", f"proj_{i}", ""] for i in (1, 2)]
