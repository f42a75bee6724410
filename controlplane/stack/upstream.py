"""The server behind the proxies of the embedded stack and of docker/compose.yaml, which echoes and streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_EVENTS = 1000


async def health(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with status 200."""
    await _answer(send, "text/plain; charset=utf-8", b"ok\n")


async def stream(scope: Message, receive: Receive, send: Send) -> None:
    """Send ?count= server-sent events, one every ?interval_ms=, as a language model streams."""
    query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
    count = min(_number(query.get("count", ""), 5), MOST_EVENTS)
    interval_ms = min(_number(query.get("interval_ms", ""), 100), 10_000)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    leaving = asyncio.ensure_future(_left(receive))
    try:
        for number in range(1, count + 1):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.wait([leaving], timeout=interval_ms / 1000)
            if leaving.done():
                return
        await send({"type": "http.response.body", "body": b""})
    finally:
        leaving.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with the method, path and size of the request, which shows that a proxy forwarded it."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = {"method": scope["method"], "path": scope["path"], "body_bytes": size}
    await _answer(send, "application/json", json.dumps(body, separators=(",", ":")).encode())


async def lifespan(receive: Receive, send: Send) -> None:
    """Answer the server when it starts and stops."""
    while (message := await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": f"{message['type']}.complete"})


async def _answer(send: Send, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def create_app() -> App:
    """Return the ASGI application of the upstream server."""
    pages = {"/healthz": health, "/stream": stream}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["type"] == "http":
            await pages.get(scope["path"], echo)(scope, receive, send)

    return app
