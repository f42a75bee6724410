"""
Replies that arrive after their call has timed out.

A store that was frozen or slow executes the call when it gets to it, and replies on the same connection. A store that
died never replies, and the connection ends. Therefore the connection stays open for a while, and nobody has to guess
whether a request that was admitted without a reply was charged.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

if TYPE_CHECKING:
    import socket

LOST: Final = object()
"""Stands for a reply: the connection ended without one, so the call was perhaps never executed."""
GARBLED: Final = object()
"""Stands for a reply: what arrived cannot be parsed. The call was executed, and its reply was damaged."""
LATE_SECONDS: Final = 60.0
"""How long an event loop keeps a connection open for late replies."""
_READ_BYTES: Final = 65_536


class Late(Protocol):
    """The reply that a call did not get in time."""

    def look(self) -> object:
        """Return the late reply, LOST or GARBLED if none can be read, or None if none has arrived yet."""

    def close(self) -> None:
        """Stop waiting for the reply. Any thread may call this."""


class AioLateReply:
    """
    The late reply on a blocking connection that nobody else uses any more.

    Args:
        sock: The connection.
        reader: Holds the part of the reply that has arrived already.
    """

    __slots__ = ("_close", "_found", "_reader", "_recv")

    def __init__(self, sock: socket.socket, reader: hiredis.Reader) -> None:
        self._reader, self._found = reader, None
        self._recv: Callable[[int], bytes] = sock.recv
        self._close: Callable[[], None] | None = sock.close
        sock.setblocking(False)
        if not isinstance(sock, ssl.SSLSocket):
            # A socket warns if it is garbage-collected before it is closed, which happens when this object and the
            # socket are collected in the same cycle. A file descriptor does not warn.
            number = sock.detach()
            self._recv, self._close = partial(os.read, number), partial(os.close, number)

    def look(self) -> object:
        """Return the late reply, LOST or GARBLED if none can be read, or None if none has arrived yet."""
        if self._found is None and self._close is not None:
            self._found = self._read()
        return self._found

    def _read(self) -> Any:
        try:
            data = self._recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError:
            return LOST
        if not data:
            return LOST
        try:
            self._reader.feed(data)
            reply = self._reader.gets()
        except hiredis.HiredisError:
            return GARBLED
        return None if reply is False else reply

    def close(self) -> None:
        """Stop waiting for the reply, and close its connection."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __del__(self) -> None:
        self.close()


class SharedLateReply:
    """
    One of several late replies on the connection of an event loop, which stores the reply here when it arrives.

    Args:
        on_close: Called when nobody waits for this reply any longer. Others may still wait for theirs.

    Attributes:
        closed: Whether nobody waits for it any longer.
        found: The reply, LOST, or None while nothing has arrived.
    """

    __slots__ = ("_on_close", "closed", "found")

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        self.closed = False
        self.found: object = None

    def look(self) -> object:
        """Return the late reply, LOST or GARBLED if none can be read, or None if none has arrived yet."""
        return self.found

    def close(self) -> None:
        """Stop waiting for the reply, and tell the connection that it may be closed."""
        self.closed = True
        self._on_close()
