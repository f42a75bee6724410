"""
From the usage stream to SQL, exactly once.

An entry is deleted from the stream after the commit that counts it. Whoever dies between the two leaves it there, and
whoever reads it again finds its id in UsageBatch and only deletes it. The lock saves two drains from doing the same
work; when it fails, the unique id lets one of them commit.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import batched

import redis
from django.db import DataError, IntegrityError, models, transaction

from controlplane.core import store
from controlplane.core.locks import hold
from controlplane.projects.models import Token
from controlplane.usage import rollup
from controlplane.usage.batches import InvalidBatch, StreamBatch
from controlplane.usage.models import UsageBatch

logger = logging.getLogger(__name__)

LOCK = "drain"
# The next run goes on where one stops: a worker is not kept from publishing by a long queue of usage.
MOST_SECONDS = 10
# A drain that was killed holds up the next for so long. Longer than one runs.
LOCK_TTL_MS = 15_000
ENTRIES_AT_ONCE = 100
ATTEMPTS = 3
TOKENS_AT_ONCE = 1000
REJECTED_KEPT = 1000
REJECTED_BYTES = 16_384


@dataclass(slots=True)
class DrainResult:
    """What one run did, in entries of the stream; *repeated* were counted before."""

    counted: int = 0
    repeated: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.counted or self.repeated or self.rejected)


def rejected_key() -> str:
    """Name the stream of the entries that could not be counted, each with the reason."""
    return f"{store.keys().usage}:rejected"


def drain(now: datetime, client: redis.Redis | None = None) -> DrainResult:
    """
    Count what the usage stream holds, for at most MOST_SECONDS, and return what was done.

    Raises:
        One of STORE_ERRORS: The store is away. What was committed is not counted again.
    """
    client = client or store.connection()
    done = DrainResult()
    deadline = time.monotonic() + MOST_SECONDS
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS) as fence:
        while fence and time.monotonic() < deadline:
            entries = client.xrange(store.keys().usage, count=ENTRIES_AT_ONCE)
            if not entries:
                break
            _drain(client, entries, now, done)
    if done:
        logger.info("Usage: %d entries counted, %d repeated, %d rejected", done.counted, done.repeated, done.rejected)
    return done


def _drain(client: redis.Redis, entries: list[tuple[str, dict[str, str]]], now: datetime, done: DrainResult) -> None:
    batches = list(_readable(client, entries, now, done))
    try:
        _count_and_delete(client, batches, now, done)
    except DataError:
        # One of them holds what the database cannot: the others are not to wait for it.
        for batch in batches:
            _count_or_reject(client, batch, dict(entries)[batch.entry], now, done)


def _readable(
    client: redis.Redis, entries: list[tuple[str, dict[str, str]]], now: datetime, done: DrainResult
) -> Iterator[StreamBatch]:
    for entry, fields in entries:
        try:
            yield StreamBatch.parse(entry, fields, now)
        except InvalidBatch as exc:
            _reject(client, entry, fields, str(exc), done)


def _count_or_reject(
    client: redis.Redis, batch: StreamBatch, fields: dict[str, str], now: datetime, done: DrainResult
) -> None:
    try:
        _count_and_delete(client, [batch], now, done)
    except DataError as exc:
        _reject(client, batch.entry, fields, str(exc), done)


def _count_and_delete(client: redis.Redis, batches: list[StreamBatch], now: datetime, done: DrainResult) -> None:
    if not batches:
        return
    counted = count(batches, now)
    note_use_of_tokens(counted)
    client.xdel(store.keys().usage, *(batch.entry for batch in batches))
    done.counted += len(counted)
    done.repeated += len(batches) - len(counted)


def count(batches: list[StreamBatch], now: datetime) -> list[StreamBatch]:
    """
    Add the batches that were never added before, in one transaction, and return them.

    Raises:
        DataError: A number or text is more than the database holds; nothing was added.
        IntegrityError: Other drains came first three times.
    """
    for _ in range(ATTEMPTS - 1):
        # Another drain may commit one of these ids after this one has looked: look again.
        with suppress(IntegrityError):
            return _count_new(batches, now)
    return _count_new(batches, now)


@transaction.atomic
def _count_new(batches: list[StreamBatch], now: datetime) -> list[StreamBatch]:
    ids = [batch.id for batch in batches]
    known = set(UsageBatch.objects.filter(batch_id__in=ids).values_list("batch_id", flat=True))
    # By id, since a batch may stand in the stream twice; sorted, so that two drains at once wait for each other in one
    # order.
    unknown = {batch.id: batch for batch in reversed(batches) if batch.id not in known}
    new = [batch for _, batch in sorted(unknown.items())]
    UsageBatch.objects.bulk_create(
        UsageBatch(batch_id=batch.id, instance=batch.instance, received_at=now) for batch in new
    )
    rollup.add((row for batch in new for row in batch.rows), now)
    return new


def note_use_of_tokens(batches: list[StreamBatch]) -> None:
    """Set when tokens were last used, to the minute: at most one write a token and minute."""
    last: dict[str, datetime] = {}
    for row in (row for batch in batches for row in batch.rows if row.token_id):
        last[row.token_id] = max(row.at, last.get(row.token_id, row.at))
    tokens_of_minute: dict[datetime, list[str]] = defaultdict(list)
    for token_id, at in last.items():
        tokens_of_minute[at].append(token_id)
    for at, ids in sorted(tokens_of_minute.items()):
        # Only forward: batches of one token come from many instances, in any order.
        older = models.Q(last_used_at=None) | models.Q(last_used_at__lt=at)
        for some in batched(ids, TOKENS_AT_ONCE):
            Token.objects.filter(older, pk__in=some).update(last_used_at=at)


def _reject(client: redis.Redis, entry: str, fields: dict[str, str], reason: str, done: DrainResult) -> None:
    """Move an entry out of the way of the others, to where a person can read it."""
    kept = {name[:64]: value[:REJECTED_BYTES] for name, value in list(fields.items())[:10]}
    with client.pipeline(transaction=True) as pipe:
        pipe.xadd(rejected_key(), {**kept, "entry": entry, "reason": reason[:500]}, maxlen=REJECTED_KEPT)
        pipe.xdel(store.keys().usage, entry)
        pipe.execute()
    done.rejected += 1
    logger.error("The usage entry %s was set aside in %s: %s", entry, rejected_key(), reason[:500])
