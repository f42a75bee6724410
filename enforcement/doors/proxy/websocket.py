"""Forward WebSocket connections. It needs the extra ``websocket``, and is imported when the first of them arrives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any, Final

from enforcement.extras import Requirement

with Requirement("WebSocket forwarding", "sluicegate[websocket]"):
    from wsproto import ConnectionType, WSConnection
    from wsproto.connection import ConnectionState
    from wsproto.events import (
        AcceptConnection,
        BytesMessage,
        CloseConnection,
        Event,
        Ping,
        RejectConnection,
        RejectData,
        Request,
        TextMessage,
    )
    from wsproto.utilities import ProtocolError

from enforcement.doors.proxy.answers import refuse, respond
from enforcement.doors.proxy.connection import RawHeaders, UpstreamError
from enforcement.doors.proxy.fields import response_fields
from enforcement.doors.proxy.pool import Pool
from enforcement.http.asgi import Message, Receive, Scope, Send

logger = logging.getLogger("sluicegate.proxy")

MOST_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of a message. It has to be complete before it can be passed on."""

MOST_REFUSAL: Final = 65_536
"""Bytes that the client gets of the body of a response that refuses the connection."""

_READ: Final = 65_536
# The cost of a part of a message beside its bytes. A part may have none, and a message may have any number of parts.
_OF_A_PART: Final = 256
# The two ends of each connection agree on these fields by themselves.
_OF_ONE_HOP: Final = b"sec-websocket-"
# Codes that stand for a connection that ended without one, and cannot be sent.
_NORMAL, _GOING_AWAY, _NO_CODE, _TOO_BIG, _BROKEN = 1000, 1001, 1005, 1009, 1011
_UNSENDABLE: Final = frozenset({1004, 1005, 1006, 1015})


