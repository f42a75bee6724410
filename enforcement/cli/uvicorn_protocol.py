"""
Bound what a client may send to uvicorn before anybody has decided on its request.

uvicorn itself collects the header fields of a request without end, waits for them for ever, and takes the fields of a
trailer for header fields.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD: Final = 1_048_576
"""Bytes that a client may send without a part of a body: the head of a request, the size of a chunk, a trailer."""

HEAD_SECONDS: Final = 30.0
"""How long the head of a request may take."""

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"  # no decision
)


class BoundedProtocol(HttpToolsProtocol):
    """The protocol of uvicorn with these bounds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._dry = 0  # bytes since the last head was complete, or the last part of a body
        self._headless: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._headless = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._has_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, and close the connection if its bounds are exceeded."""
        self._dry += len(data)
        super().data_received(data)
        if not self._dry:
            return  # the usual case
        if self._dry > MOST_HEAD and not self.transport.is_closing():
            self._refuse()
        elif self._headless is None and self._is_idle() and not self.transport.is_closing():
            self._headless = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def on_headers_complete(self) -> None:
        """Begin the request with these header fields, and drop those that come later."""
        self._dry = 0
        self._has_head()
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.headers = []  # the scope keeps the list that there was

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._dry = 0
        super().on_body(body)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _has_head(self) -> None:
        if self._headless is not None:
            self._headless.cancel()
            self._headless = None

    def _give_up(self) -> None:
        self._headless = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        if self._is_idle():
            self.transport.write(_TOO_LARGE)
        self.transport.close()
