"""
The streams of usage, from which drains take turns to read.

Every enforcer may write to the main stream. The rows of one token have one shard, so drains of different shards add to
different rows of SQL and do not wait for each other. Enforcers write to shards only while a drain announces them.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from django.conf import settings
from redis.exceptions import NoPermissionError, ResponseError

from controlplane.core import store
from controlplane.core.locks import hold
from controlplane.usage.claims import Claims
from enforcement.usage.shards import MAX_SHARDS

logger = logging.getLogger(__name__)

# With several shards for each drain, none is idle while another one has more than its share.
SHARDS_A_DRAIN = 2
# Longer than the pauses between drains. If drains of this version stop, enforcers go back to the main stream after it.
ANNOUNCED_MS = 60_000
LOCK_TTL_MS = 30_000
# How the store's error begins for a key that has another type than a command needs.
OTHER_TYPE = "WRONGTYPE"


@dataclass(frozen=True, slots=True)
class UsageStream:
    """A stream of usage. ``shard`` is None for the main stream, which several drains may read at the same time."""

    key: str
    shard: int | None = None

    @property
    def is_for_all(self) -> bool:
        """
        Whether what is written here may change what holds for all projects, as it comes from accounts of all projects.

        This is the only place where that is decided. All of these streams are shared.
        """
        return True

    @contextmanager
    def claimed(self, client: redis.Redis, place: int) -> Iterator[Claims | None]:
        """Yield the entries that the drain in *place* may take during the block, or None if another drain has them."""
        if self.shard is None:
            yield Claims(client, self.key, place, is_for_all=self.is_for_all)
            return
        with hold(client, f"drain-shard-{self.shard}", ttl_ms=LOCK_TTL_MS) as fence:
            # Whoever has the lock is the only reader, and so takes first what a killed one has left.
            yield Claims(client, self.key, 0, is_for_all=self.is_for_all) if fence else None


def announce(client: redis.Redis) -> None:
    """Have enforcers write to shards for ANNOUNCED_MS, if there may be several drains. Raises redis-py's errors."""
    if settings.DRAINS > 1:
        client.set(store.keys().usage_shards, SHARDS_A_DRAIN * settings.DRAINS, px=ANNOUNCED_MS)


def streams() -> list[UsageStream]:
    """Return the main stream and all shards that there could be. Their number may have been higher before."""
    keys = store.keys()
    return [UsageStream(keys.usage), *(UsageStream(keys.usage_shard(shard), shard) for shard in range(MAX_SHARDS))]


def filled(client: redis.Redis, place: int) -> list[UsageStream]:
    """
    Return the streams that have entries, in the order in which the drain in *place* reads them.

    An account of the store that was made by an earlier version may not read shards. Then it is the main stream, and
    nothing is announced. Raises redis-py's errors.
    """
    try:
        found = [stream for stream, length in lengths(client).items() if length]
        if not place:
            announce(client)
    except NoPermissionError as exc:
        logger.warning("Usage is drained by fewer processes: %s See `sluicegate-admin store_acl`.", exc)
        return streams()[:1]
    # Each place begins with a shard of its own, so that two drains seldom want the same one.
    first = SHARDS_A_DRAIN * place
    return sorted(found, key=lambda stream: -1 if stream.shard is None else (stream.shard - first) % MAX_SHARDS)


def lengths(client: redis.Redis) -> dict[UsageStream, int]:
    """
    Return the number of entries of each stream. Raises redis-py's errors.

    A key that has no stream, because somebody else has written it, is left out: it must not keep the others waiting.
    """
    known = streams()
    try:
        with client.pipeline(transaction=False) as pipe:
            for stream in known:
                pipe.xlen(stream.key)
            return dict(zip(known, pipe.execute(), strict=True))
    except ResponseError as exc:
        if OTHER_TYPE not in str(exc):
            raise
    return dict(_lengths_one_by_one(client, known))


def _lengths_one_by_one(client: redis.Redis, known: Iterable[UsageStream]) -> Iterator[tuple[UsageStream, int]]:
    for stream in known:
        try:
            yield stream, client.xlen(stream.key)
        except ResponseError as exc:
            if OTHER_TYPE not in str(exc):
                raise
            logger.error("%s is not a stream, so no usage is read there. Delete this key.", stream.key)


def oldest_ms(client: redis.Redis, lengths: dict[UsageStream, int]) -> int | None:
    """Return the time of the oldest entry of the streams, in milliseconds since the epoch, or None without any."""
    with client.pipeline(transaction=False) as pipe:
        for stream in (stream for stream, length in lengths.items() if length):
            pipe.xrange(stream.key, count=1)
        found = [entries[0][0] for entries in pipe.execute() if entries]
    return min((int(entry.partition("-")[0]) for entry in found), default=None)
