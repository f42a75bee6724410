"""The door for Django REST framework: its own throttles with exact counts, and the policies of a token."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import path
from django.utils.module_loading import import_string
from rest_framework import throttling
from rest_framework.response import Response
from rest_framework.views import APIView

from enforcement import Limit
from enforcement.doors._sync_visit import NotManaged
from enforcement.doors.django import check_settings
from enforcement.doors.drf import (
    AnonRateThrottle,
    PolicyThrottle,
    ScopedRateThrottle,
    SimpleRateThrottle,
    UserRateThrottle,
)
from enforcement.embedded import ValkeyServer
from tests.enforcement.doors.conftest import Issue, bearer

ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
TELLING = "enforcement.doors.django.DecisionMiddleware"


class Logged:
    """Authenticates by a header: who is logged in is not what is tested here."""

    def authenticate(self, request: Any) -> Any:
        number = request.headers.get("X-User")
        return (SimpleNamespace(pk=int(number), is_authenticated=True), None) if number else None

    def authenticate_header(self, request: Any) -> str:
        return 'Custom realm="x"'


@pytest.fixture
def api(settings: Any, store: ValkeyServer) -> Callable[..., Client]:
    """Serve one view under these throttles and rates; return a client of it."""

    def make(*throttles: Any, middleware: Any = (), options: Any = (), rates: Any = (), **more: Any) -> Client:
        settings.SLUICEGATE = {"REDIS_URL": store.url, "TIMEOUT_MS": 1000, **dict(options)}
        settings.MIDDLEWARE = list(middleware)
        settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
        settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": dict(rates)}
        fields = {"throttle_classes": throttles, "authentication_classes": [Logged], "permission_classes": []}
        fields["get"] = lambda self, request: Response(getattr(request._request, "sluicegate", None) is not None)
        settings.ROOT_URLCONF = (path("a", type("View", (APIView,), {**fields, **more}).as_view()),)
        return Client()

    return make


def statuses(client: Any, times: int, **headers: str) -> list[int]:
    return [client.get("/a", headers=headers).status_code for _ in range(times)]


def test_migration_is_one_line(api: Any) -> None:
    """The path of the class; scope, rate, key and the answer are what they were, and the wait is right."""
    client = api(import_string("enforcement.doors.drf.UserRateThrottle"), rates={"user": "2/day"})

    assert statuses(client, 3) == [200, 200, 429]
    answer = client.get("/a")
    assert answer.json()["detail"].startswith("Request was throttled. Expected available in ")
    assert 86_370 <= int(answer.headers["Retry-After"]) <= 86_400


@pytest.mark.parametrize("rate", ["1/week", ["9/minute", "1/week"], "9/minute; 1/week"])
def test_a_rate_counts_the_requests_of_exactly_the_last_period(api: Any, rate: Any) -> None:
    """The next request passes a week after the first, at whatever time of a week that was."""
    client = api(type("Weekly", (AnonRateThrottle,), {"rate": rate}))

    assert statuses(client, 1) == [200]
    assert 604_770 <= int(client.get("/a").headers["Retry-After"]) <= 604_800


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AnonRateThrottle, throttling.AnonRateThrottle),
        (UserRateThrottle, throttling.UserRateThrottle),
        (ScopedRateThrottle, throttling.ScopedRateThrottle),
    ],
)
def test_throttles_count_the_callers_that_the_frameworks_do(api: Any, ours: Any, theirs: Any) -> None:
    """Side by side with the framework's own, on the same requests."""
    callers = [{"X-User": "1"}, {}, {"X-User": "2"}, {}, {"X-User": "1"}]
    found = []
    for throttle in (ours, theirs):
        kind = type("Named", (throttle,), {"rate": "1/hour"} if throttle.scope else {})
        kind.THROTTLE_RATES = {"up": "1/hour"}
        client = api(kind, throttle_scope="up")
        found.append([client.get("/a", headers=headers).status_code for headers in callers])
    assert found[0] == found[1]
    assert 429 in found[0]


def test_view_without_a_scope_is_not_limited(api: Any) -> None:
    """As a rate of None limits nobody."""
    assert statuses(api(ScopedRateThrottle), 2) == [200, 200]
    assert statuses(api(UserRateThrottle, rates={"user": None}), 2) == [200, 200]


