"""Forward auth: what a proxy that sends a subrequest gets to know, on real servers."""

from __future__ import annotations

import asyncio
import json

import pytest

from enforcement import aio
from enforcement.http.addresses import TrustedProxies
from enforcement.service.app import DecisionService
from enforcement.service.settings import ServiceSettings
from tests.enforcement.doors.conftest import bearer
from tests.enforcement.world import eventually, fixed

SERVERS = ["h2corn", "uvicorn"]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_quota_holds_and_the_denial_says_why(world, start, kind):
    """The status, our header fields and a problem; one service is one more door to the same counter."""
    secret = world.everything(fixed(2))
    client = start("--server", kind)
    answers = [client.get("/v1/check", headers=bearer(secret)) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers] == [
        '"rpm";r=1',
        '"rpm";r=0',
        '"rpm";r=0',
    ]
    assert answers[0].content == b""
    denied = answers[2]
    assert denied.headers["Content-Type"] == "application/problem+json"
    assert (denied.json()["code"], denied.json()["limit"]) == ("limited", "rpm")
    assert 1 <= int(denied.headers["Retry-After"]) <= 3_600
    assert denied.headers["Sluicegate-Denial"] == "limited"
    assert denied.headers["Sluicegate-Decision"] == denied.json()["decision"]


@pytest.mark.parametrize("field", ["X-Goog-Api-Key", "Api-Key"])
def test_a_token_in_the_field_of_a_providers_sdk(world, start, field):
    """The key of another API in it is not a token that is wrong."""
    secret = world.everything(fixed(2))
    client = start()

    assert client.get("/v1/check", headers={field: secret}).headers["RateLimit"].startswith('"rpm";r=1')
    assert client.get("/.well-known/sluicegate/usage", headers={field: secret}).json()["limits"][0]["left"] == 1
    assert client.get("/v1/check", headers={field: "AIza"}).json()["code"] == "missing_token"


def test_nginx_gets_403_and_the_status_beside_it(world, start):
    """nginx takes nothing but 401 and 403 for a denial, and an error page for the rest."""
    secret = world.everything(fixed(0))
    client = start()

    denied = client.get("/v1/check403", headers=bearer(secret))
    assert (denied.status_code, denied.headers["Sluicegate-Status"]) == (403, "429")
    assert denied.headers["Sluicegate-Denial"] == "cost_exceeds_capacity"
    assert denied.headers["Sluicegate-Problem"] == denied.text
    unknown = client.get("/v1/check403", headers=bearer("unknown"))
    assert (unknown.status_code, unknown.headers["Sluicegate-Status"]) == (401, "401")
    assert unknown.headers["Sluicegate-Problem"] == unknown.text


def test_the_request_is_the_one_that_the_proxy_describes(world, start):
    """Method and path by X-Forwarded fields, or behind the endpoint's own path as Envoy sends it."""
    secret = world.everything(fixed(0, match={"methods": ["POST"], "path": "/v1/chat*"}))
    client = start()

    def ask(path, method="GET", **headers):
        return client.request(method, path, headers={**bearer(secret), **headers}).status_code

    forwarded = {"X-Forwarded-Method": "POST", "X-Forwarded-Uri": "/v1/chat?model=x"}
    assert ask("/v1/check", **forwarded) == 429
    assert ask("/v1/check", **{**forwarded, "X-Forwarded-Uri": "/other"}) == 200
    assert ask("/v1/check", **{**forwarded, "X-Forwarded-Method": "GET"}) == 200
    # Some proxies hand on the whole URL if their client sent it.
    for url in ("http://shop.test/v1/chat?x=1", "HTTPS://shop.test:443/v1/ch%61t"):
        assert ask("/v1/check", **{**forwarded, "X-Forwarded-Uri": url}) == 429
    assert ask("/v1/check", **{**forwarded, "X-Forwarded-Uri": "http://shop.test?/v1/chat"}) == 200
    assert ask("/v1/check/v1/chat/completions", "POST") == 429
    assert ask("/v1/check/v1/chat%2Fcompletions?x=1", "POST") == 429
    # Envoy hands its client's fields on, and the path is its own word.
    assert ask("/v1/check/v1/chat", "POST", **{"X-Forwarded-Uri": "/harmless"}) == 429


