"""What operators suspend, and what happens while the glass is broken, on a real store."""

import json
import time
from datetime import UTC, datetime

import pytest

from enforcement import Anonymous, Limit, Limiter
from enforcement.engine.store_clock import read_clock
from enforcement.model.documents import InvalidDocument
from enforcement.model.instants import to_us
from enforcement.store_calls.emergency import NO_EMERGENCY, parse_emergency
from enforcement.testing import Clock
from tests.enforcement.world import PROJECT, eventually, fixed

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
NOON_US, HOUR_US = to_us(NOON), 3_600_000_000
BROKEN = {"began_at_us": NOON_US, "ends_at_us": NOON_US + HOUR_US}


@pytest.fixture
def limiter(make_limiter, server, world):
    """Give a started limiter, whose clock stands still at noon."""
    return world.follow(make_limiter(server.url, clock=Clock(NOON)))


def emergency(glass=None, projects=(), values=(), **ending):
    """Return the document. A value has a project, a name, a value, and perhaps an end."""
    names = ("project", "name", "value", "ends_at_us")
    rows = [dict(zip(names, value, strict=False)) for value in values]
    return {"emergency": {"schema": 1, "break_glass": glass, "projects": list(projects), "values": rows, **ending}}


def reason(limiter, secret, **attributes):
    return limiter.check(secret, attributes=attributes).reason


def test_a_suspended_token_is_refused_until_it_is_resumed(limiter, world):
    """With 403 and a reason of its own."""
    secret = world.everything(fixed(9))
    document = world.token("pol_api")
    world.publish(tokens={secret: {**document, "suspended": True}})
    refused = limiter.check(secret)
    world.publish(tokens={secret: document})

    assert (refused.reason, refused.status, refused.retry_after_ms) == ("suspended", 403, None)
    assert refused.problem()["title"] == "The access is suspended"
    assert reason(limiter, secret) == "ok"


def test_a_suspended_project_is_refused_with_its_requests_without_a_token(limiter, world):
    """It is published as inactive too, which is what older enforcers know."""
    secret = world.everything(fixed(9))
    world.publish({**world.project(active=False, anonymous_policy="pol_api"), **emergency(projects=[PROJECT])})

    assert reason(limiter, secret) == "suspended"
    assert reason(limiter, Anonymous("shop")) == "suspended"
    world.publish({"emergency": None})
    assert reason(limiter, secret) == "inactive_project"


def test_a_suspended_value_is_refused_and_all_others_pass(limiter, world):
    """In its project only, whether the limits look at the attribute or not."""
    secret = world.everything(fixed(9))
    world.publish(emergency(values=[(PROJECT, "session", "bad"), ("proj_2", "session", "other")]))

    assert reason(limiter, secret, session="bad") == "suspended"
    assert reason(limiter, secret, session="good") == "ok"
    assert reason(limiter, secret, session="other") == "ok"
    assert reason(limiter, secret) == "ok"
    assert limiter.check(secret).remaining == 5


def test_a_value_can_be_suspended_in_all_projects(limiter, world):
    """Beside those of the project."""
    secret = world.everything(fixed(9, partition_by=["ip"]))
    world.publish(emergency(values=[(None, "ip", "192.0.2.1"), (PROJECT, "ip", "192.0.2.2")]))

    assert reason(limiter, secret, ip="192.0.2.1") == "suspended"
    assert reason(limiter, secret, ip="192.0.2.2") == "suspended"
    assert reason(limiter, secret, ip="192.0.2.3") == "ok"


def test_a_label_of_a_token_is_an_attribute_too(limiter, world):
    """A token with another value of it passes."""
    secret = world.everything(fixed(9), labels={"team": "red"})
    world.publish(emergency(values=[(PROJECT, "label.team", "red")]))
    assert reason(limiter, secret) == "suspended"

    world.publish(emergency(values=[(PROJECT, "label.team", "blue")]))
    assert reason(limiter, secret) == "ok"


