"""What a forwarded request leaves behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from enforcement.doors.proxy.fields import RequestFields
from enforcement.doors.proxy.forwarding import Forwarding
from enforcement.doors.proxy.pool import Pool
from tests.enforcement.doors.proxy.conftest import Peer

HEAD = b"POST / HTTP/1.1\r\nhost: upstream\r\ncontent-length: 2\r\n\r\n"


def echoing(peer: Peer) -> None:
    """Answer one request with its body."""
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + peer.body(2))


async def test_a_forwarded_request_waits_for_no_collector_of_garbage(scripted) -> None:
    """It is freed when it is over. In a circle of references it would stay, with all that it has, until one comes."""
    upstream = scripted(echoing)
    pool, gone, sent = Pool(upstream.host, upstream.port, tls=False), asyncio.Event(), []
    messages = [{"type": "http.request", "body": b"hi", "more_body": False}]

    async def receive() -> Any:
        if not messages:
            await gone.wait()
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    gc.disable()
    try:
        forwarding = Forwarding(pool, 5.0, {"type": "http", "method": "POST"}, receive, send)
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
