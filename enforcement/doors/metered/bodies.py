"""Read the body of an ASGI request up to a bound, and give it to the application as if it came from the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from enforcement.http.asgi import Message, Receive, Scope

_LENGTH: Final = b"content-length"
_ACCEPTED: Final = b"accept-encoding"


class ClientLeft(Exception):
    """The client left before its request had come whole."""


@dataclass(slots=True)
class ReadBody:
    """
    The body of a request, or its beginning.

    Attributes:
        data: What was read. One byte more than the bound, or more than that, if the body is too long.
        whole: Whether that is all of it.
    """

    data: bytes
    whole: bool

    def first_message(self) -> Message:
        """Return the message by which the application gets what was read."""
        return {"type": "http.request", "body": self.data, "more_body": not self.whole}


async def read_body(scope: Scope, receive: Receive, bound: int) -> ReadBody:
    """
    Return the body of a request, if it has at most *bound* bytes, else its beginning.

    Raises:
        ClientLeft: The client left first.
    """
    if announced_length(scope) > bound:
        return ReadBody(b"", whole=False)
    chunks: list[bytes] = []
    size, more = 0, True
    while more and size <= bound:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size, more = size + len(chunk), message.get("more_body", False)
        chunks.append(chunk)
    return ReadBody(chunks[0] if len(chunks) == 1 else b"".join(chunks), whole=not more)


def announced_length(scope: Scope) -> int:
    """Return the length of the body that the head of a request announces, or 0 if it announces none."""
    for name, value in scope["headers"]:
        if name == _LENGTH and value.isdigit():
            return int(value)
    return 0


def is_too_long(scope: Scope, body: ReadBody, bound: int) -> bool:
    """Return whether a body is longer than what is read."""
    return not body.whole and (len(body.data) > bound or announced_length(scope) > bound)


def sent_on(scope: Scope, body: bytes) -> Scope:
    """Return the scope of a request whose body was changed, and whose answer must not be compressed."""
    headers = [
        (name, b"%d" % len(body) if name == _LENGTH else value) for name, value in scope["headers"] if name != _ACCEPTED
    ]
    return {**scope, "headers": [*headers, (_ACCEPTED, b"identity")]}


__all__ = ["ClientLeft", "ReadBody", "announced_length", "is_too_long", "read_body", "sent_on"]
