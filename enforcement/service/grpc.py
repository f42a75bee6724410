"""
Answer unary calls of gRPC as ASGI messages.

A call is a POST whose body holds one message behind five bytes. The status comes in the trailers, so the server must
speak HTTP/2 and send them.

An Envoy with ``failure_mode_allow`` takes every status but OK for permission. Its clients can make it send a message
that is too large. So a call that cannot be read is answered with OK and a message that denies the request.

A message describes the request of somebody else: its token, its address, what it costs and what is given back. Only a
trusted peer may say this. To ignore the description would be to overlook the limits that depend on it, so the calls of
all other peers are denied, and their messages are not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypeVar
from urllib.parse import quote

from enforcement.http.asgi import Receive, Scope, Send, encoded, header_of, peer_of
from enforcement.http.messages import PlainResponse, Refusal
from enforcement.logs import RateLimitedLogger
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import Malformed

T = TypeVar("T")

logger = logging.getLogger("sluicegate.service")

UNIMPLEMENTED: Final = 12
MAX_MESSAGE: Final = 1_048_576
"""Bytes of a message. Envoy sends a request's headers, and its body up to a limit that its configuration sets."""

READ_SECONDS: Final = 10.0
"""How long a message may take to arrive. No caller waits for an answer as long as that."""

_PREFIX: Final = 5
_MOST_PEERS: Final = 1_000
_HEADERS: Final = [(b"content-type", b"application/grpc")]
_OK_TRAILERS: Final = [(b"grpc-status", b"0")]


class MessageReader:
    """
    Reads the messages of calls, and stops waiting for those that do not arrive.

    A server need not set a limit to the time or the body of a call. One timer serves all calls that are being read,
    because a timer for each would take a tenth of the time of a decision.

    Args:
        seconds: How long a message may take to arrive. It may take half as much longer until the call is ended.
    """

    def __init__(self, seconds: float = READ_SECONDS) -> None:
        self._pause = seconds / 2
        self._now = 0  # counts the pauses of the timer
        self._since: dict[asyncio.Task[object] | None, int] = {}
        self._late: set[asyncio.Task[object] | None] = set()
        self._timer: asyncio.TimerHandle | None = None

    def read(self, receive: Receive) -> Coroutine[object, None, bytes | None]:
        """
        Return the message of a call, or None if the caller left before its end.

        Raises:
            Malformed: The body is no frame of a message.
            Refusal: The message is too large or compressed, or has not arrived in time.
        """
        return self._in_time(_message(receive))

    async def drain(self, receive: Receive) -> None:
        """
        Receive a message that is not read, up to the size that messages may have.

        A server may close the connection of all calls if one is answered before its message has arrived.
        """
        with suppress(Refusal):
            await self._in_time(_drained(receive))

    async def _in_time(self, reading: Coroutine[object, None, T]) -> T:
        task = asyncio.current_task()
        self._since[task] = self._now
        if self._timer is None:
            self._wait()
        try:
            return await reading
        except asyncio.CancelledError:
            if task is None or task not in self._late or task.uncancel():
                raise  # somebody else has cancelled the call
            raise _unreadable(408, "The message of the call did not arrive in time.") from None
        finally:
            self._since.pop(task, None)
            if self._late:
                self._late.discard(task)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._sweep)

    def _sweep(self) -> None:
        """End the calls that have waited for two whole pauses, and look again later if others are being read."""
        self._timer = None
        self._now += 1
        for task, began in self._since.items():
            if task is not None and self._now - began > 2 and task not in self._late:
                self._late.add(task)
                task.cancel()
        if self._since:
            self._wait()


