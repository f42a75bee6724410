"""
Answer unary calls of gRPC as ASGI messages.

A call is a POST whose body holds one message behind five bytes. The status comes in the trailers, so the server must
speak HTTP/2 and send them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote

from enforcement.http.asgi import Receive, Scope, Send
from enforcement.http.messages import PlainResponse, Refusal
from enforcement.service.wire import Malformed

OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = 0, 3, 8, 12, 14
CONTENT_TYPE: Final = b"application/grpc"
MAX_MESSAGE: Final = 1_048_576
"""Bytes of a message. Envoy sends a request's headers, and its body up to a limit that its configuration sets."""

_PREFIX: Final = 5
_HEADERS: Final = [(b"content-type", CONTENT_TYPE)]
_OK_TRAILERS: Final = [(b"grpc-status", b"0")]


class CallFailed(Exception):
    """
    A call that ends without a message.

    Attributes:
        status: The status of gRPC.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class UnaryCall:
    """
    One method of gRPC, as an endpoint of the service.

    Args:
        call: Answers the message of a caller by a message. It may raise Refusal.
        denying: Returns the message that denies a request with this response. A call that failed would be taken for
            permission by an Envoy that is configured to pass requests on then.
        preset: Preset of the header fields, which also names the shape of a body.
    """

    def __init__(
        self, call: Callable[[Scope, bytes], Awaitable[bytes]], denying: Callable[[PlainResponse], bytes], preset: str
    ) -> None:
        self._call = call
        self._denying = denying
        self._preset = preset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, or end it with the status of what is wrong with its message."""
        try:
            reply = await self._call(scope, await _message(receive))
        except Refusal as refusal:
            await self.refuse(refusal.answer(self._preset), send)
        except Malformed as exc:
            await end(send, INVALID_ARGUMENT, f"The message cannot be read: {exc}.")
        except CallFailed as exc:
            await end(send, exc.status, str(exc))
        else:
            await _send(send, _framed(reply), _OK_TRAILERS)

    async def refuse(self, answer: PlainResponse, send: Send) -> None:
        """Deny the request that a call asks about with a response."""
        await _send(send, _framed(self._denying(answer)), _OK_TRAILERS)


async def end(send: Send, status: int, detail: str) -> None:
    """End a call without a message."""
    await _send(
        send, b"", [(b"grpc-status", str(status).encode()), (b"grpc-message", quote(detail, safe=" ").encode())]
    )


async def _send(send: Send, body: bytes, trailers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


async def _message(receive: Receive) -> bytes:
    """Return the message of a call. Raises Malformed or CallFailed."""
    event = await receive()
    body: bytes = event.get("body", b"")
    if event.get("more_body", False):
        chunks = bytearray(body)
        while event.get("more_body", False):
            event = await receive()
            chunks += event.get("body", b"")
            if len(chunks) > MAX_MESSAGE + _PREFIX:
                raise CallFailed(RESOURCE_EXHAUSTED, f"The message must have at most {MAX_MESSAGE} bytes.")
        body = bytes(chunks)
    if event["type"] != "http.request":
        raise CallFailed(UNAVAILABLE, "The caller left before its message was complete.")
    if len(body) < _PREFIX:
        raise Malformed("its prefix breaks off")
    if body[0]:
        raise CallFailed(UNIMPLEMENTED, "Compressed messages are not supported.")
    size = int.from_bytes(body[1:_PREFIX], "big")
    if size != len(body) - _PREFIX:
        raise Malformed(f"its prefix says {size} bytes, but {len(body) - _PREFIX} came")
    if size > MAX_MESSAGE:
        raise CallFailed(RESOURCE_EXHAUSTED, f"The message must have at most {MAX_MESSAGE} bytes.")
    return body[_PREFIX:]


__all__ = ["CONTENT_TYPE", "UNIMPLEMENTED", "CallFailed", "UnaryCall", "end"]
