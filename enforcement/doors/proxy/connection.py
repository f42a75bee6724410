"""
One connection to an upstream, which carries one request after another.

It speaks HTTP/1.1. Names, values and targets pass as the bytes that they are, because a proxy that reads and writes
them again may change what they name.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, cast

from enforcement.extras import Requirement

with Requirement("The proxy", "sluicegate[proxy]"):
    import httptools

RawHeaders = list[tuple[bytes, bytes]]

MOST_BUFFERED: Final = 65_536
"""Bytes of a response that may wait for a slow client before the upstream has to wait, too."""

MOST_HEAD: Final = 131_072
"""Bytes that an upstream may send without a part of the body: header fields, interim responses, a trailer."""

_CONTENT_LENGTH: Final = b"content-length"
_CODINGS: Final = b"transfer-encoding"
_CHUNKED: Final = b"chunked"
_WITHOUT_BODY: Final = frozenset({204, 304})


class UpstreamError(Exception):
    """The upstream could not be reached, broke off, or sent something that is not HTTP."""


class ClientGone(Exception):
    """The client has left before its response was complete."""


class ReadBuffer:
    """
    Where the connections of one event loop read to, before each parses at once what it has read.

    What is read is held until the client has taken it. So parts are short while many clients do not keep up.

    Attributes:
        stalled: How many connections wait for their clients.
    """

    MOST_STALLED: Final = 50

    def __init__(self) -> None:
        self._long = memoryview(bytearray(262_144))
        self._short = self._long[:MOST_BUFFERED]
        self.stalled = 0

    def view(self) -> memoryview:
        """Return where to read the next part."""
        return self._long if self.stalled < self.MOST_STALLED else self._short


class Connection(asyncio.BufferedProtocol):
    """
    One connection.

    Args:
        loop: The event loop.
        buffer: Where it reads to.
    Attributes:
        status: The status of the present response.
        fields: Its header fields, with names in lower case.
        trailers: The fields after its body.
        headed: Whether status and header fields have arrived.
        complete: Whether all of it has arrived. Some of it may still wait in :meth:`chunk`.
        request_sent: Whether all of the present request was written.
        answered: Whether any byte of a response to the present request has arrived.
        uses: How many requests it has carried.
        active_at: When the upstream last sent or took something, by the clock of the event loop.
        idle_since: When it was last returned to its pool.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: ReadBuffer) -> None:
        self._loop = loop
        self._buffer = buffer
        self._view: memoryview
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None  # waits until the transport takes more
        self._parser: httptools.HttpResponseParser | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._dry = 0  # bytes since the last part of the body
        self._paused = False
        self._full = False
        self._without_body = False
        self._until_close = False
        self._keep_alive = False
        self._error: Exception | None = None
        self.status = 0
        self.fields: RawHeaders = []
        self.trailers: RawHeaders = []
        self.headed = self.complete = self.answered = False
        self.request_sent = True
        self.uses = 0
        self.active_at = self.idle_since = 0.0

    @property
    def lost(self) -> bool:
        """Whether it is closed or about to be."""
        return self._error is not None or self._transport is None or self._transport.is_closing()

    @property
    def held_back(self) -> bool:
        """Whether the upstream has to wait because the client is slow."""
        return self._paused

    @property
    def reusable(self) -> bool:
        """
        Whether it can carry another request, because the last one and its response are complete.

        What a client has left of its response would be taken for the beginning of the next one.
        """
        return self.drained and self.request_sent and self._keep_alive and not self.lost

    def begin(self, head: bytes, *, without_body: bool, whole: bool) -> None:
        """
        Send the beginning of a request.

        Args:
            head: The request line and the header fields, with the empty line.
            without_body: Whether the response has no body whatever its fields say, as that to HEAD.
            whole: Whether the request has no body.
        Raises:
            UpstreamError: The upstream has closed the connection already.
        """
        if self._transport is None:
            raise _again(self._error or UpstreamError("the upstream closed the connection"))
        self._parser = httptools.HttpResponseParser(self)
        self._without_body = without_body
        self._until_close = False
        self._dry = 0
        self.status = 0
        self.fields, self.trailers = [], []
        self.headed = self.complete = self.answered = False
        self.request_sent = whole
        self.uses += 1
        self.active_at = self._loop.time()
        self._transport.write(head)

    async def write(self, data: bytes) -> None:
        """
        Send a part of the body, and wait until the upstream takes more.

        Raises:
            UpstreamError, ClientGone: The connection is lost, or was aborted.
        """
        if self._error is not None:
            raise _again(self._error)
        if self._transport is None:
            raise UpstreamError("the upstream closed the connection")
        self._transport.write(data)
        if self._full:
            self._room = self._loop.create_future()
            try:
                await self._room
            finally:
                self._room = None
        self.active_at = self._loop.time()

    async def response(self) -> None:
        """
        Wait for the status and the header fields of the response.

        Raises:
            UpstreamError, ClientGone: The connection is lost, or was aborted.
        """
        while not self.headed:
            await self._wait()
        if self._error is not None and not self._chunks:
            raise _again(self._error)  # it broke off behind its head, and can still be answered in its place

    async def chunk(self) -> bytes:
        """
        Return what has arrived of the body, and wait for it if nothing has. It is empty at the end only.

        Raises:
            UpstreamError, ClientGone: The connection is lost, or was aborted.
        """
        while not self._chunks:
            if self.complete:
                return b""
            if self._paused:
                self._read_on()
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused and self.complete:
            self._read_on()  # the next response, or that the upstream closes the connection
        return data

    def _read_on(self) -> None:
        """Read from the upstream again, as the client has taken all that there was."""
        self._resume()
        if self._transport is not None:
            self.active_at = self._loop.time()
            self._transport.resume_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._buffer.stalled -= 1

    @property
    def drained(self) -> bool:
        """Whether the response is complete and nothing of it waits in :meth:`chunk`."""
        return self.complete and not self._chunks

    @property
    def empty(self) -> bool:
        """Whether nothing waits in :meth:`chunk` although the response is not complete."""
        return not (self._chunks or self.complete)

    def abort(self, error: Exception) -> None:
        """End the connection at once. Whoever waits for it gets the error."""
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def close(self) -> None:
        """End the connection, which carries no request."""
        if self._transport is not None:
            self._transport.close()

    async def _wait(self) -> None:
        if self._error is not None:
            raise _again(self._error)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._room is not None and not self._room.done() and self._error is not None:
            self._room.set_exception(_again(self._error))

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to write what the upstream sent."""
        self._view = self._buffer.view()
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what the upstream sent."""
        self.data_received(self._view[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Parse what the upstream sent."""
        if self.complete or self._parser is None:
            # Bytes that come without a request would be taken for the answer to the next one.
            self.abort(UpstreamError("the upstream sent more than its response"))
            return
        self.active_at = self._loop.time()
        self.answered = True
        before = self._buffered
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._keep_alive = False
            if not self.complete:
                self.abort(UpstreamError(f"the upstream sent what is not HTTP: {exc}"))
                return
        self._dry = self._dry + len(data) if self._buffered == before else 0
        if self._dry > MOST_HEAD and not self.complete:
            self.abort(UpstreamError("the header fields of the response are too long"))
            return
        if self._buffered > MOST_BUFFERED and not self._paused and self._transport is not None:
            self._paused = True
            self._buffer.stalled += 1
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Close the connection, as the upstream will send no more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete a response that ends with its connection, and break off any other one."""
        self._keep_alive = False
        self._resume()
        ended = exc is None and self._error is None and self._until_close and self.headed
        if ended and _has_ended(self._transport):
            self.complete = True
        elif self._error is None and not self.complete:
            self._error = UpstreamError(f"the upstream closed the connection: {exc or 'before the end'}")
        elif self._error is None and not self.request_sent:
            self._error = UpstreamError("the upstream closed the connection")
        self._transport = self._parser = None
        self._wake()
        if self._room is not None and not self._room.done():
            self._room.set_exception(_again(self._error or UpstreamError("the upstream closed the connection")))

    def pause_writing(self) -> None:
        """Let :meth:`write` wait."""
        self._full = True

    def resume_writing(self) -> None:
        """Let :meth:`write` go on."""
        self._full = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # Callbacks of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field, or a field of the trailer."""
        if self.complete:
            return  # of a second response, which nobody asked for
        # The parser leaves white space behind a value, which is no part of it (RFC 9112, 5).
        (self.trailers if self.headed else self.fields).append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Note how the response ends, unless it is an interim one."""
        if self.complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.fields = []
            return
        codings = [value.lower() for name, value in self.fields if name == _CODINGS]
        if codings not in ([], [_CHUNKED]):
            # Nobody has asked for another coding, and the client would not learn that the body has it.
            self.abort(UpstreamError("the upstream sent a transfer coding other than chunked"))
            return
        if not 200 <= status < 600:
            self.abort(UpstreamError(f"the upstream sent the status {status}"))
            return
        self.status, self.headed = status, True
        self._keep_alive = self._parser.should_keep_alive()
        if status in _WITHOUT_BODY:
            # Servers would wait for a body of this length.
            self.fields = [item for item in self.fields if item[0] != _CONTENT_LENGTH]
            self.complete = True
        elif self._without_body:
            self.complete = True
        elif not codings:
            self._until_close = not any(name == _CONTENT_LENGTH for name, _ in self.fields)

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        if self.complete or not self.headed:
            self._keep_alive = False  # of a response that must not have one, or that was refused
            return
        self._chunks.append(data)
        self._buffered += len(data)

    def on_message_complete(self) -> None:
        """Note that the response is complete, unless it is an interim one."""
        self.complete = self.headed


def _again(error: Exception) -> Exception:
    """
    Return a new error like one that a connection keeps. The traceback of that one would lead back to the connection,
    and only the collector of garbage could free such a circle, with all that a request has.
    """
    return type(error)(*error.args)


def _has_ended(transport: asyncio.Transport | None) -> bool:
    """
    Return whether the end of a connection is that of its last response.

    With TLS the upstream has to say so. Otherwise anybody between could end a response early.
    """
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    try:
        return tls is None or tls.read(1) == b""
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False
