"""
Requests and responses as ASGI messages.

It knows which messages begin a response and which complete it, and when the client has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import cache
from typing import Any, Final

from enforcement.http.addresses import TrustedProxies
from enforcement.http.messages import CLIENT_GONE, Header, token_in
from enforcement.http.progress import Progress

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY_VIOLATION: Final = 1008
"""Close code of a websocket if the server cannot send a response instead."""
PRIVATE_NETWORKS: Final = "127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7,unix"
"""The networks that may read ``/metrics`` if nothing else is set."""
METERED: Final = "sluicegate.metered"
"""Where the scope of a metered request has its :class:`~enforcement.doors.metered.visit.MeteredVisit`."""
READ_BODY: Final = "sluicegate.body"
"""Where the scope of a request to an MCP server has the body that a meter has read."""
STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_BODIES: Final = frozenset({"http.response.body", "websocket.http.response.body"})
_GONE: Final = frozenset({"http.disconnect", "websocket.disconnect"})


class Exchange:
    """One request and its response, observed as their messages pass."""

    __slots__ = ("_client_left", "_progress")

    def __init__(self) -> None:
        self._client_left = False
        self._progress = Progress()

    @property
    def status(self) -> int:
        """The HTTP status of the response, or, if none began, 499 if the client left and 500 otherwise."""
        return self._progress.status or (CLIENT_GONE if self._client_left else 500)

    async def run(
        self, app: App, scope: Scope, receive: Receive, send: Send, leave: Callable[[], Awaitable[None]]
    ) -> None:
        """
        Call an ASGI application, and await *leave* when its response is complete and again when the application ends.

        Args:
            leave: Frees it. Awaited before the last message is sent, and again when the application ends, for a
                response may never be complete.
        """

        async def observing(message: Message) -> None:
            if self._completes(message):
                await leave()
            await send(message)

        try:
            await app(scope, self._listening(receive), observing)
        except asyncio.CancelledError:
            self._client_left = True
            raise
        finally:
            await leave()

    def _listening(self, receive: Receive) -> Receive:
        """Return a function that calls *receive*, notes whether the client has left, and returns the message."""

        async def listen() -> Message:
            message = await receive()
            self._client_left |= message["type"] in _GONE
            return message

        return listen

    def _completes(self, message: Message) -> bool:
        """Keep what a message to the client says of the response, and return whether it completes the response."""
        kind = message["type"]
        if kind in STARTS:
            length = next((v.decode("latin-1") for n, v in message.get("headers", ()) if n == b"content-length"), None)
            self._progress.begin(message.get("status", 101), length)
        elif kind == "websocket.close" and self._progress.status is None:
            self._progress.begin(403, None)  # servers answer a refused handshake with it
        elif kind in _BODIES:
            # Both are needed: a body of announced length may be complete before the application says so.
            complete = self._progress.ends_with(len(message.get("body", b"")))
            return complete or not message.get("more_body", False)
        return False


def peer_of(scope: Scope) -> str | None:
    """Return the address of the peer that sends a request, or None over a Unix socket, which has no addresses."""
    client = scope.get("client")
    return client[0] if client else None


def only_value(scope: Scope, name: bytes) -> bytes | None:
    """Return the raw value of a header field if the request has it exactly once, else None."""
    result = None
    for key, value in scope["headers"]:
        if key == name:
            if result is not None:
                return None
            result = value
    return result


def header_of(scope: Scope, name: bytes) -> str | None:
    """Return the value of a header field, with repeated fields joined by commas, or None if there is none."""
    values = [value for key, value in scope["headers"] if key == name]
    return b", ".join(values).decode("latin-1") if values else None


def token_of(scope: Scope) -> str | None:
    """Return the token in the usual header fields of a request, or None, see :func:`token_in`."""
    return token_in(lambda name: header_of(scope, name.encode()))


def comes_from(scope: Scope, networks: TrustedProxies, proxies: TrustedProxies) -> bool:
    """
    Return whether the client of a request is in certain networks.

    What came through a proxy that is not one of *proxies* may come from anywhere.
    """
    peer = scope["client"][0] if scope.get("client") else None
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    undeclared = bool(forwarded) and not proxies.trusts(peer)
    return not undeclared and networks.trusts(proxies.client(peer, forwarded))


def encoded(headers: Iterable[Header]) -> list[tuple[bytes, bytes]]:
    """Return header fields as ASGI spells them, with names in lower case."""
    return [(_name(name), value.encode("latin-1")) for name, value in headers]


@cache
def _name(name: str) -> bytes:
    """Return a field name as ASGI spells it, lower case and encoded. The cache holds only our own names."""
    return name.lower().encode("latin-1")
