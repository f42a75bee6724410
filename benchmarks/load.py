"""A small HTTP client: each connection sends its next request when it has the answer to the last."""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter_ns

from benchmarks.measure import Sample

END = b"\r\n\r\nok"
"""How every good answer ends; the applications answer with two bytes."""


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, spans: list[int], done: asyncio.Future[None]) -> None:
        self.request = request
        self.spans = spans
        self.done = done
        self.until = 0
        self._data = b""
        self._asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def begin(self, until_ns: int) -> None:
        """Send requests until then."""
        self.until = until_ns
        self._ask()

    def _ask(self) -> None:
        self._data, self._asked = b"", perf_counter_ns()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._data.endswith(END):
            return
        now = perf_counter_ns()
        self.spans.append(now - self._asked)
        if now < self.until:
            self._ask()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"lost after {self._data!r}"))


async def press(port: int, headers: str, connections: int, seconds: float) -> Sample:
    """
    Ask over so many connections for so long.

    Raises:
        ConnectionError: A connection was lost.
        TimeoutError: An answer was not the application's.
    """
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()
    loop, spans = asyncio.get_running_loop(), list[int]()
    opened = []
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        _, protocol = await loop.create_connection(partial(_Connection, request, spans, done), "127.0.0.1", port)
        opened.append((protocol, done))
    start = perf_counter_ns()
    for protocol, _ in opened:
        protocol.begin(start + int(seconds * 1e9))
    async with asyncio.timeout(seconds + 5.0):
        await asyncio.gather(*(done for _, done in opened))
    elapsed = perf_counter_ns() - start
    for protocol, _ in opened:
        protocol.transport.abort()
    return Sample.of(spans, elapsed, requests=float(len(spans)))
