"""
Calls that got no answer in time, and what became of them.

A store that was frozen or slow executes a call when it gets to it, and says so on the connection that the call came by;
one that died meanwhile never will, and its connection ends. So that connection is not closed at once, and nobody has to
guess whether a request that was admitted without an answer was charged.
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
"""In place of an answer: the connection ended without one, so the call was perhaps never executed."""
GARBLED: Final = object()
"""In place of an answer: something came that is none. So the call had been executed, and its answer was harmed."""
LATE_SECONDS: Final = 60.0
"""So long an event loop keeps a connection for answers that are late."""
_READ_BYTES: Final = 65_536


class Late(Protocol):
    """The answer that a call did not get in time."""

    def look(self) -> Any:
        """Return the answer, or LOST or GARBLED; None: nothing has come so far. Waits for nothing."""

    def close(self) -> None:
        """Wait for it no longer. Any thread may call."""


class SyncLateReply:
    """
    The answer to the last call of a blocking connection, which is nobody else's any more.

    Args:
        sock: The connection.
        reader: Holds what came of the answer so far.
    """

    __slots__ = ("_close", "_found", "_reader", "_recv")

    def __init__(self, sock: socket.socket, reader: hiredis.Reader) -> None:
        self._reader, self._found = reader, None
        self._recv: Callable[[int], bytes] = sock.recv
        self._close: Callable[[], None] | None = sock.close
        sock.setblocking(False)
        if not isinstance(sock, ssl.SSLSocket):
            # By its number: a socket that is collected in one cycle with this object complains of not being closed.
            number = sock.detach()
            self._recv, self._close = partial(os.read, number), partial(os.close, number)

    def look(self) -> Any:
        """See :meth:`Late.look`."""
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
        """See :meth:`Late.close`."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __del__(self) -> None:
        self.close()


class AioLateReply:
    """
    The answer to one of several calls on a connection of an event loop, which files it here.

    Args:
        on_close: Called when nobody waits for it any longer. Others may still wait for theirs.

    Attributes:
        closed: Whether nobody does.
    """

    __slots__ = ("_on_close", "closed", "found")

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        self.closed = False
        self.found: Any = None

    def look(self) -> Any:
        """See :meth:`Late.look`."""
        return self.found

    def close(self) -> None:
        """See :meth:`Late.close`."""
        self.closed = True
        self._on_close()


__all__ = ["GARBLED", "LATE_SECONDS", "LOST", "AioLateReply", "Late", "SyncLateReply"]