def test_nothing_suspended_costs_a_plain_check_nothing(limiter, world):
    """The plan of a token without attributes is found by the token alone, as long as its project has no such value."""
    secret = world.everything(fixed(9))
    world.publish(emergency(values=[("proj_2", "session", "bad")]))
    limiter.check(secret)

    assert secret in limiter._documents.derived.plans


@pytest.fixture
def ending(server, world):
    """``ending(secret, seconds, **attributes)``: the decision of a limiter whose clock goes on by so many seconds."""
    clock = Clock(NOON)
    with Limiter(server.url, timeout=1.0, clock=clock) as limiter:
        limiter.start(0.0)
        world.followers.append(limiter)

        def check(secret, seconds=0.0, **attributes):
            clock.advance(seconds=seconds)
            return limiter.check(secret, attributes=attributes)

        yield check


def test_a_suspension_of_a_token_ends_by_itself(world, ending):
    """At its end, without a document that says so. Until then the denial says how long to wait."""
    secret = world.everything(fixed(9))
    document = world.token("pol_api")
    world.publish(tokens={secret: {**document, "suspended": True, "suspended_until_us": NOON_US + HOUR_US}})

    found = [ending(secret), ending(secret, 3_599.5), ending(secret, 0.5)]

    assert [it.reason for it in found] == ["suspended", "suspended", "ok"]
    assert [it.retry_after_ms for it in found] == [3_600_000, 500, None]
    assert found[0].headers() == {"Retry-After": "3600"}
    assert found[0].problem()["detail"] == "The access is suspended. Try again in 3600 s."
    assert found[0].problem("openai")["error"]["message"] == "The access is suspended. Try again in 3600 s."


def test_a_suspension_of_a_project_ends_by_itself(world, ending):
    """Its own document says inactive until the control plane has resumed it. Requests without a token follow, too."""
    secret = world.everything(fixed(9))
    project = world.project(active=False, anonymous_policy="pol_api")
    row = {"id": PROJECT, "ends_at_us": NOON_US + HOUR_US, "active": True}
    world.publish({**project, **emergency(ending_projects=[row])})

    assert [ending(it).reason for it in (secret, Anonymous("shop"))] == ["suspended", "suspended"]
    assert [ending(it, 1_800).reason for it in (secret, Anonymous("shop"))] == ["suspended", "ok"]
    assert ending(secret).reason == "ok"


def test_a_project_that_is_inactive_too_stays_so(world, ending):
    """The end of its suspension does not make it active."""
    secret = world.everything(fixed(9))
    row = {"id": PROJECT, "ends_at_us": NOON_US + HOUR_US, "active": False}
    world.publish({**world.project(active=False), **emergency(ending_projects=[row])})

    assert [ending(secret).reason, ending(secret, 3_600).reason] == ["suspended", "inactive_project"]


def test_a_suspension_of_a_value_ends_by_itself(world, ending):
    """In its project, also of a label. After it, the token has one plan for all its requests again."""
    secret = world.everything(fixed(9), labels={"team": "red"})
    end = NOON_US + HOUR_US
    world.publish(emergency(values=[(PROJECT, "session", "bad", end), (None, "session", "bad", end + HOUR_US)]))
    found = [ending(secret, session="bad"), ending(secret, 3_600, session="bad"), ending(secret, session="good")]
    assert [it.reason for it in found] == ["suspended", "suspended", "ok"]
    assert [it.retry_after_ms for it in found] == [7_200_000, 3_600_000, None]
    assert ending(secret, 3_600, session="bad").reason == "ok"

    world.publish(emergency(values=[(PROJECT, "label.team", "red", end + 3 * HOUR_US)]))
    assert [ending(secret).reason, ending(secret, 7_200).reason] == ["suspended", "ok"]


def test_the_longest_of_several_suspensions_counts(world, ending):
    """One without an end has no time to wait for."""
    secret = world.everything(fixed(9))
    token = {**world.token("pol_api"), "suspended": True, "suspended_until_us": NOON_US + HOUR_US}
    world.publish(emergency(projects=[PROJECT]), tokens={secret: token})
    assert (ending(secret).reason, ending(secret).retry_after_ms) == ("suspended", None)

    row = {"id": PROJECT, "ends_at_us": NOON_US + 2 * HOUR_US, "active": True}
    world.publish(emergency(ending_projects=[row]))
    assert ending(secret).retry_after_ms == 7_200_000
    assert ending(secret, 3_600).retry_after_ms == 3_600_000


