"""Responses that the proxy itself makes, to requests and to clients that open a WebSocket connection."""

from __future__ import annotations

from typing import Final

from enforcement.doors.proxy.connection import RawHeaders
from enforcement.http.asgi import Scope, Send, encoded
from enforcement.http.messages import Header, PlainResponse, error_answer

PRESET: Final = "sluicegate.preset"
"""The name under which a scope has the preset of the proxy, which names the shape of an error."""

_INTERNAL_ERROR: Final = 1011
_CODES: Final = {
    403: "refused",
    404: "not_found",
    429: "crowded",
    502: "upstream_failed",
    503: "upstream_busy",
    504: "upstream_timeout",
}


async def refuse(scope: Scope, send: Send, status: int, title: str, fields: tuple[Header, ...] = ()) -> None:
    """Send an error in place of a response of the upstream."""
    await answer(scope, send, problem(scope, status, title, fields))


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


def problem(scope: Scope, status: int, title: str, fields: tuple[Header, ...] = ()) -> PlainResponse:
    """Return a new response whose body is an error with this title."""
    code = _CODES.get(status, "bad_request")
    return error_answer(scope.get(PRESET, "ietf"), status, title, code, headers=fields)
