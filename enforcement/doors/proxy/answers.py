"""Responses that the proxy itself makes, to requests and to clients that open a WebSocket connection."""

from __future__ import annotations

from typing import Final

from enforcement.doors.proxy.connection import RawHeaders
from enforcement.http.asgi import Scope, Send, encoded
from enforcement.http.messages import PlainResponse, problem_answer

_INTERNAL_ERROR: Final = 1011


async def refuse(scope: Scope, send: Send, status: int, title: str) -> None:
    """Send a problem in place of a response of the upstream."""
    await answer(scope, send, problem(status, title))


async def answer(scope: Scope, send: Send, response: PlainResponse) -> None:
    """Send a complete response."""
    body = b"" if scope.get("method") == "HEAD" else response.body
    await respond(scope, send, response.status, encoded(response.headers), body)


async def respond(scope: Scope, send: Send, status: int, headers: RawHeaders, body: bytes) -> None:
    """Send a response with these header fields. A server that cannot send one to a WebSocket client answers 403."""
    prefix = ""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": _INTERNAL_ERROR})
            return
        prefix = "websocket."
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": body})


def problem(status: int, title: str) -> PlainResponse:
    """Return a new response whose body is a problem with this title."""
    return problem_answer({"type": "about:blank", "title": title, "status": status})


__all__ = ["answer", "problem", "refuse", "respond"]