class UnaryCall:
    """
    One method of gRPC, as an endpoint of the service.

    Args:
        call: Answers the message of a caller by a message. It may raise Refusal or Malformed.
        denying: Returns the message that denies a request with this response.
        reader: Reads the message.
        settings: Those of the service.
    """

    def __init__(
        self,
        call: Callable[[Scope, bytes], Awaitable[bytes]],
        denying: Callable[[PlainResponse], bytes],
        reader: MessageReader,
        settings: ServiceSettings,
    ) -> None:
        self._call = call
        self._denying = denying
        self._reader = reader
        self._preset = settings.headers
        self._trusts = lru_cache(_MOST_PEERS)(settings.trusted.trusts)
        self._say = RateLimitedLogger(logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, or deny the request that it asks about if its message cannot be read or believed."""
        if scope["method"] != "POST" or not sends_trailers(scope):
            self._say.warning("no_grpc", _NO_GRPC_LINE, peer_of(scope), scope["method"], scope.get("http_version"))
            await _send_plain(send, _NO_GRPC.answer(self._preset))
            return
        peer = peer_of(scope)
        if not self._trusts(peer):
            self._say.warning("untrusted", _UNTRUSTED_LINE, peer)
            await self._reader.drain(receive)
            await self.refuse(_UNTRUSTED.answer(self._preset), send)
            return
        try:
            message = await self._reader.read(receive)
            if message is None:
                return  # the caller left
            reply = await self._call(scope, message)
        except Refusal as refusal:
            await self.refuse(refusal.answer(self._preset), send)
        except Malformed as exc:
            unreadable = _unreadable(400, f"The message of the call cannot be read: {exc}.")
            await self.refuse(unreadable.answer(self._preset), send)
        else:
            await _send(send, _framed(reply), _OK_TRAILERS)

    async def refuse(self, answer: PlainResponse, send: Send) -> None:
        """Deny the request that a call asks about with a response."""
        await _send(send, _framed(self._denying(answer)), _OK_TRAILERS)


def sends_trailers(scope: Scope) -> bool:
    """Return whether the server can send the status of a call, which a client reads over HTTP/2 only."""
    return scope["http_version"] == "2" and "http.response.trailers" in (scope.get("extensions") or ())


def is_call(scope: Scope) -> bool:
    """Return whether a request is a call of gRPC that can be answered as one."""
    return sends_trailers(scope) and (header_of(scope, b"content-type") or "").startswith("application/grpc")


async def end(send: Send, status: int, detail: str) -> None:
    """End a call without a message."""
    await _send(
        send, b"", [(b"grpc-status", str(status).encode()), (b"grpc-message", quote(detail, safe=" ").encode())]
    )


async def _send(send: Send, body: bytes, trailers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})


async def _send_plain(send: Send, answer: PlainResponse) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


async def _message(receive: Receive) -> bytes | None:
    """
    Return the message of a call, or None if the caller left before its end.

    Raises:
        Malformed: The body is no frame of a message.
        Refusal: The message is too large or compressed.
    """
    event = await receive()
    body: bytes = event.get("body", b"")
    if event.get("more_body", False):
        chunks = bytearray(body)
        while event.get("more_body", False):
            event = await receive()
            chunks += event.get("body", b"")
            if len(chunks) > MAX_MESSAGE + _PREFIX:
                raise _unreadable(413, f"The message of the call must have at most {MAX_MESSAGE} bytes.")
        body = bytes(chunks)
    if event["type"] != "http.request":
        return None
    if len(body) < _PREFIX:
        raise Malformed("its prefix breaks off")
    if body[0]:
        raise _unreadable(415, "The message of the call must not be compressed.")
    size = int.from_bytes(body[1:_PREFIX], "big")
    if size != len(body) - _PREFIX:
        raise Malformed(f"its prefix says {size} bytes, but {len(body) - _PREFIX} came")
    if size > MAX_MESSAGE:
        raise _unreadable(413, f"The message of the call must have at most {MAX_MESSAGE} bytes.")
    return body[_PREFIX:]


async def _drained(receive: Receive) -> None:
    size = 0
    while size <= MAX_MESSAGE and (event := await receive()).get("more_body", False):
        size += len(event.get("body", b""))


def _unreadable(status: int, detail: str) -> Refusal:
    return Refusal(status, "The call cannot be read", detail, "bad_call")


_NO_GRPC: Final = Refusal(
    505,
    "gRPC is needed here",
    "Send a POST of gRPC over HTTP/2 to a server that sends trailers, such as h2corn.",
    "no_grpc",
)
_NO_GRPC_LINE: Final = (
    "%s asks for a method of gRPC by %s over HTTP/%s, which is no call of gRPC, so that its proxy may let all requests "
    "pass. Let the proxy speak HTTP/2, and do not start the service with --server uvicorn."
)
_UNTRUSTED_LINE: Final = (
    "%s asks by gRPC, but is no trusted proxy, so the requests that it asks about are denied. Name it in "
    "SLUICEGATE_TRUSTED_PROXIES."
)
_UNTRUSTED: Final = Refusal(
    403,
    "This proxy is not trusted",
    "The proxy in front of this service describes a request, but is no trusted proxy of the decision service. Its "
    "operator has to name it in SLUICEGATE_TRUSTED_PROXIES.",
    "untrusted_proxy",
)