def test_only_a_trusted_proxy_describes_requests(world, start):
    """From anybody else the fields are the caller's own, and say nothing."""
    secret = world.everything(fixed(0, match={"methods": ["POST"]}))
    client = start(SLUICEGATE_TRUSTED_PROXIES="192.0.2.1", SLUICEGATE_COSTS_HEADER="x-costs")
    headers = {**bearer(secret), "X-Forwarded-Method": "POST"}

    assert client.get("/v1/check", headers=headers).status_code == 200
    assert client.post("/v1/check", headers={**headers, "X-Costs": "requests=0"}).status_code == 429


async def test_a_proxy_that_is_not_trusted_is_named_in_the_log(world, server, caplog):
    """Its operator would believe that limits by path and address work."""
    secret = world.everything(fixed(5, match={"path": "/a*"}))
    limiter = aio.Limiter(server.url, timeout=1.0)
    app = DecisionService(limiter, ServiceSettings(trusted=TrustedProxies(["192.0.2.1"])))
    scope = {"type": "http", "method": "GET", "path": "/v1/check", "client": ("127.0.0.1", 1)}
    scope["headers"] = [(b"authorization", f"Bearer {secret}".encode()), (b"x-forwarded-uri", b"/a")]

    async def send(message):
        pass

    await app(scope, asyncio.Event().wait, send)
    await app({**scope, "headers": scope["headers"][:1]}, asyncio.Event().wait, send)

    said = [record.getMessage() for record in caplog.records if record.name == "sluicegate.service"]
    assert len(said) == 1
    assert said[0].startswith("127.0.0.1 describes requests by X-Forwarded fields, but is no trusted proxy.")
    await limiter.close()


POSTED = {"x-forwarded-method": "POST"}


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, "X-Forwarded-Method, X-Forwarded-Uri and X-Forwarded-For"),
        ({"x-original-uri": "/a", "x-forwarded-for": "192.0.2.7"} | POSTED, "X-Forwarded-Uri"),
        ({"x-forwarded-uri": "/a"} | POSTED, "X-Forwarded-For"),
        ({"x-forwarded-uri": "/a", "x-forwarded-for": "192.0.2.7"}, "X-Forwarded-Method"),
        ({"x-forwarded-uri": "/a", "x-forwarded-for": "192.0.2.7"} | POSTED, None),
    ],
)
async def test_a_proxy_that_does_not_describe_requests_is_named(world, server, caplog, fields, missing):
    """As nginx does not unless its configuration says so."""
    limiter = aio.Limiter(server.url, timeout=1.0)
    app = DecisionService(limiter, ServiceSettings())
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    scope = {"type": "http", "method": "GET", "path": "/v1/check", "client": ("127.0.0.1", 1), "headers": headers}

    async def send(message):
        pass

    await app(scope, asyncio.Event().wait, send)
    said = [record.getMessage() for record in caplog.records if "does not describe" in record.getMessage()]
    assert [text.partition(", so that")[0] for text in said] == (
        [f"127.0.0.1 does not describe requests by {missing}"] if missing else []
    )
    await limiter.close()


def test_addresses_come_from_the_proxy(world, start):
    """Each client behind the proxy has a counter of its own."""
    secret = world.everything(fixed(1, partition_by=["ip"]))
    client = start()
    statuses = [
        client.get("/v1/check", headers={**bearer(secret), "X-Forwarded-For": ip}).status_code
        for ip in ("203.0.113.1", "203.0.113.1", "203.0.113.2", "forged, 203.0.113.2")
    ]

    assert statuses == [200, 429, 200, 429]


