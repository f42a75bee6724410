"""Listening to the change log: a blocking read that its caller can leave at any time, and come back to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from enforcement.store.client import StoreTimeoutError, pool_of

BLOCK_MS: Final = 500
GRACE_SECONDS: Final = 1.0
"""How much longer than it was asked to the store may be silent."""
SLICE_SECONDS: Final = 0.05
"""How soon a caller is let go who is woken while the store has nothing to say."""
ENTRIES_PER_READ: Final = 100


@dataclass(frozen=True, slots=True)
class LogChange:
    """One entry; ``changes`` is None if it has none."""

    id: str
    changes: bytes | None

    @property
    def revision(self) -> int:
        """The revision that it leads to."""
        return int(self.id.partition("-")[0])


class ChangeLogReader:
    """
    The reader of one stream, on a connection of its own.

    The question stays asked while the caller does other things on other connections; the answer waits in the socket.

    Args:
        client: Whose pool to take the connection from.
        key: The stream.
        monotonic: Seconds.
    """

    def __init__(self, client: Redis, key: str, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._pool: Any = None
        self._key = key
        self._monotonic = monotonic
        self._connection: Any = None
        self._answer_by: float | None = None

    def entries(self, after: str, until: float, wake: threading.Event) -> Sequence[LogChange]:
        """
        Return the entries behind the id *after*; none if *until* passed or *wake* was set before any came.

        Raises:
            RedisError: Any of redis-py's; a store that stays silent too long is a TimeoutError.
        """
        if self._answer_by is None:
            self._ask(after)
        while not self._connection.can_read(SLICE_SECONDS):
            now = self._monotonic()
            if self._answer_by is not None and now > self._answer_by:
                raise StoreTimeoutError("The change log is silent for too long")
            if now >= until or wake.is_set():
                return ()
        self._answer_by = None
        reply = self._connection.read_response(disable_decoding=True)
        return [_entry(*item) for item in reply[0][1]] if reply else ()

    def close(self) -> None:
        """Drop the connection, with any question that is open on it."""
        connection, self._connection, self._answer_by = self._connection, None, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)

    def after_fork(self) -> None:
        """In a child process: let go of the parent's connection. Its reader never ends here, so nothing else would."""
        if self._connection is not None:
            self._connection.disconnect()  # without a word to the store, since another process made it

    def _ask(self, after: str) -> None:
        if self._connection is None:
            self._pool = pool_of(self._client, self._key)
            self._connection = self._pool.get_connection()
        command = ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", BLOCK_MS, "STREAMS", self._key, after)
        self._connection.send_command(*command)
        self._answer_by = self._monotonic() + BLOCK_MS / 1_000 + GRACE_SECONDS


def _entry(ident: bytes, fields: Sequence[bytes]) -> LogChange:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return LogChange(ident.decode("ascii"), named.get(b"changes"))