def test_own_throttle_keeps_its_key(api: Any) -> None:
    """get_cache_key() is asked as before; None is no limit, and a cost is what the class says."""

    class ByTeam(SimpleRateThrottle):
        scope, rate, cost = "team", "4/hour", 2

        def get_cache_key(self, request: Any, view: Any) -> str | None:
            return request.headers.get("X-Team")

    client = api(ByTeam)
    teams = ["red", "red", "red", "blue", "", ""]
    found = [client.get("/a", headers={"X-Team": team} if team else {}).status_code for team in teams]
    assert found == [200, 200, 429, 200, 200, 200]


def test_several_limits_are_one_decision(api: Any) -> None:
    """In one rate; the wait is that of the limit that denies."""
    client = api(type("Both", (UserRateThrottle,), {"rate": "2/minute; 100/day"}))

    assert statuses(client, 3) == [200, 200, 429]
    assert int(client.get("/a").headers["Retry-After"]) <= 120


def test_what_no_wait_helps_has_no_retry_after(api: Any) -> None:
    """A quota of 0, or a cost above the quota."""
    answer = api(type("Never", (UserRateThrottle,), {"rate": "0/day"})).get("/a")

    assert answer.status_code == 429
    assert "Retry-After" not in answer.headers


def test_forwarded_address_is_believed_of_trusted_proxies_only(api: Any) -> None:
    """The framework's own throttles take the whole header for an identity, which any client can invent."""
    found = []
    for trusted in ([], ["127.0.0.1"]):
        client = api(AnonRateThrottle, rates={"anon": "1/hour"}, options={"TRUSTED_PROXIES": trusted})
        found += [
            client.get("/a", headers={"X-Forwarded-For": ip}).status_code for ip in ("198.51.100.1", "198.51.100.2")
        ]
    assert found == [200, 429, 200, 200]


def test_responses_tell_what_is_left(api: Any) -> None:
    """The middleware adds the header fields, also to a denial."""
    client = api(UserRateThrottle, rates={"user": "2/hour"}, middleware=[TELLING])

    answers = [client.get("/a") for _ in range(3)]
    assert [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers] == [
        '"2-per-hour";r=1',
        '"2-per-hour";r=0',
        '"2-per-hour";r=0',
    ]
    assert answers[2].headers["Retry-After"].isdecimal()
    assert answers[0].json() is True


def test_policies_are_checked_by_token(api: Any, issue: Issue) -> None:
    """And a rate of the view besides."""
    client = api(PolicyThrottle, UserRateThrottle, rates={"user": "9/hour"}, middleware=[TELLING])
    token = issue(Limit(name="per-hour", quota=2, window_seconds=3600))

    assert statuses(client, 3, **bearer(token)) == [200, 200, 429]
    answer = client.get("/a", headers=bearer(token))
    assert answer.headers["RateLimit"].startswith('"per-hour";r=0')
    assert 1 <= int(answer.headers["Retry-After"]) <= 3600


@pytest.mark.parametrize(
    ("state", "token", "status", "challenge"),
    [
        ({}, "", 401, 'Bearer realm="sluicegate"'),
        ({}, "garbage", 401, 'Bearer realm="sluicegate", error="invalid_token"'),
        ({"revoked": True}, None, 401, 'Bearer realm="sluicegate", error="invalid_token"'),
        ({"active": False}, None, 403, None),
    ],
)
def test_token_that_is_not_valid_is_no_rate_limit(
    api: Any, issue: Issue, state: Any, token: str | None, status: int, challenge: str | None
) -> None:
    """In the framework's own form of an error, with the challenge that belongs to it."""
    issued = issue(Limit(quota=1, window_seconds=60), **state)
    client = api(PolicyThrottle)
    answer = client.get("/a", headers=bearer(issued if token is None else token) if token != "" else {})

    assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (status, challenge)
    assert answer["Content-Type"].endswith("json")


def test_the_middleware_and_a_throttle_charge_a_request_once(api: Any, issue: Issue) -> None:
    """Both ask for the same policies; each header field names a limit once."""
    client = api(PolicyThrottle, middleware=["enforcement.doors.django.LimitMiddleware"])
    headers = bearer(issue(Limit(name="per-hour", quota=3, window_seconds=3600)))

    told = [client.get("/a", headers=headers).headers["RateLimit"] for _ in range(3)]

    assert [field.partition(";t=")[0] for field in told] == [f'"per-hour";r={left}' for left in (2, 1, 0)]
    assert all(field.count("per-hour") == 1 for field in told)


