"""Bodies of requests that a meter has read, on their way to the upstream."""

import asyncio

import pytest

from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.proxy import pool
from enforcement.doors.proxy.settings import ProxySettings
from enforcement.doors.proxy.upstream import Proxy
from tests.enforcement.doors.metered.budgets import SLOTS, STREAM, TPM, publish_metered, used
from tests.enforcement.doors.metered.provider import Visit

COUNTED = {**TPM, "unmetered": "count_only"}


@pytest.fixture
async def upstream(monkeypatch):
    """Yield what has arrived at an upstream that never answers."""
    got = bytearray()

    async def read(reader, writer):
        while part := await reader.read(65_536):
            got.extend(part)
        writer.close()

    server = await asyncio.start_server(read, "127.0.0.1", 0)
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield got
    server.close()


@pytest.fixture
def proxy(aio_limiter, upstream):
    application = Proxy(aio_limiter, ProxySettings.from_env())
    return LimitMiddleware(application, aio_limiter, exempt=application.pages, metered=True)


async def test_a_body_that_is_shorter_than_its_head_says_ends_the_request(world, proxy, upstream):
    """Servers of HTTP/2 may let it pass. To wait for the rest would keep the request until its client leaves."""
    secret = publish_metered(world, COUNTED)
    short = [{"type": "http.request", "body": b"abc", "more_body": False}]
    visit = Visit(proxy, secret, b"abcde", "/v1/files", http_version="2", scheme="http", messages=short)
    await asyncio.wait_for(visit.task, 5)
    assert not visit.answer.complete
    assert not upstream.endswith(b"abcde")


async def test_a_client_is_watched_although_the_connection_took_long(world, aio_limiter, proxy, upstream, monkeypatch):
    """Its slot is free at once when it leaves, and the upstream does not go on for nobody."""
    monkeypatch.setattr(pool, "WATCH_SECONDS", 0.0)  # less than any connection takes
    secret = publish_metered(world, TPM, SLOTS)
    visit = Visit(proxy, secret, STREAM, scheme="http")
    async with asyncio.timeout(5):
        while not upstream:
            await asyncio.sleep(0.005)
        visit.leave()
        await visit.task
    assert await used(aio_limiter, secret) == {"tpm": 100, "slots": 0}


async def test_a_short_body_is_sent_with_its_head(world, proxy, upstream):
    """In one write, as it came."""
    secret = publish_metered(world, COUNTED)
    visit = Visit(proxy, secret, b"abcde", "/v1/files", scheme="http")
    async with asyncio.timeout(5):
        while not upstream:
            await asyncio.sleep(0.005)
    assert upstream.endswith(b"\r\n\r\nabcde")
    visit.leave()
    await asyncio.wait_for(visit.task, 5)
