"""What consumers see with their token, at the control plane as at the proxies."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.objects.emergency.models import BreakGlass
from controlplane.objects.projects.models import Project, Token
from controlplane.web.restkit import throttling
from enforcement import Limiter
from enforcement.http.messages import PlainResponse
from enforcement.http.usage_request import UsageRequest, usage_answer
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

WINDOW = {"algorithm": "fixed_window", "window_seconds": 86_400}
TIMES = ("reset_at", "reset_ms")
LIMITS = [
    {"name": "daily", "quota": 100, **WINDOW},
    {"name": "soft", "quota": 1, "mode": "shadow", **WINDOW},
    {"name": "ip", "quota": 5, "partition_by": ["ip"], **WINDOW},
    {"name": "team", "quota": 50, "partition_by": ["label.team"], **WINDOW},
    {"name": "slots", "quota": 3, "algorithm": "concurrency", "window_seconds": 60},
    {"name": "saved", "quota": 10, "calendar": "month", "algorithm": "fixed_window", "rollover": 5},
]


@pytest.fixture
def secret(api, store) -> str:
    """The secret of a token with limits of every kind, of which one is overridden."""
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": LIMITS})
    api("POST", "policies", {"slug": "shared", "name": "Shared", "limits": [{"name": "all", "quota": 9, **WINDOW}]})
    api("POST", "projects", {"slug": "chat", "name": "Chat", "policy": "shared"})
    made = api("POST", "projects/chat/tokens", {"name": "ci", "policy": "free", "labels": {"team": "red"}}).json()
    override = {"limit": "free/daily", "token": made["id"], "quota": 200, "reason": "x"}
    assert api("POST", "overrides", override).status_code == 201
    return made["secret"]


def page(limiter: Limiter, secret: str) -> PlainResponse:
    return usage_answer(limiter, UsageRequest("GET", lambda: secret, dict, "ietf"))


def mine(call, path: str, secret: str):
    return call("GET", path, authorization=f"Bearer {secret}")


def without_times(limits: list[dict]) -> list[dict]:
    return [{name: value for name, value in limit.items() if name not in TIMES} for limit in limits]


def test_usage_is_that_of_the_page_of_the_proxies(call, secret, limiter):
    """The same members with the same values, after the same requests. Looking charges nothing."""
    limiter.check(secret, attributes={"ip": "192.0.2.1"})

    shown = [mine(call, "me/usage", secret).json() for _ in range(2)][1]

    expected = json.loads(page(limiter, secret).body)
    assert without_times(shown["limits"]) == without_times(expected["limits"])
    assert {limit["limit"]: limit["used"] for limit in shown["limits"]} == {
        "all": 1,
        "daily": 1,
        "soft": 1,
        "ip": None,
        "team": 1,
        "slots": 1,
        "saved": 1,
    }
    assert [(it["quota"], it["quota_source"]) for it in shown["limits"] if it["limit"] == "daily"] == [
        (200, "override")
    ]
    assert shown["revision"] == expected["revision"]
    assert all(limit["reset_at"] for limit in shown["limits"] if limit["used"])


def test_a_broken_glass_makes_each_limit_soft(call, secret):
    """As at the proxies."""
    now = timezone.now()
    BreakGlass.objects.create(began_at=now, ends_at=now + timedelta(hours=1), reason="x", by="ann")

    assert {limit["enforcement"] for limit in mine(call, "me/usage", secret).json()["limits"]} == {"soft"}


def test_a_token_sees_itself_and_nothing_of_others(call, secret):
    """Neither its policy's other holders, nor who has made it, nor the secret."""
    TokenFactory(project=ProjectFactory(slug="other"), name="theirs")

    shown = mine(call, "me", secret)

    assert shown.status_code == 200
    body = shown.json()
    assert (body["name"], body["project"], body["labels"]) == ("ci", "chat", {"team": "red"})
    assert [limit["limit"] for limit in body["limits"]] == ["all", *(limit["name"] for limit in LIMITS)]
    assert not {"used", "left"} & body["limits"][0].keys()
    assert not any(word in shown.content.decode() for word in ("other", "theirs", secret, "digest"))