def test_a_broken_glass_makes_every_limit_a_shadow(limiter, world):
    """Requests pass, the counters count, and each decision says what would have been denied."""
    secret = world.everything(fixed(2))
    world.publish(emergency(BROKEN))
    decisions = [limiter.check(secret) for _ in range(4)]

    assert [decision.allowed for decision in decisions] == [True] * 4
    assert [decision.limits[0].allowed for decision in decisions] == [True, True, False, False]
    assert {decision.limits[0].mode for decision in decisions} == {"shadow"}
    assert limiter.stats().would_deny == 2
    world.publish({"emergency": None})
    assert reason(limiter, secret) == "limited"


def test_a_broken_glass_reaches_limits_in_code(limiter, world):
    """As long as it lasts, and also those that were used before."""
    limit = fixed(1)
    world.everything(limit)
    limits = [Limit.from_json(limit)]

    def allowed():
        return limiter.hit(limits, "a").allowed

    assert [allowed(), allowed()] == [True, False]
    world.publish(emergency(BROKEN))
    assert eventually(allowed)
    assert limiter.hit(limits, "a").limits[0].mode == "shadow"
    world.publish({"emergency": None})
    assert eventually(lambda: not allowed())


@pytest.mark.parametrize(("mode", "allowed", "shown"), [("shadow", [True] * 3, 1), ("off", [True] * 3, 0)])
def test_limits_in_code_are_switched(server, world, monkeypatch, mode, allowed, shown):
    """By a variable of the process, whatever its limits look like. Its heartbeat says so, and policies hold."""
    monkeypatch.setenv("SLUICEGATE_IN_CODE", mode)
    secret = world.everything(fixed(0))
    limits = [
        Limit(quota=1, window_seconds=60),
        Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60),
    ]
    with Limiter(server.url, timeout=1.0) as limiter:
        decisions = [limiter.hit(limits[:1], "a", {"requests": 1}) for _ in range(3)]
        with limiter.admit(limits, "a"), limiter.admit(limits, "a"):
            pass
        limiter.reset(limits, "a")
        assert not limiter.check(secret).allowed
        key = world.keys.instance(limiter.stats().instance)
        assert eventually(lambda: json.loads(world.client.get(key) or "{}").get("in_code") == mode)

    assert [decision.allowed for decision in decisions] == allowed
    assert [len(decision.limits) for decision in decisions] == [shown] * 3


def test_a_switch_of_limits_in_code_that_is_none(monkeypatch):
    """It is named, and no limit is off by mistake."""
    monkeypatch.setenv("SLUICEGATE_IN_CODE", "false")

    with pytest.raises(ValueError, match="SLUICEGATE_IN_CODE: must be one of enforce, shadow, off, got 'false'"):
        Limiter()


def test_a_broken_glass_ends_by_itself(server, world):
    """At its end, without a document that says so, and without a control plane."""
    clock = Clock(NOON)
    secret = world.everything(fixed(0, window_seconds=86_400))
    world.publish(emergency(BROKEN))
    with Limiter(server.url, timeout=1.0, clock=clock) as limiter:
        assert reason(limiter, secret) == "ok"
        clock.advance(seconds=3_599)
        assert reason(limiter, secret) == "ok"
        clock.advance(seconds=1)
        assert reason(limiter, secret) == "cost_exceeds_capacity"


def test_a_glass_is_not_broken_before_its_beginning(server, world):
    """A document that lies years ahead would otherwise lift all limits for years."""
    clock = Clock(NOON)
    secret = world.everything(fixed(0, window_seconds=86_400))
    world.publish(emergency({"began_at_us": NOON_US + HOUR_US, "ends_at_us": NOON_US + 2 * HOUR_US}))
    with Limiter(server.url, timeout=1.0, clock=clock) as limiter:
        reasons = [reason(limiter, secret)]
        for seconds in (3_599, 1, 3_599, 1):
            clock.advance(seconds=seconds)
            reasons.append(reason(limiter, secret))
    hopeless = "cost_exceeds_capacity"
    assert reasons == [hopeless, hopeless, "ok", "ok", hopeless]


