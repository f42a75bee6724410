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
from controlplane.objects.projects.models import Project
from controlplane.traffic.stream.claims import Claims
from enforcement.usage.shards import MAX_SHARDS

logger = logging.getLogger(__name__)

# With several shards for each drain, none is idle while another one has more than its share.
SHARDS_A_DRAIN = 2
# Longer than the pauses between drains. If drains of this version stop, enforcers go back to the main stream after it.
ANNOUNCED_MS = 60_000
LOCK_TTL_MS = 30_000
REJECTED_KEPT = 1000
REJECTED_OF_INTAKE = 100
# How the store's error begins for a key that has another type than a command needs.
OTHER_TYPE = "WRONGTYPE"


@dataclass(frozen=True, slots=True)
class UsageStream:
    """
    A stream of usage.

    ``shard`` is None for a stream that several drains may read at the same time. ``project`` is the id of the project
    whose intake it is. Accounts of the store that are limited to this project write there, and nobody else does. It is
    empty for a stream of accounts of all projects.
    """

    key: str
    shard: int | None = None
    project: str = ""

    @property
    def is_for_all(self) -> bool:
        """
        Whether what is written here may change what holds for all projects, as it comes from accounts of all projects.

        This is the only place where that is decided.
        """
        return not self.project

    @property
    def rejected_key(self) -> str:
        """The key of the stream that keeps the rejected entries and rows with their reasons, in the same slot."""
        return f"{self.key if self.project else store.keys().usage}:rejected"

    @property
    def rejected_kept(self) -> int:
        """The number of entries that are kept there."""
        return REJECTED_OF_INTAKE if self.project else REJECTED_KEPT

    @contextmanager
    def claimed(self, client: redis.Redis, place: int) -> Iterator[Claims | None]:
        """Yield the entries that the drain in *place* may take during the block, or None if another drain has them."""
        if self.shard is None:
            yield Claims(client, self.key, place)
            return
        with hold(client, f"drain-shard-{self.shard}", ttl_ms=LOCK_TTL_MS) as fence:
            # Whoever has the lock is the only reader, and so takes first what a killed one has left.
            yield Claims(client, self.key, 0) if fence else None


def announce(client: redis.Redis) -> None:
    """Have enforcers write to shards for ANNOUNCED_MS, if there may be several drains. Raises redis-py's errors."""
    if settings.DRAINS > 1:
        client.set(store.keys().usage_shards, SHARDS_A_DRAIN * settings.DRAINS, px=ANNOUNCED_MS)


def streams() -> list[UsageStream]:
    """Return the main stream, all shards that there could be, as there may have been more before, and the intakes."""
    return [*shared_streams(), *intakes()]


def shared_streams() -> list[UsageStream]:
    keys = store.keys()
    return [UsageStream(keys.usage), *(UsageStream(keys.usage_shard(shard), shard) for shard in range(MAX_SHARDS))]


def intakes() -> list[UsageStream]:
    projects = Project.objects.filter(has_intake=True).values_list("pk", flat=True)
    return [UsageStream(store.keys().intake(project), project=project) for project in projects]


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
        return shared_streams()[:1]
    # Each place begins with a shard of its own, so that two drains seldom want the same one.
    first = SHARDS_A_DRAIN * place
    return sorted(found, key=lambda stream: -1 if stream.shard is None else (stream.shard - first) % MAX_SHARDS)


def lengths(client: redis.Redis, known: Iterable[UsageStream] | None = None) -> dict[UsageStream, int]:
    """
    Return the number of entries of each stream, or of the *known* ones. Raises redis-py's errors.

    What is left out must not keep the others waiting: a key that has no stream, because somebody else has written it,
    and an intake, if the account of the store was made by an earlier version and may not read it.
    """
    known = list(streams() if known is None else known)
    with client.pipeline(transaction=False) as pipe:
        for stream in known:
            pipe.xlen(stream.key)
        replies = pipe.execute(raise_on_error=False)
    return dict(_read(zip(known, replies, strict=True)))


def _read(replies: Iterable[tuple[UsageStream, object]]) -> Iterator[tuple[UsageStream, int]]:
    for stream, reply in replies:
        if isinstance(reply, NoPermissionError) and stream.project:
            logger.warning("The usage in %s is not read: %s See `sluicegate-admin store_acl`.", stream.key, reply)
        elif isinstance(reply, ResponseError) and OTHER_TYPE in str(reply):
            logger.error("%s is not a stream, so no usage is read there. It is deleted soon.", stream.key)
        elif isinstance(reply, Exception):
            raise reply
        elif isinstance(reply, int):
            yield stream, reply


def oldest_ms(client: redis.Redis, lengths: dict[UsageStream, int]) -> int | None:
    """Return the time of the oldest entry of the streams, in milliseconds since the epoch, or None without any."""
    with client.pipeline(transaction=False) as pipe:
        for stream in (stream for stream, length in lengths.items() if length):
            pipe.xrange(stream.key, count=1)
        found = [entries[0][0] for entries in pipe.execute() if entries]
    return min((int(entry.partition("-")[0]) for entry in found), default=None)