def test_the_own_token_is_read_without_the_store(call, secret, store):
    """The counters are not, and no number is invented."""
    store.freeze()

    usage = mine(call, "me/usage", secret)

    assert mine(call, "me", secret).status_code == 200
    assert (usage.status_code, usage.json()["code"], usage["Retry-After"]) == (503, "store_unavailable", "1")


REFUSED = {
    "revoked": lambda api, token: api("POST", f"tokens/{token.pk}/revoke"),
    "suspended": lambda api, token: api("POST", f"tokens/{token.pk}/suspend"),
    "suspended until": lambda api, token: [
        api("POST", f"{it}/suspend", {"ends_at": f"2254-0{month}-01T00:00:00Z"})
        for month, it in enumerate(("projects/chat", f"tokens/{token.pk}"), 1)
    ],
    "suspended project": lambda api, token: api("POST", "projects/chat/suspend"),
    "inactive_project": lambda api, token: api("PATCH", "projects/chat", {"active": False}),
    "suspended label": lambda api, token: api(
        "POST", "suspensions", {"project": "chat", "name": "label.team", "value": "red", "reason": "x"}
    ),
    "revoked and suspended": lambda api, token: [
        api("POST", f"tokens/{token.pk}/{it}") for it in ("suspend", "revoke")
    ],
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_refused_token_is_answered_as_by_the_proxies(api, call, secret, store, how):
    """With the same status, code and header fields."""
    REFUSED[how](api, Token.objects.get())

    responses = [mine(call, path, secret) for path in ("me", "me/usage")]

    with Limiter(store.url, timeout=5.0, lookup=5.0) as limiter:
        expected = page(limiter, secret)
    fields = dict(expected.headers)
    assert expected.status in (401, 403)
    for response in responses:
        assert (response.status_code, response.json()["code"]) == (expected.status, json.loads(expected.body)["code"])
        for name in ("Sluicegate-Denial", "WWW-Authenticate"):
            assert response.headers.get(name) == fields.get(name), name
        assert abs(int(response.get("Retry-After", 0)) - int(fields.get("Retry-After", 0))) <= 10


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (None, "token_required"),
        ("Bearer ", "token_required"),
        ("Bearer sg_live_wrong", "unknown_token"),
        ("Basic YTpi", "unknown_token"),
        ("a management key", "unknown_token"),
        ("an expired token", "expired"),
    ],
)
def test_whatever_is_no_live_token_is_refused(call, key, sent, code):
    """Before anything is said of anybody."""
    secrets = {"a management key": key.secret, "an expired token": TokenFactory(expired=True).secret}
    header = {"authorization": f"Bearer {secrets[sent]}" if sent in secrets else sent} if sent else {}

    response = call("GET", "me", **header)

    assert (response.status_code, response.json()["code"]) == (401, code)
    assert response["WWW-Authenticate"].startswith('Bearer realm="sluicegate"')


def test_a_token_opens_nothing_else(call, secret):
    """Neither does a management key open this."""
    assert mine(call, "projects", secret).status_code == 401


def test_a_token_has_a_limit_of_its_own(call, secret, settings, monkeypatch):
    """Of its requests here, which leaves its limits at the proxies alone."""
    settings.REST_CONSUMER_RATE = "2/day"
    monkeypatch.setattr(throttling, "BUDGET_SECONDS", 5.0)
    other = TokenFactory(project=Project.objects.get())

    answers = [mine(call, path, secret) for path in ("me", "me/usage", "me")]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[1].json()["limits"][0]["used"] == 0
    assert answers[2]["RateLimit"].startswith('"rest-me";r=0;')
    assert mine(call, "me", other.secret).status_code == 200
    throttling.limiter().close()
    throttling._limiters.clear()