def test_an_instance_says_that_its_glass_is_broken(limiter, world):
    """In its heartbeat. One that runs without says nothing of it."""
    world.everything(fixed(1))

    def reported():
        text = world.client.get(world.keys.instance(limiter.stats().instance))
        heartbeat = json.loads(text or "{}")
        return heartbeat.get("revision"), heartbeat.get("glass_until_us")

    assert eventually(lambda: reported() == (1, None))
    began_us = time.time_ns() // 1_000  # a heartbeat goes by the clock of the store
    world.publish(emergency({"began_at_us": began_us, "ends_at_us": began_us + HOUR_US}))
    assert eventually(lambda: reported() == (2, began_us + HOUR_US))


DOCUMENT = emergency(BROKEN, [PROJECT], [(None, "session", "x")])["emergency"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"break_glass": {"began_at_us": 0, "ends_at_us": 24 * HOUR_US + 1}}, "must end within 86400 seconds"),
        ({"break_glass": {"began_at_us": 1, "ends_at_us": 1}}, "must end within"),
        ({"break_glass": {"began_at_us": 0, "ends_at_us": True}}, "ends_at_us"),
        ({"break_glass": {"ends_at_us": 1}}, "began_at_us: is required"),
        ({"break_glass": "yes"}, "break_glass: must be an object"),
        ({"projects": [1]}, "projects: must be a list of strings"),
        ({"projects": None}, "projects: must be a list"),
        ({"values": [{"project": "", "name": "x", "value": "y"}]}, "a project must have an id, or be null"),
        ({"values": [{"project": None, "name": "", "value": "x"}]}, "a name must have 1 to 64"),
        ({"values": [{"project": None, "name": "x", "value": 1}]}, "a value must have at most 1024"),
        ({"values": ["x"]}, "values: must be an object"),
        ({"values": [{"project": None, "name": "x", "value": "y", "ends_at_us": None}]}, "ends_at_us"),
        ({"ending_projects": [PROJECT]}, "ending_projects: must be an object"),
        ({"ending_projects": [{"id": PROJECT, "ends_at_us": 1}]}, "active: is required"),
        ({"ending_projects": [{"id": PROJECT, "ends_at_us": "1", "active": True}]}, "ends_at_us"),
        ({"schema": 2}, "schema: must be 1"),
        ({"more": 1}, "more: unknown field"),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused_as_a_whole(changes, message):
    """No mistake in it is read as unlimited."""
    with pytest.raises(InvalidDocument, match=message):
        parse_emergency(json.dumps({**DOCUMENT, **changes}))


def test_a_refused_document_breaks_no_glass(limiter, world):
    """What was published before it stays, and the limits are enforced."""
    secret = world.everything(fixed(0))
    world.publish(emergency({"began_at_us": 0, "ends_at_us": 48 * HOUR_US}))

    assert limiter._documents.current.emergency == NO_EMERGENCY
    assert reason(limiter, secret) == "cost_exceeds_capacity"


def test_a_clock_that_was_ahead_ends_no_suspension(server, world):
    """Nothing is published when the clock is right again, but plans that were made by the wrong time are made again."""
    with Limiter(server.url, timeout=1.0) as limiter:
        limiter.start(0.0)
        world.followers.append(limiter)
        secret, clock = world.everything(fixed(9)), limiter._engine.agent.clock
        until_us = clock.now_us() + HOUR_US
        world.publish(tokens={secret: {**world.token("pol_api"), "suspended": True, "suspended_until_us": until_us}})

        clock.set(clock.now_us() + 2 * HOUR_US, clock.monotonic_us())
        limiter.check(secret)
        read_clock(world.client, clock)

        assert reason(limiter, secret) == "suspended"
