"""
Answer unary calls of gRPC as ASGI messages.

A call is a POST whose body holds one message behind five bytes. The status comes in the trailers, so the server must
speak HTTP/2 and send them.

An Envoy with ``failure_mode_allow`` takes every status but OK for permission. Its clients can make it send a message
that is too large. So a call that cannot be read is answered with OK and a message that denies the request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from enforcement.http.asgi import Receive, Scope, Send, encoded
from enforcement.http.messages import PlainResponse, Refusal
from enforcement.service.wire import Malformed

UNIMPLEMENTED: Final = 12
MAX_MESSAGE: Final = 1_048_576
"""Bytes of a message. Envoy sends a request's headers, and its body up to a limit that its configuration sets."""

_PREFIX: Final = 5
_HEADERS: Final = [(b"content-type", b"application/grpc")]
_OK_TRAILERS: Final = [(b"grpc-status", b"0")]


class UnaryCall:
    """
    One method of gRPC, as an endpoint of the service.

    Args:
        call: Answers the message of a caller by a message. It may raise Refusal or Malformed.
        denying: Returns the message that denies a request with this response.
        preset: Preset of the header fields, which also names the shape of a body.
    """

    def __init__(
        self, call: Callable[[Scope, bytes], Awaitable[bytes]], denying: Callable[[PlainResponse], bytes], preset: str
    ) -> None:
        self._call = call
        self._denying = denying
        self._preset = preset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, or deny the request that it asks about if its message cannot be read."""
        if scope["method"] != "POST" or not sends_trailers(scope):
            await _send_plain(send, _NO_GRPC.answer(self._preset))
            return
        try:
            message = await _message(receive)
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
    """Return whether the server can send the status of a call."""
    return "http.response.trailers" in (scope.get("extensions") or ())


async def end(receive: Receive, send: Send, status: int, detail: str) -> None:
    """
    End a call without a message, after its own was read.

    A server may close the connection of all calls if one is answered before it has arrived.
    """
    with suppress(Malformed, Refusal):
        await _message(receive)
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


def _unreadable(status: int, detail: str) -> Refusal:
    return Refusal(status, "The call cannot be read", detail, "bad_call")


_NO_GRPC: Final = Refusal(
    505,
    "gRPC is needed here",
    "Send a POST of gRPC over HTTP/2 to a server that sends trailers, such as h2corn.",
    "no_grpc",
)


__all__ = ["MAX_MESSAGE", "UNIMPLEMENTED", "UnaryCall", "end", "sends_trailers"]
