"""Entries of a stream that only one of several drains reads."""

import logging
from collections.abc import Iterable
from contextlib import suppress

import redis
from redis.exceptions import NoPermissionError, ResponseError

logger = logging.getLogger(__name__)

GROUP = "drain"
# Longer than any drain works on the entries that it has read.
ABANDONED_MS = 60_000

Entry = tuple[str, dict[str, str]]


class Claims:
    """
    The entries of a stream that a drain takes and then deletes.

    A killed drain leaves entries that are given to its place. The next drain in this place takes them first. Should
    there be none any more, the drain in place 0 takes them after ABANDONED_MS.

    Args:
        place: The number of this drain among those that work at the same time.
    """

    def __init__(self, client: redis.Redis, stream: str, place: int) -> None:
        self._client = client
        self._stream = stream
        self._place = place
        # Where its own entries are read from, until there are none.
        self._own: str | None = "0"
        # Where those of other places are looked for, until all were seen.
        self._others: str | None = None if place else "0-0"
        self._is_shared = True

    def take(self, at_most: int) -> list[Entry]:
        """
        Return entries that no other drain has, the oldest first, or an empty list.

        An account of the store that was made by an earlier version may not use groups. Place 0 then reads all entries,
        and the others none. Raises redis-py's errors.
        """
        try:
            return self._left(at_most) or self._read(">", at_most)
        except NoPermissionError as exc:
            logger.warning("Usage is drained by one process only: %s See `sluicegate-admin store_acl`.", exc)
            self._is_shared = False
            return [] if self._place else oldest(self._client, self._stream, at_most)

    def _left(self, at_most: int) -> list[Entry]:
        """Return entries that an earlier drain has left, which exist only at the start of a run."""
        while self._own is not None:
            found = self._read(self._own, at_most)
            self._own = found[-1][0] if found else None
            if entries := self._existing(found):
                return entries
        # One reply has those of few places, and looks at few of the entries that other drains work on.
        while self._others is not None:
            if entries := self._abandoned(self._others, at_most):
                return entries
        return []

    def _abandoned(self, since: str, at_most: int) -> list[Entry]:
        self._others = None
        with suppress(ResponseError):  # no group yet
            after, found, *_ = self._client.xautoclaim(
                self._stream, GROUP, str(self._place), ABANDONED_MS, start_id=since, count=at_most
            )
            self._others = None if after == "0-0" else after
            return self._existing(found)
        return []

    def _existing(self, found: list[Entry]) -> list[Entry]:
        """Return those entries that the stream still has, after the others are no longer expected."""
        gone = [entry for entry, fields in found if not fields]
        if gone:
            self._client.xack(self._stream, GROUP, *gone)
        return [(entry, fields) for entry, fields in found if fields]

    def _read(self, after: str, at_most: int) -> list[Entry]:
        for _ in range(2):
            try:
                found = self._client.xreadgroup(GROUP, str(self._place), {self._stream: after}, count=at_most)
            except ResponseError as exc:
                if not str(exc).startswith("NOGROUP"):
                    raise
                if not self._create():
                    break
            else:
                return _entries(found)
        return []

    def _create(self) -> bool:
        """Create the group, and return whether there is one, which needs a stream."""
        try:
            self._client.xgroup_create(self._stream, GROUP, id="0")
        except NoPermissionError:
            raise
        except ResponseError as exc:
            return str(exc).startswith("BUSYGROUP")  # another drain was faster
        return True

    def delete(self, entries: Iterable[str]) -> None:
        """Delete entries that are counted."""
        ids = list(entries)
        with self._client.pipeline(transaction=True) as pipe:
            if self._is_shared:
                pipe.xack(self._stream, GROUP, *ids)
            pipe.xdel(self._stream, *ids)
            pipe.execute()

    def keep(self, fields: dict[str, str], to: str, at_most: int) -> None:
        """Add an entry to another stream, which keeps *at_most*."""
        self._client.xadd(to, dict(fields.items()), maxlen=at_most)

    def move(self, entry: str, fields: dict[str, str], to: str, at_most: int) -> None:
        """Add an entry to another stream, which keeps *at_most*, and delete it from its own."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xadd(to, dict(fields.items()), maxlen=at_most)
            if self._is_shared:
                pipe.xack(self._stream, GROUP, entry)
            pipe.xdel(self._stream, entry)
            pipe.execute()


def oldest(client: redis.Redis, stream: str, at_most: int) -> list[Entry]:
    """Return the oldest entries of a stream, also those that others have taken. Raises redis-py's errors."""
    return _entries([(stream, client.xrange(stream, count=at_most))])


def _entries(found: object) -> list[Entry]:
    """Return the entries in a reply of XREADGROUP, which is a list or, by RESP3, a dictionary of streams."""
    if isinstance(found, dict):
        return [entry for pages in found.values() for page in pages for entry in page]
    return [entry for _, entries in found for entry in entries] if isinstance(found, list) else []