class Tunnel:
    """
    One WebSocket connection to an upstream, and the client's connection to the proxy.

    Args:
        pool: Knows where the upstream is.
        silence: Seconds that the upstream may take to accept the connection.
        scope: The connection, as ASGI describes it.
        receive: Gives what the client sends.
        send: Takes what it gets.
    """

    def __init__(self, pool: Pool, silence: float, scope: Scope, receive: Receive, send: Send) -> None:
        self._pool = pool
        self._silence = silence
        self._scope = scope
        self._receive = receive
        self._send = send
        self._peer = WSConnection(ConnectionType.CLIENT)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def run(self, host: bytes, target: bytes, headers: RawHeaders) -> None:
        """Connect to the upstream, and pass messages on in both directions until one side closes."""
        passing = [item for item in headers if not item[0].startswith(_OF_ONE_HOP)]
        try:
            request = Request(
                host=host.decode(),
                target=target.decode("ascii"),
                extra_headers=passing,
                subprotocols=list(self._scope.get("subprotocols", ())),
            )
            handshake = self._peer.send(request)
        except (ProtocolError, ValueError):
            await refuse(self._scope, self._send, 400, "The request is not valid")
            return
        try:
            self._reader, self._writer = await self._pool.stream()
        except TimeoutError:
            await refuse(self._scope, self._send, 504, "The upstream did not answer in time")
            return
        except UpstreamError as error:
            logger.warning("The upstream %s failed: %s", self._pool.name, error)
            await refuse(self._scope, self._send, 502, "The upstream could not be reached or broke off")
            return
        try:
            self._writer.write(handshake)
            await self._talk()
        finally:
            self._writer.close()

    async def _talk(self) -> None:
        """Wait until the upstream accepts the connection, and pass messages on then."""
        leaving = asyncio.create_task(self._next())
        opening = asyncio.create_task(self._open())
        tasks: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait([leaving, opening], return_when=asyncio.FIRST_COMPLETED)
            if not opening.done() or not opening.result():
                return
            tasks = [asyncio.create_task(self._to_upstream(leaving)), asyncio.create_task(self._to_client())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    with contextlib.suppress(OSError):  # what servers raise if the client has left
                        task.result()
        finally:
            ending: list[asyncio.Task[object]] = [leaving, opening, *tasks]
            for each in ending:
                each.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _next(self) -> Message:
        return await self._receive()  # what servers return is awaitable, and not always a coroutine

    async def _open(self) -> bool:
        """Return whether the upstream has accepted the connection. If it has not, the client gets its response."""
        try:
            async with asyncio.timeout(self._silence):
                while True:
                    for event in self._events():
                        if isinstance(event, AcceptConnection):
                            await self._accept(event)
                            return True
                        if isinstance(event, RejectConnection):
                            await self._reject(event)
                            return False
                    await self._read()
        except TimeoutError:
            await refuse(self._scope, self._send, 504, "The upstream did not answer in time")
        except (ProtocolError, UpstreamError) as error:
            logger.warning("The upstream %s failed: %s", self._pool.name, error)
            await refuse(self._scope, self._send, 502, "The upstream could not be reached or broke off")
        return False

    async def _accept(self, event: AcceptConnection) -> None:
        fields = [(bytes(name), bytes(value)) for name, value in event.extra_headers]
        headers = [item for item in response_fields(fields) if not item[0].startswith(_OF_ONE_HOP)]
        await self._send({"type": "websocket.accept", "subprotocol": event.subprotocol, "headers": headers})

    async def _reject(self, event: RejectConnection) -> None:
        """Send the response of an upstream that refuses the connection, as far as it is short."""
        body, more = b"", event.has_body
        while more:
            for part in self._events():
                if isinstance(part, RejectData):
                    body += part.data
                    more = more and not part.body_finished
            more = more and len(body) < MOST_REFUSAL
            if more:
                await self._read()
        fields = response_fields([(bytes(name).lower(), bytes(value)) for name, value in event.headers])
        headers = [item for item in fields if item[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body[:MOST_REFUSAL])))
        await respond(self._scope, self._send, event.status_code, headers, body[:MOST_REFUSAL])

    def _events(self) -> Iterable[Event]:
        return self._peer.events()

    async def _read(self) -> None:
        """Read once from the upstream, or raise UpstreamError if it has ended the connection."""
        data = await self._reader.read(_READ)
        if not data:
            raise UpstreamError("it closed the connection")
        self._peer.receive_data(data)

    async def _to_client(self) -> None:
        """Pass on what the upstream sends, until it closes the connection."""
        parts: list[Any] = []
        size = 0
        try:
            while True:
                for event in self._events():
                    if isinstance(event, (TextMessage, BytesMessage)):
                        parts.append(event.data)
                        size += len(event.data) + _OF_A_PART
                        if size > MOST_MESSAGE:
                            await self._close(_TOO_BIG, "The message is too long")
                            return
                        if event.message_finished:
                            await self._send(_message(event, parts))
                            parts, size = [], 0
                    elif isinstance(event, Ping):
                        await self._write(event.response())
                    elif isinstance(event, CloseConnection):
                        if self._peer.state is ConnectionState.REMOTE_CLOSING:
                            await self._write(event.response())
                        await self._close(event.code, event.reason or "")
                        return
                await self._read()
        except (OSError, ProtocolError, UpstreamError):
            await self._close(_BROKEN, "The upstream broke off")

    async def _to_upstream(self, first: asyncio.Task[Message]) -> None:
        """Pass on what the client sends, until it leaves."""
        message = await first
        try:
            while message["type"] != "websocket.disconnect":
                text = message.get("text")
                await self._write(BytesMessage(message["bytes"]) if text is None else TextMessage(text))
                message = await self._receive()
            code = message.get("code", _NO_CODE)
            code = _NORMAL if code == _NO_CODE else _GOING_AWAY if code in _UNSENDABLE else code
            await self._write(CloseConnection(code, message.get("reason") or None))
        except (OSError, ProtocolError):
            await asyncio.sleep(self._silence)  # the other direction learns why, and ends both

    async def _write(self, event: Event) -> None:
        self._writer.write(self._peer.send(event))
        await self._writer.drain()

    async def _close(self, code: int, reason: str) -> None:
        code = _NORMAL if code == _NO_CODE else _BROKEN if code in _UNSENDABLE else code
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


def _message(event: TextMessage | BytesMessage, parts: list[Any]) -> Message:
    if isinstance(event, TextMessage):
        return {"type": "websocket.send", "text": "".join(parts)}
    return {"type": "websocket.send", "bytes": b"".join(parts)}
