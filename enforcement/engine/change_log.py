"""Read the change log with a blocking command that the caller may leave at any time and return to later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from enforcement.store.base_client import StoreClient
from enforcement.store.client import StoreTimeoutError

BLOCK_MS: Final = 500
GRACE_SECONDS: Final = 1.0
"""How much longer than BLOCK_MS the store may take to reply."""
SLICE_SECONDS: Final = 0.05
"""How soon a caller returns that is woken before the store replies."""
ENTRIES_PER_READ: Final = 100


@dataclass(frozen=True, slots=True)
class LogChange:
    """One entry of the log, whose ``changes`` are None if the field is missing."""

    id: str
    changes: bytes | None

    @property
    def revision(self) -> int:
        """The revision that the documents have after this change."""
        return int(self.id.partition("-")[0])


class ChangeLogReader:
    """
    Reads one stream, on a connection of its own.

    The command stays in flight while the caller uses other connections, and its reply waits in the socket.

    Args:
        client: The connection comes from its pool.
        key: The stream.
        monotonic: Returns seconds.
    """

    def __init__(self, client: StoreClient, key: str, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._pool: Any = None
        self._key = key
        self._monotonic = monotonic
        self._connection: Any = None
        self._answer_by: float | None = None

    def entries(self, after: str, until: float, wake: threading.Event) -> Sequence[LogChange]:
        """
        Return the entries that follow the id *after*.

        Returns:
            Nothing if no entry arrives before *until*, or before *wake* is set.
        Raises:
            RedisError: The store cannot be read. A store that does not reply in time raises a TimeoutError.
        """
        if self._answer_by is None:
            self._ask(after)
        while not self._connection.can_read(SLICE_SECONDS):
            now = self._monotonic()
            if self._answer_by is not None and now > self._answer_by:
                raise StoreTimeoutError("no reply to the read of the change log in time")
            if now >= until or wake.is_set():
                return ()
        self._answer_by = None
        reply = self._connection.read_response(disable_decoding=True)
        return [_entry(*item) for item in reply[0][1]] if reply else ()

    def close(self) -> None:
        """Drop the connection, with the command that is in flight on it."""
        connection, self._connection, self._answer_by = self._connection, None, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)

    def after_fork(self) -> None:
        """Close the parent's connection in a child process, where the thread that uses it does not exist."""
        if self._connection is not None:
            self._connection.disconnect()  # sends nothing to the store, as another process opened it

    def _ask(self, after: str) -> None:
        if self._connection is None:
            self._pool = self._client.pool_of(self._key)
            self._connection = self._pool.get_connection()
        command = ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", BLOCK_MS, "STREAMS", self._key, after)
        self._connection.send_command(*command)
        self._answer_by = self._monotonic() + BLOCK_MS / 1_000 + GRACE_SECONDS


def _entry(ident: bytes, fields: Sequence[bytes]) -> LogChange:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return LogChange(ident.decode("ascii"), named.get(b"changes"))
