"""HTTP/1.1 of uvicorn, with a time within which the head of a request must arrive."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# The type of the class is not known before the import, as uvicorn has two parsers.
_Protocol: Any = AutoHTTPProtocol


class TimedProtocol(_Protocol):  # type: ignore[misc]
    """
    The protocol of uvicorn, which closes connections whose client does not complete the head of a request.

    uvicorn itself closes only connections on which nothing came since the last response. Clients could hold all others
    open for ever, until the process may open no more files.

    Attributes:
        head_seconds: Time for the head of a request. Connections are looked at so often, so it may be twice that.
    """

    head_seconds: float = 10.0
    _timer: asyncio.TimerHandle | None = None
    _last: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to look at a new connection."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End to look at a connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close the connection if it waits for the head of the same request as at the last look."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # or it is a WebSocket now
        latest = self.cycle
        # uvicorn ends the idle time at the first byte of the next request.
        is_waiting = (latest is None or latest.response_complete) and self.timeout_keep_alive_task is None
        if is_waiting and latest is self._last:
            self.transport.close()
            return
        self._last = latest if is_waiting else self
        self._timer = self.loop.call_later(self.head_seconds, self._look)


__all__ = ["TimedProtocol"]
