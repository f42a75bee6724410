"""The server behind the proxies of the embedded stack and of docker/compose.yaml, which echoes and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
MOST_EVENTS = 1000


async def health(_: Request) -> Response:
    """Return a response with status 200."""
    return PlainTextResponse("ok\n")


async def stream(request: Request) -> Response:
    """Return a response of ?count= server-sent events, one every ?interval_ms=, as a language model streams."""
    count = min(_number(request, "count", 5), MOST_EVENTS)
    interval_ms = min(_number(request, "interval_ms", 100), 10_000)

    async def events() -> AsyncIterator[str]:
        for number in range(1, count + 1):
            yield f"data: {number}\n\n"
            await asyncio.sleep(interval_ms / 1000)

    return StreamingResponse(events(), media_type="text/event-stream")


async def echo(request: Request) -> Response:
    """Return a response with the method, path and size of the request, which shows that a proxy forwarded it."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"method": request.method, "path": request.url.path, "body_bytes": size})


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def create_app() -> Starlette:
    """Return the ASGI application of the upstream server."""
    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/stream", stream),
            Route("/{path:path}", echo, methods=METHODS),
        ]
    )
