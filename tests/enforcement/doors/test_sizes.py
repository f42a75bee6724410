"""A megabyte where a token, a header or a name belongs: refused at every door, and before the store hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from enforcement import Limiter, aio
from enforcement.doors.asgi import LimitMiddleware as AsgiDoor
from enforcement.doors.wsgi import LimitMiddleware as WsgiDoor
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH, MAX_ATTRIBUTES, MAX_TOKEN_LENGTH
from tests.enforcement.doors.conftest import Issue

MEGABYTE = "x" * 1_000_000
BY_TEAM = Limit(name="team", quota=1_000, window_seconds=3_600, partition_by=("header.x-team",))


@pytest.fixture
def secret(issue: Issue) -> str:
    return issue(BY_TEAM)


@pytest.fixture
def limiter(store: ValkeyServer, secret: str) -> Iterator[Limiter]:
    with Limiter(store.url, timeout=1.0) as limiter:
        yield limiter


def through_asgi(store: ValkeyServer, headers: dict[str, str], times: int = 1) -> list[int]:
    """Ask an ASGI application, without a server, which would set limits of its own; return the statuses."""
    answers: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask() -> None:
        async with aio.Limiter(store.url, timeout=1.0) as limiter:
            door = AsgiDoor(app, limiter)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            scope = {"type": "http", "method": "GET", "path": "/", "headers": raw, "client": ("192.0.2.1", 1)}
            for _ in range(times):
                await door({**scope}, receive, send)

    asyncio.run(ask())
    return answers


def through_wsgi(store: ValkeyServer, headers: dict[str, str], times: int = 1) -> list[int]:
    """Ask a WSGI application, without a server; return the statuses."""
    answers: list[int] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        answers.append(int(status.split()[0]))

    named = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "REMOTE_ADDR": "192.0.2.1", **named}
    with Limiter(store.url, timeout=1.0) as limiter:
        door = WsgiDoor(app, limiter)
        for _ in range(times):
            b"".join(door({**environ}, start_response))
    return answers


doors = pytest.mark.parametrize("ask", [through_asgi, through_wsgi])


def calls_of_store(client: redis.Redis) -> int:
    """Return how many tokens were looked up and decisions made in the store so far."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "hget", "fcall"))


@doors
@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {MEGABYTE}"}, {"X-API-Key": MEGABYTE}])
def test_a_token_of_a_megabyte_is_no_token(
    ask: Any, headers: dict[str, str], store: ValkeyServer, secret: str, client_of_store: redis.Redis, monkeypatch: Any
) -> None:
    """401, and nobody hashed it."""
    client_of_store.config_resetstat()
    monkeypatch.setattr("enforcement.state.planner.digest", lambda token: pytest.fail("hashed"))

    assert ask(store, headers, times=20) == [401] * 20
    assert client_of_store.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"] == 0


@doors
@pytest.mark.parametrize(("length", "status"), [(MAX_ATTRIBUTE_LENGTH, 200), (MAX_ATTRIBUTE_LENGTH + 1, 431)])
def test_a_header_that_limits_count_by_has_a_length(
    ask: Any, length: int, status: int, store: ValkeyServer, client_of_store: redis.Redis, secret: str
) -> None:
    """Beyond it the request is refused by the name of the field, and nothing is counted."""
    headers = {"Authorization": f"Bearer {secret}", "X-Team": "t" * length}

    assert ask(store, headers) == [status]
    assert len(client_of_store.keys("sg:{proj_*}:c:*")) == (status == 200)
    assert all(len(key) <= 128 for key in client_of_store.keys("*"))


@doors
def test_a_header_that_no_limit_looks_at_may_be_long(ask: Any, store: ValkeyServer, secret: str) -> None:
    """It is the application's business."""
    headers = {"Authorization": f"Bearer {secret}", "X-Team": "t", "X-Other": MEGABYTE}

    assert ask(store, headers) == [200]


@pytest.mark.parametrize("token", ["", MEGABYTE, "é", "\0", "x" * (MAX_TOKEN_LENGTH + 1), None, 7, ["x"], b"x"])
def test_what_is_no_token_is_unknown(limiter: Limiter, client_of_store: redis.Redis, token: Any) -> None:
    """In the library too: a denial with a reason, no error, and nothing for the store to do."""
    limiter.check("x")
    before = calls_of_store(client_of_store)

    assert limiter.check(token).reason == "unknown_token"
    assert calls_of_store(client_of_store) - before <= 1  # a heartbeat may fall in between


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"user": MEGABYTE}, "'user' must have at most 1024 characters"),
        ({"u" * (MAX_ATTRIBUTE_NAME_LENGTH + 1): "x"}, "a name must have at most 64 characters"),
        ({f"a{number}": "x" for number in range(MAX_ATTRIBUTES + 1)}, "must have at most 32 items, got 33"),
        ({"user": 7}, "'user' must be a string, got 7"),
        ({7: "user"}, "a name must be a string, got 7"),
        (["user"], "must be a mapping"),
    ],
)
def test_attributes_have_sizes(limiter: Limiter, secret: str, attributes: Any, rule: str) -> None:
    """An error that names the attribute and the rule, and charges nothing; it does not repeat what was too long."""
    with pytest.raises(ValueError, match=rule) as caught:
        limiter.check(secret, attributes=attributes)

    assert len(str(caught.value)) < 200


def test_the_longest_attributes_are_counted(limiter: Limiter, secret: str, client_of_store: redis.Redis) -> None:
    """As many as may be given, each as long as it may be; and two that differ in their last character apart."""
    filling = {f"{'a' * 61}-{number:02}": "é" * MAX_ATTRIBUTE_LENGTH for number in range(MAX_ATTRIBUTES - 1)}
    for last in "abb":
        team = "t" * (MAX_ATTRIBUTE_LENGTH - 1) + last
        assert limiter.check(secret, attributes={**filling, "header.x-team": team}).allowed

    assert len(client_of_store.keys("sg:{proj_*}:c:*")) == 2