def test_policy_slot_is_held_until_the_response_is_there(api: Any, issue: Issue) -> None:
    """By the middleware; without it, that is said and nothing is held."""
    headers = bearer(issue(ONE_SLOT))
    assert statuses(api(PolicyThrottle, middleware=[TELLING]), 3, **headers) == [200, 200, 200]

    with pytest.raises(NotManaged, match="to MIDDLEWARE"):
        api(PolicyThrottle).get("/a", headers=headers)


def test_store_away_is_a_503_where_the_limit_says_so(api: Any) -> None:
    """And by default the process counts for itself."""
    away = {"REDIS_URL": "redis://127.0.0.1:1/0", "TIMEOUT_MS": 25}
    closed = Limit(name="closed", quota=5, window_seconds=60, on_store_failure="deny")
    denied = api(type("Closed", (UserRateThrottle,), {"rate": closed}), options=away).get("/a")
    assert (denied.status_code, denied.headers["Retry-After"]) == (503, "1")

    client = api(UserRateThrottle, rates={"user": "1/hour"}, options=away, middleware=[TELLING])
    assert client.get("/a").headers["Sluicegate-Degraded"] == "fallback"


@pytest.mark.parametrize("rate", ["10/fortnight", ["10/minute", "10/minute"], (5,)], ids=str)
def test_rate_of_a_class_is_read_when_it_is_made(rate: Any) -> None:
    """A wrong one is found by the import, and never means unlimited."""
    with pytest.raises(ImproperlyConfigured, match="The rate of Wrong is not valid"):
        type("Wrong", (UserRateThrottle,), {"rate": rate})


@pytest.mark.parametrize(
    ("rates", "names"),
    [
        ({"user": "10/fortnight"}, "The rate of UserRateThrottle is not valid. text"),
        ({"user": 5}, "The rate of UserRateThrottle is not valid"),
        ({}, "No default throttle rate set for 'user'"),
    ],
)
def test_rate_of_the_settings_that_cannot_be_used_is_a_bug(api: Any, rates: Any, names: str) -> None:
    """It never means unlimited."""
    with pytest.raises(ImproperlyConfigured, match=names):
        api(UserRateThrottle, rates=rates).get("/a")


def test_system_checks_look_at_the_rates(settings: Any) -> None:
    """Where the throttles are ours, and only there."""
    ours, theirs = "enforcement.doors.drf.UserRateThrottle", "rest_framework.throttling.UserRateThrottle"
    rates = {"user": "10/fortnight", "anon": None, "burst": "10/s; 100/d"}
    found = []
    for throttle in (ours, theirs):
        options = {"DEFAULT_THROTTLE_CLASSES": [throttle], "DEFAULT_THROTTLE_RATES": rates, "NUM_PROXIES": 1}
        settings.REST_FRAMEWORK = options
        found.append([(problem.id, problem.msg[:44]) for problem in check_settings()])
    assert found == [
        [
            ("sluicegate.E003", "REST_FRAMEWORK['DEFAULT_THROTTLE_RATES']['us"),
            ("sluicegate.W002", "REST_FRAMEWORK['NUM_PROXIES'] has no effect "),
        ],
        [],
    ]


def test_key_too_long_to_be_counted_is_refused(api: Any) -> None:
    """It is the client's doing."""

    class ByTeam(SimpleRateThrottle):
        scope, rate = "team", "4/hour"

        def get_cache_key(self, request: Any, view: Any) -> str:
            return request.headers["X-Team"]

    answer = api(ByTeam).get("/a", headers={"X-Team": "x" * 1100})
    assert (answer.status_code, "most" in str(answer.json())) == (400, True)


def test_anonymous_user_of_django_is_nobody(api: Any, rf: Any) -> None:
    """Who is not logged in counts by address."""
    api()
    request = rf.get("/", REMOTE_ADDR="198.51.100.9")
    request.user = AnonymousUser()
    throttle = type("Rated", (UserRateThrottle,), {"rate": "1/hour"})()

    assert throttle.get_cache_key(request, None) == "throttle_user_198.51.100.9"
