"""What a forwarded request leaves behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from enforcement.doors.proxy.fields import RequestFields
from enforcement.doors.proxy.forwarding import Forwarding
from enforcement.doors.proxy.pool import Pool
from tests.enforcement.doors.proxy.conftest import Peer

HEAD = b"POST / HTTP/1.1\r\nhost: upstream\r\ncontent-length: 2\r\n\r\n"


def echoing(peer: Peer) -> None:
    """Answer one request with its body."""
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + peer.body(2))


def hanging(peer: Peer) -> None:
    """Begin an answer, and do not end it."""
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n" + peer.body(2))
    peer.closed()


@pytest.mark.parametrize("ends", ["whole", "left"])
async def test_a_forwarded_request_waits_for_no_collector_of_garbage(scripted, ends: str) -> None:
    """It is freed when it is over. In a circle of references it would stay, with all that it has, until one comes."""
    upstream = scripted(echoing if ends == "whole" else hanging)
    pool, gone, sent = Pool(upstream.host, upstream.port, tls=False), asyncio.Event(), []
    messages = [{"type": "http.request", "body": b"hi", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if ends == "left" and message.get("body"):
            gone.set()

    gc.disable()
    try:
        forwarding = Forwarding(pool, 5.0, ("", ""), {"type": "http", "method": "POST"}, receive, send)
        await forwarding.run(HEAD, RequestFields(length=2), None)
        left = weakref.ref(forwarding)
        del forwarding
        async with asyncio.timeout(5):
            while left() is not None:  # until the timer that would have watched its client
                await asyncio.sleep(0.001)
    finally:
        gc.enable()
    pool.close()
    assert sent[-1]["body"] == b"hi"


@pytest.mark.parametrize("size", [3, 100_000])
async def test_what_a_client_did_not_take_reaches_no_other_client(scripted, size: int) -> None:
    """
    Some servers cancel a request whose client leaves. Its answer may have come whole by then, and waits in the
    connection; of a long one, the connection also waits to be read on. The next request gets its own answer at once.
    """

    def answering(peer: Peer) -> None:
        while peer.head():
            body = peer.body(2) * (size // 2)
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    upstream = scripted(answering)
    pool, blocked = Pool(upstream.host, upstream.port, tls=False), asyncio.Event()

    async def visit(body: bytes, *, takes: bool) -> bytes:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent = bytearray()

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.extend(message.get("body", b""))
            if not takes:
                blocked.set()
                await asyncio.Event().wait()

        await Forwarding(pool, 5.0, ("", ""), {"type": "http", "method": "POST"}, receive, send).run(
            HEAD, RequestFields(length=2), None
        )
        return bytes(sent)

    first = asyncio.ensure_future(visit(b"aa", takes=False))
    async with asyncio.timeout(5):
        await blocked.wait()
        await asyncio.sleep(0.05)  # the rest of the answer comes meanwhile
        first.cancel()
        await asyncio.wait({first})
        assert await visit(b"bb", takes=True) == b"bb" * (size // 2)
    pool.close()


async def test_a_connection_whose_answer_waited_for_its_client_is_used_again(scripted) -> None:
    """It had to wait itself when the last part came, and reads the next answer all the same."""

    def answering(peer: Peer) -> None:
        while peer.head():
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 150000\r\n\r\n" + b"x" * 150_000)

    upstream = scripted(answering)
    pool = Pool(upstream.host, upstream.port, tls=False)

    async def visit() -> int:
        sizes = []

        async def send(message: Any) -> None:
            if not sizes:
                await asyncio.sleep(0.1)  # all of it comes meanwhile
            sizes.append(len(message.get("body", b"")))

        scope = {"type": "http", "method": "GET"}
        await Forwarding(pool, 5.0, ("", ""), scope, asyncio.Event().wait, send).run(HEAD, RequestFields(), None)
        return sum(sizes)

    async with asyncio.timeout(5):
        assert [await visit() for _ in range(3)] == [150_000] * 3
    assert upstream.connections == 1
    pool.close()
