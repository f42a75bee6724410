"""
Bound what a client of uvicorn may send, and how long it may send or read nothing.

uvicorn itself collects the header fields of a request without end, waits for them, for its body and for the reader of
its response for ever, takes the fields of a trailer for header fields, and loses the body of a request with an Upgrade.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from enforcement.http.slow_clients import cut_off

MOST_HEAD: Final = 1_048_576
"""Bytes that a client may send without a part of a body: the head of a request, the size of a chunk, a trailer."""

MOST_FIELDS: Final = 1_000
"""Fields of a head that does not come at once. Each takes much more memory than its bytes."""

MOST_OF_HEADS: Final = 67_108_864
"""Bytes of all unfinished heads of a process. Beyond that, those of more than SHORT_HEAD bytes are refused."""

SHORT_HEAD: Final = 65_536

HEAD_SECONDS: Final = 30.0
"""How long the head of a request may take."""

CLIENT_SECONDS: Final = 30.0
"""How long a client may send nothing of a body that is not whole, or take nothing of a response that waits for it."""

MOST_UNSENT: Final = 65_536
"""Bytes of responses that may wait for a client before the application has to wait. With TLS it would be 512 KiB."""

MOST_IN_KERNEL: Final = 131_072
"""Bytes of them that the kernel keeps beside that, of those that it has not sent yet. It would take megabytes."""

MOST_GATHERED: Final = 16_384
"""Bytes of responses that are gathered before they are written. Only then does the transport count them."""

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"  # no decision
)
_SENTENCE: Final = b"The body of the request did not come in time.\n"
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b" % (len(_SENTENCE), _SENTENCE)
)
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class GatheringTransport:
    """
    A transport that writes at once what comes in one turn of the event loop.

    A response comes in two parts at least, of which each would be a system call. That takes a tenth of the time of a
    request through the proxy.

    Args:
        transport: What the event loop has made.
        loop: The event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write the data before the event loop waits again."""
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append(data)
        self._size += len(data)
        if self._size > MOST_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered now, unless the connection has been closed."""
        if self._gathered:
            gathered, self._gathered, self._size = self._gathered, [], 0
            if not self.is_closing():
                self._transport.write(b"".join(gathered))

    def close(self) -> None:
        """Write what was gathered, and close the connection."""
        self.flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        """Write what was gathered, and return how many bytes still wait for the client."""
        self.flush()
        return self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """
    The protocol of uvicorn with these bounds.

    Args:
        client_seconds: See :data:`CLIENT_SECONDS`.
    """

    of_heads = 0  # bytes of the unfinished heads of all connections

    def __init__(self, *args: Any, client_seconds: float = CLIENT_SECONDS, **options: Any) -> None:
        super().__init__(*args, **options)
        self._client_seconds = client_seconds
        self._dry = 0  # bytes since the last head was complete, or the last part of a body
        self._held = 0  # what of these counts among those of all connections
        self._headless: asyncio.TimerHandle | None = None
        self._bodiless: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._heard_at = 0.0  # when the last part of a body came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(GatheringTransport(transport, self.loop))  # type: ignore[arg-type]
        transport.set_write_buffer_limits(MOST_UNSENT)
        with suppress(AttributeError, OSError):  # not every system has it, nor every socket
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_IN_KERNEL)
        self._headless = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._has_head()
        for timer in (self._bodiless, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, and close the connection if its bounds are exceeded."""
        self._dry += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        cycle = self.cycle
        if cycle is not None and cycle.more_body:
            self._heard_at = self.loop.time()
            if self._bodiless is None:
                self._bodiless = self.loop.call_later(self._client_seconds, self._await_body)
        if not self._dry:
            return  # the usual case
        self._hold(self._dry)
        if self._is_too_much() and not self.transport.is_closing():
            self._refuse()
        elif self._headless is None and self._is_idle() and not self.transport.is_closing():
            self._headless = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _feed(self, data: bytes) -> None:
        """Parse what the client sent, as the method of uvicorn does, but ignore every Upgrade except to WebSocket."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self.scope["method"] == "CONNECT":
                self.cycle.keep_alive = False  # what follows is no HTTP
            else:
                self._ignore_upgrade(data[upgrade.args[0] :])

    def _ignore_upgrade(self, rest: bytes) -> None:
        """
        Read the body of a request whose Upgrade is ignored (RFC 9110, 7.8), and what follows it.

        The parser has taken the request for complete. Its successor is told how the body is framed.
        """
        framing = [b"%b: %b\r\n" % field for field in self.headers if field[0] in _FRAMING]
        self.headers = []  # the scope keeps the list that there was
        if framing:
            self.cycle.more_body = True
            self.cycle.message_event.clear()
            callbacks = _AfterUpgrade(self)
            self.parser = httptools.HttpRequestParser(callbacks)
            self._feed(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            callbacks.primed = True
        if rest and not self.transport.is_closing():
            self._feed(rest)

    def _await_body(self) -> None:
        """Give a request up whose body does not come, and close its connection."""
        self._bodiless = None
        cycle = self.cycle
        if not cycle.more_body or self.transport.is_closing():
            return
        now = self.loop.time()
        if self.flow.read_paused or self.pipeline:
            self._heard_at = now  # it is not the client who lets the others wait
        left = self._heard_at + self._client_seconds - now
        if left > 0:
            self._bodiless = self.loop.call_later(left, self._await_body)
            return
        cut_off["body"] += 1
        if not cycle.response_started:
            self.transport.write(_TOO_SLOW)
        cycle.disconnected = True  # the application must not answer any more
        cycle.message_event.set()
        self._close()

    def pause_writing(self) -> None:
        """Let the application wait, and begin to watch whether the client reads."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Let the application go on."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _watch_reader(self) -> None:
        self._unread = self.loop.call_later(self._client_seconds, self._await_reader, self._unsent())

    def _await_reader(self, before: int) -> None:
        """Close the connection of a client that has taken nothing since so many bytes waited for it."""
        self._unread = None
        if self._unsent() < before:
            self._watch_reader()
            return
        cut_off["reading"] += 1
        self.transport.abort()

    def _unsent(self) -> int:
        """Return how many bytes wait for the client, those in the kernel included if it says so."""
        try:
            from fcntl import ioctl
            from termios import TIOCOUTQ

            queue = ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, bytes(4))
        except (ModuleNotFoundError, OSError):
            queue = bytes(4)
        return int(self.transport.get_write_buffer_size() + struct.unpack("i", queue)[0])

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long, also if its client has not read its last response."""
        self._close()

    def _close(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # to close it would wait for the client
        elif not self.transport.is_closing():
            self.transport.close()

    def on_response_complete(self) -> None:
        """Write the end of the response, and begin the next request if it is there already."""
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()

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

    def _hold(self, size: int) -> None:
        BoundedProtocol.of_heads += size - self._held
        self._held = size

    def _is_too_much(self) -> bool:
        dry = self._dry
        return (
            dry > MOST_HEAD
            or len(self.headers or ()) > MOST_FIELDS
            or (dry > SHORT_HEAD and BoundedProtocol.of_heads > MOST_OF_HEADS)
        )

    def _has_head(self) -> None:
        if self._held:
            self._hold(0)
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


class _AfterUpgrade:
    """
    Callbacks of a parser that goes on after an Upgrade which was ignored.

    Attributes:
        primed: Whether it has read the head that says how the body is framed. Nobody else learns of that head.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self.on_body, self.on_message_complete = protocol.on_body, protocol.on_message_complete
        self.primed = False

    def on_message_begin(self) -> None:
        if self.primed:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.primed:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.primed:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.primed:
            self._protocol.on_headers_complete()
