"""What every ASGI layer knows of an exchange: which messages begin an answer, which end it, and who has left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from enforcement.doors._http import CLIENT_GONE, Progress

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

POLICY_VIOLATION: Final = 1008
"""The code that a websocket is closed with whose server cannot send a response in its place."""
STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_BODIES: Final = frozenset({"http.response.body", "websocket.http.response.body"})
_GONE: Final = frozenset({"http.disconnect", "websocket.disconnect"})


class Exchange:
    """
    One request and its answer, as their messages pass.

    Attributes:
        client_left: Whether the client was gone, as far as the application asked.
    """

    __slots__ = ("_progress", "client_left")

    def __init__(self) -> None:
        self.client_left = False
        self._progress = Progress()

    @property
    def status(self) -> int:
        """The answer's status, or what stands for it where none began."""
        return self._progress.status or (CLIENT_GONE if self.client_left else 500)

    def listening(self, receive: Receive) -> Receive:
        """Return a *receive* that notices when the client leaves."""

        async def listen() -> Message:
            message = await receive()
            self.client_left |= message["type"] in _GONE
            return message

        return listen

    def completes(self, message: Message) -> bool:
        """Take note of a message on its way to the client, and tell whether the answer is complete with it."""
        kind = message["type"]
        if kind in STARTS:
            length = next((v.decode("latin-1") for n, v in message.get("headers", ()) if n == b"content-length"), None)
            self._progress.begin(message.get("status", 101), length)
        elif kind == "websocket.close" and self._progress.status is None:
            self._progress.begin(403, None)  # what servers make of a refused handshake
        elif kind in _BODIES:
            # Both are to be asked: a body that was announced may be complete before the application says so.
            complete = self._progress.ends_with(len(message.get("body", b"")))
            return complete or not message.get("more_body", False)
        return False


__all__ = ["POLICY_VIOLATION", "STARTS", "Exchange", "Message", "Receive", "Scope", "Send"]
