"""Read the change log with a blocking command, without blocking the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import TimeoutError as StoreTimeoutError

from enforcement.store.base_client import StoreClient

BLOCK_MS: Final = 500
GRACE_SECONDS: Final = 1.0
"""How much longer than BLOCK_MS the store may take to reply."""
TIMEOUT_SECONDS: Final = BLOCK_MS / 1_000 + GRACE_SECONDS
SLICE_SECONDS: Final = 0.05
"""How soon a caller returns if it is woken before the store replies."""
ENTRIES_PER_READ: Final = 100


class LogChange(NamedTuple):
    """
    One entry of the change log.

    Attributes:
        id: Id of the entry in the stream, ``REVISION-0``.
        changes: The field of this name, JSON. None if the entry has no such field.
        store_id: The identity of the store that it was published to. None in entries of release 0.2.
    """

    id: str
    changes: bytes | None
    store_id: bytes | None = None

    @property
    def revision(self) -> int:
        """The revision of the documents after this change."""
        return int(self.id.partition("-")[0])


class ChangeLogReader:
    """
    Reads one stream on a connection of its own.

    A caller may leave before the store has replied and return later. In the meantime the reply waits in the socket.

    Args:
        client: The client from whose pool the connection is taken.
        key: Key of the stream.
        monotonic: Returns monotonic seconds.
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
        Wait for entries of the change log after the id *after*, and return them, or an empty sequence if none arrives
        in time.

        Args:
            until: When to return if no entry arrives, seconds by *monotonic*.
            wake: Makes the call return early when it is set.
        Raises:
            RedisError: The store cannot be read. If it does not reply in time, this is a TimeoutError.
        """
        if self._answer_by is None:
            self._ask(after)
        while not self._connection.can_read(SLICE_SECONDS):
            now = self._monotonic()
            if self._answer_by is not None and now > self._answer_by:
                raise StoreTimeoutError(f"no reply to XREAD of the change log within {TIMEOUT_SECONDS:g} s")
            if now >= until or wake.is_set():
                return ()
        self._answer_by = None
        # Bytes, because an entry that is not UTF-8 must be refused as a document and not fail the connection.
        reply = self._connection.read_response(disable_decoding=True)
        return [_entry(*item) for item in reply[0][1]] if reply else ()

    def close(self) -> None:
        """Close the connection, and with it the command that has no reply yet."""
        connection, self._connection, self._answer_by = self._connection, None, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)

    def after_fork(self) -> None:
        """Close the parent's connection in a child process."""
        if self._connection is not None:
            self._connection.disconnect()  # sends nothing, because another process opened it

    def _ask(self, after: str) -> None:
        if self._connection is None:
            self._pool = self._client.pool_of(self._key)
            self._connection = self._pool.get_connection()
        command = ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", BLOCK_MS, "STREAMS", self._key, after)
        self._connection.send_command(*command)
        self._answer_by = self._monotonic() + TIMEOUT_SECONDS


def _entry(ident: bytes, fields: Sequence[bytes]) -> LogChange:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return LogChange(ident.decode("ascii"), named.get(b"changes"), named.get(b"store_id"))
