"""Read the body of an ASGI request up to a bound, and give it to the application as if it came from the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from enforcement.http.asgi import Message, Receive, Scope
from enforcement.http.messages import Refusal

MOST_BYTES: Final = 256 * 1024 * 1024
"""Bytes of bodies that a process keeps at the same time, until they are on their way to the provider."""

_TOO_MANY: Final = "Too many long requests are being read at the same time. Try again in a moment."
_LENGTH: Final = b"content-length"
_ACCEPTED: Final = b"accept-encoding"


LONG_BODY: Final = 65_536
"""Bytes of a body from which on it is read in a thread, so that no other request waits for that."""

# One thread reads one body after another. More of them would only take the interpreter from the event loop.
_READING: Final = ThreadPoolExecutor(1, "sluicegate-bodies")
_Found = TypeVar("_Found")


class ClientLeft(Exception):
    """The client left before its request had come whole."""


class BodyRoom:
    """
    Bounds the bytes of all bodies that a process has read and not yet passed on.

    A project gets no more than what is then left to all others: half of the room if it is alone. So clients that begin
    requests and do not end them can never take the room of other projects.

    Args:
        bytes: How many there may be.
    """

    def __init__(self, bytes: int = MOST_BYTES) -> None:
        self.left = bytes
        self._taken: dict[str, int] = {}

    def take(self, size: int, project: str) -> None:
        """
        Take room for further bytes of a project.

        Raises:
            Refusal: There is no room. The client may try again.
        """
        taken, left = self._taken.get(project, 0) + size, self.left - size
        if taken > left:
            raise Refusal(503, "Too many long requests", _TOO_MANY, "busy", (("Retry-After", "1"),))
        self._taken[project], self.left = taken, left

    def give_back(self, size: int, project: str) -> None:
        """Give room back that a project has taken."""
        self.left += size
        self._taken[project] -= size
        if not self._taken[project]:
            del self._taken[project]


@dataclass(slots=True)
class ReadBody:
    """
    The body of a request, or its beginning.

    Attributes:
        data: What was read. One byte more than the bound, or more than that, if the body is too long.
        whole: Whether that is all of it.
        room: Where room was taken for it. None: nowhere.
        project: The id of the project that has taken it.
        taken: How much.
    """

    data: bytes
    whole: bool
    room: BodyRoom | None = None
    project: str = ""
    taken: int = 0

    def first_message(self) -> Message:
        """Return the message by which the application gets what was read, which is then no longer kept here."""
        self.pass_on()
        return {"type": "http.request", "body": self.data, "more_body": not self.whole}

    def pass_on(self) -> None:
        """Give the room back, once."""
        if self.room is not None and self.taken:
            self.room.give_back(self.taken, self.project)
        self.room = None


def is_long(body: bytes) -> bool:
    """Return whether a body is read in a thread, by :func:`reading`."""
    return len(body) >= LONG_BODY


async def reading(body: bytes, read: Callable[[], _Found]) -> _Found:
    """Return what a function reads in a body. It runs in a thread if the body is long."""
    if not is_long(body):
        return read()
    return await asyncio.get_running_loop().run_in_executor(_READING, read)


async def read_body(
    fields: Mapping[bytes, bytes], receive: Receive, bound: int, room: BodyRoom, project: str
) -> ReadBody:
    """
    Return the body of a request of a project, if it has at most *bound* bytes, else its beginning.

    Args:
        fields: The header fields of the request. Of those with one name, the last.
    Raises:
        ClientLeft: The client left first.
        Refusal: There is no room for it.
    """
    body = ReadBody(b"", whole=False, room=room, project=project)
    if announced_length(fields) > bound:
        return body
    chunks: list[bytes] = []
    try:
        while not body.whole and body.taken <= bound:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            if chunk:
                room.take(len(chunk), project)
                body.taken += len(chunk)
                chunks.append(chunk)
            body.whole = not message.get("more_body", False)
    except BaseException:
        body.pass_on()
        raise
    body.data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return body


def announced_length(fields: Mapping[bytes, bytes]) -> int:
    """Return the length of the body that the header fields of a request announce, or 0 if they announce none."""
    value = fields.get(_LENGTH, b"")
    return int(value) if value.isdigit() else 0


def is_too_long(fields: Mapping[bytes, bytes], body: ReadBody, bound: int) -> bool:
    """Return whether a body is longer than what is read."""
    return not body.whole and (len(body.data) > bound or announced_length(fields) > bound)


def sent_on(scope: Scope, body: bytes) -> Scope:
    """Return the scope of a request whose body was changed, and whose answer must not be compressed."""
    headers, length = scope["headers"], b"%d" % len(body)
    if (_LENGTH, length) in headers:  # as nearly always, since few bodies are changed
        headers = [item for item in headers if item[0] != _ACCEPTED]
    else:
        headers = [(name, length if name == _LENGTH else value) for name, value in headers if name != _ACCEPTED]
    headers.append((_ACCEPTED, b"identity"))
    return {**scope, "headers": headers}