def test_costs_and_attributes_come_by_the_fields_that_are_named(world, start):
    """And by no others: a client could send them, too."""
    secret = world.everything(fixed(10, unit="tokens", name="tpm", partition_by=["model"]), fixed(5))
    client = start(SLUICEGATE_COSTS_HEADER="X-Costs", SLUICEGATE_ATTRIBUTES_HEADER="X-Attributes")

    def ask(costs, attributes="model=a"):
        fields = {"X-Costs": costs, "X-Attributes": attributes}
        return client.get("/v1/check", headers={**bearer(secret), **fields})

    assert [ask("tokens=6").status_code, ask("tokens=6").status_code, ask("tokens=6", "model=b").status_code] == [
        200,
        429,
        200,
    ]
    for wrong in ("tokens=-1", "tokens=1.5", "tokens", "tokens=99999999999999999999", "Tokens=1", "tokens=1&tokens=0"):
        answer = ask(wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), wrong
        assert "costs" in answer.json()["detail"], answer.text
    # What is not percent-encoded means the same, as UTF-8.
    assert [ask("tokens=6", model).status_code for model in ("model=%C3%A9", "model=é".encode())] == [200, 429]


def test_requests_without_a_token(world, start):
    """They are refused, unless the service knows for which project they count. A wrong token is never one of them."""
    policies = {**world.policy("anon", fixed(1, partition_by=["ip"])), **world.policy("api", fixed(9))}
    world.publish({"global": {"schema": 1, "policy": None}, **policies, **world.project(anonymous_policy="pol_anon")})
    refusing, admitting = start(), start(SLUICEGATE_ANONYMOUS_PROJECT="shop")

    assert refusing.get("/v1/check").status_code == 401
    assert "WWW-Authenticate" in refusing.get("/v1/check").headers
    assert [admitting.get("/v1/check").status_code for _ in range(2)] == [200, 429]
    assert admitting.get("/v1/check", headers=bearer("wrong")).status_code == 401
    assert admitting.get("/v1/check", headers={"X-API-Key": ""}).status_code == 401


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60}, "counts slots"),
        (fixed(5, charge_on=["2xx"]), "is charged by the status of the response"),
    ],
)
def test_what_cannot_be_given_back_is_refused(world, start, limit, why):
    """Nobody tells the service when a request ends, so a slot would leak: it says so, and takes none."""
    secret = world.everything(limit)
    answer = start().get("/v1/check", headers=bearer(secret))

    assert (answer.status_code, answer.json()["code"]) == (503, "limit_not_supported")
    assert f"api/{limit['name']} {why}" in answer.json()["detail"]
    assert list(world.client.scan_iter("sg:*c:*")) == []


def test_what_is_refused_is_reported(world, start):
    """The heartbeat names each limit that cannot be enforced, with the reason; one that can is not named."""
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60}
    secret = world.everything(slots, fixed(5), fixed(5, name="good", charge_on=["2xx"]))
    client = start(SLUICEGATE_INSTANCE="serve-1")
    for _ in range(3):
        client.get("/v1/check", headers=bearer(secret))
    world.publish()  # acknowledged at once, by a heartbeat

    def reported():
        beat = world.client.get(world.keys.instance("serve-1"))
        return [] if beat is None else json.loads(beat)["unsupported"]

    assert eventually(lambda: len(reported()) == 2)
    assert reported() == [["proj_1", "api", "slots", "slots"], ["proj_1", "api", "good", "charge_on"]]


def test_too_long_attributes_and_token(world, start):
    """A value on which a limit depends is not shortened."""
    secret = world.everything(fixed(5, match={"path": "/a*"}))
    client = start()

    assert client.get("/v1/check", headers={**bearer(secret), "X-Forwarded-Uri": "/" + "a" * 3_000}).status_code == 414
    assert client.get("/v1/check", headers=bearer("x" * 5_000)).status_code == 401


def test_no_label_is_taken_from_fields(world, start):
    """Not even from the field from which it reads attributes."""
    claim = {"attributes": {"label.team": "blue"}}
    limits = fixed(2, partition_by=["label.team", "path"]), fixed(0, name="blue", match=claim)
    secret = world.everything(*limits, labels={"team": "red"})
    client = start(SLUICEGATE_COSTS_HEADER="X-Costs", SLUICEGATE_ATTRIBUTES_HEADER="X-Attributes")
    claims = {"X-Attributes": "label.team=blue", "label.team": "blue", "X-Costs": "requests=1"}
    answers = [client.get("/v1/check", headers={**bearer(secret), **claims}) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
