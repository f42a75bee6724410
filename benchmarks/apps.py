"""The applications that the web figures are taken on: ``python -m benchmarks.apps NAME STORE_URL PORT`` serves one."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from benchmarks.peers import MINUTE, AsyncFixedWindow, async_storage
from benchmarks.threads import PATIENCE
from enforcement.aio import Limiter
from enforcement.cli.uvicorn_protocol import BoundedProtocol
from enforcement.doors.asgi import LimitMiddleware

App = Callable[[Any, Any, Any], Awaitable[None]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with two bytes."""
    if scope["type"] == "http":
        await send(START)
        await send({"type": "http.response.body", "body": b"ok"})
    elif scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})


async def silent(scope: Any, receive: Any, send: Any) -> None:
    """Answer ``/within`` with the first byte of two, and others with nothing, until the client leaves."""
    if scope["type"] != "http":
        await bare(scope, receive, send)
        return
    if scope["path"] == "/within":
        await send(START)
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


class WithLimits:
    """The same behind limits.aio, as thin as it can be; *headers*: with the fields that clients expect."""

    def __init__(self, url: str, *, headers: bool) -> None:
        self._limiter = AsyncFixedWindow(async_storage(url, max_connections=100))
        self._headers = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await bare(scope, receive, send)
            return
        token = next(value for name, value in scope["headers"] if name == b"authorization").decode()
        if not await self._limiter.hit(MINUTE, token):
            raise AssertionError("a quota that is far away was reached")
        if not self._headers:
            await bare(scope, receive, send)
            return
        stats = await self._limiter.get_window_stats(MINUTE, token)
        fields = [(b"x-ratelimit-remaining", b"%d" % stats.remaining), (b"x-ratelimit-reset", b"%d" % stats.reset_time)]
        await send({**START, "headers": [*START["headers"], *fields]})
        await send({"type": "http.response.body", "body": b"ok"})


def application(name: str, url: str) -> App:
    """Return the application of a name."""
    if name in ("bare", "silent"):
        return bare if name == "bare" else silent
    if name.startswith("limits.aio"):
        return WithLimits(url, headers=name.endswith("headers"))
    return LimitMiddleware(bare, Limiter(url, timeout=PATIENCE))


if __name__ == "__main__":
    name, url, port = sys.argv[1:]
    # As `sluicegate proxy` runs it.
    protocol: Any = BoundedProtocol if name == "proxy" else "auto"
    options: dict[str, Any] = {"http": protocol, "log_level": "warning", "access_log": False}
    uvicorn.run(application(name, url), host="127.0.0.1", port=int(port), **options)
