"""What a door shows of limits that count nothing, of slots, and to the SDK of a provider."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.model.limits import Limit
from tests.enforcement.doors.conftest import Issue, Serve, bearer

RPM = Limit(name="rpm", quota=60, window_seconds=3_600)
TPM = Limit(name="tpm", quota=1_000, window_seconds=3_600, unit="tokens")
SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=3_600)


class Upstream:
    """Answers every request, one under /slow only when it may."""

    def __init__(self) -> None:
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.inside.set()
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def guarded(store: Any, serve: Serve) -> Any:
    """Serve an application behind the door; return a client of it."""
    return lambda app, **options: serve(LimitMiddleware(app, aio.Limiter(store.url, timeout=1.0), **options))


def test_a_limit_that_nobody_counts_is_not_advertised(guarded: Any, issue: Issue) -> None:
    """The door charges requests; a policy of tokens would be a promise that nobody keeps."""
    tokens = issue(TPM), issue(RPM, TPM)
    client = guarded(Upstream())

    alone, beside = (client.get("/", headers=bearer(token)) for token in tokens)

    assert (alone.status_code, beside.status_code) == (200, 200)
    assert not [name for name in alone.headers if name.lower().startswith("ratelimit")]
    assert beside.headers["RateLimit-Policy"] == '"rpm";q=60;w=3600'
    assert beside.headers["RateLimit"].startswith('"rpm";r=59')


def test_a_limit_that_the_application_counts_is_shown(guarded: Any, issue: Issue) -> None:
    """Where the door is told the costs; a cost of 0 is one."""
    headers = bearer(issue(TPM))
    client = guarded(Upstream(), costs=lambda scope: {"tokens": 350 if scope["path"] == "/" else 0})

    answers = [client.get(path, headers=headers) for path in ("/", "/", "/free", "/")]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["RateLimit"].split(";")[1] for answer in answers] == ["r=650", "r=300", "r=300", "r=300"]


async def test_an_sdk_is_told_a_second_for_a_slot_and_shows_the_sentence(store: Any, issue: Issue) -> None:
    """The openai SDK sleeps as long as Retry-After says, up to a minute, and then finds the slot that became free."""
    upstream = Upstream()
    limiter = aio.Limiter(store.url, timeout=1.0)
    door = LimitMiddleware(upstream, limiter, headers="ietf+openai")
    fields = [(b"authorization", f"Bearer {issue(SLOT)}".encode())]

    async def get(path: str) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": fields, "client": None}
        await door(scope, asyncio.Future, send)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    slow = asyncio.create_task(get("/slow"))
    await upstream.inside.wait()
    status, headers, body = await get("/")
    upstream.go_on.set()
    await slow

    assert (status, headers[b"retry-after"], headers[b"content-type"]) == (429, b"1", b"application/json")
    assert b'"message": "slots: its only slot is in use. Try again in 1 s."' in body
    assert (await get("/"))[0] == 200
    await limiter.close()
