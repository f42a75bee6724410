"""
Durable counters: from the store to SQL every few seconds, and back into a store that lost them.

Nothing is lost when a run dies at any place: a counter stays in the store's set of changed ones until a commit holds
what it still is. Two runs at once do no harm either. What keeps a low count from replacing a high one is the stamp (see
`enforcement.checkpoints`): a counter that was lost and began anew does not know the last checkpoint, and is raised to
it.

Restoring comes before publishing: a tag whose counters are not whole is decided by each enforcer alone.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import batched, groupby
from typing import Any

import redis
from django.db import IntegrityError, models, transaction

from controlplane.projects.models import Project
from controlplane.publishing import compile, store
from controlplane.publishing.locks import hold
from controlplane.usage.models import Checkpoint, CheckpointRun
from enforcement import checkpoints as protocol
from enforcement.checkpoints import Kept, Reading
from enforcement.keys import GLOBAL_TAG, WHOLE
from enforcement.live import Reset
from enforcement.publishing import tags_of
from enforcement.store import is_unknown_function, load_library

logger = logging.getLogger(__name__)

LOCK = "checkpoint"
# A run that was killed holds up the next for so long. Longer than one lasts.
LOCK_TTL_MS = 25_000
# The next run goes on where one stops; it begins with other projects, so that none waits for ever.
MOST_SECONDS = 20
COUNTERS_AT_ONCE = 500
TAGS_AT_ONCE = 500
ATTEMPTS = 3
# As long as the store keeps a counter that never ends.
LIFETIME_KEPT = timedelta(days=3650)
# A checkpoint is late from then on: what passed since is what a store that lost its counters lets through again.
LATE = timedelta(seconds=60)


@dataclass(slots=True)
class Done:
    """What one run did, in counters; *restored* ones had been lost."""

    kept: int = 0
    restored: int = 0
    complete: bool = False


def checkpoint(now: datetime, client: redis.Redis | None = None) -> Done:
    """
    Keep every durable counter that changed, and give back to the store what it lost, for at most MOST_SECONDS.

    Raises:
        One of STORE_ERRORS: The store is away. What is not kept yet is kept by the next run.
    """
    client = client or store.connection()
    done, deadline = Done(), time.monotonic() + MOST_SECONDS
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS) as fence:
        if fence is None:
            return done
        tags = all_tags()
        random.shuffle(tags)
        done.restored += restore(client, missing(client, tags))
        for tag in list(_dirty(client, tags)):
            if time.monotonic() > deadline:
                break
            _checkpoint_tag(client, tag, done)
        else:
            done.complete = True
            CheckpointRun.objects.update_or_create(pk=1, defaults={"at": now, "counters": Checkpoint.objects.count()})
    return done


def all_tags() -> list[str]:
    """Return the hash tags under which enforcers keep durable counters."""
    return [GLOBAL_TAG, *Project.objects.values_list("pk", flat=True)]


def missing(client: redis.Redis, tags: Iterable[str]) -> list[str]:
    """Return those of *tags* whose counters this store never had, or has lost. Raises one of STORE_ERRORS."""
    return [tag for tag, whole in _ask(client, tags, lambda pipe, key: pipe.sismember(key, WHOLE)) if not whole]


def restore(client: redis.Redis, tags: Iterable[str]) -> int:
    """
    Give the store what is kept of these tags, let enforcers trust it with them, and return how many counters it got.

    Raises:
        One of STORE_ERRORS: The store is away; what it has of them by now stays untrusted, tag by tag.
    """
    tags = list(tags)
    restored = 0
    for some in batched(tags, TAGS_AT_ONCE):
        rows = Checkpoint.objects.filter(_not_over(), tag__in=some).order_by("tag")
        held = set()
        for tag, of_tag in groupby(rows.iterator(chunk_size=2000), key=lambda row: row.tag):
            held.add(tag)
            restored += _raise(client, tag, map(kept_of, of_tag))
            # Last of all, when nothing of it is missing any more.
            _call(client, protocol.restore_call(store.keys(), tag, [], whole=True))
        list(_ask(client, set(some) - held, lambda pipe, key: pipe.sadd(key, WHOLE)))
    if restored:
        logger.warning("The store had lost durable counters and got %d back", restored)
    return restored


def number(tags: Iterable[str]) -> int:
    """Return how many counters are kept of these tags."""
    return sum(Checkpoint.objects.filter(tag__in=some).count() for some in batched(tags, TAGS_AT_ONCE))


def forget(client: redis.Redis, documents: Mapping[str, Any]) -> None:
    """Take away the sets of projects that were published as being no more. Raises one of STORE_ERRORS."""
    gone = [name for name, document in documents.items() if document is None]
    list(_ask(client, set(tags_of(gone)) - {GLOBAL_TAG}, lambda pipe, key: pipe.unlink(key)))


def reset(done: Reset) -> None:
    """
    Keep that counters were reset, so that no restore brings back what they had.

    A run that read one before has an older stamp, and comes too late to keep it.
    """
    at_us = done.at_us
    _write(
        [
            Checkpoint(tag=tag, counter=counter, used=0, ends_us=ends_us, last_us=at_us, stamp=at_us)
            for tag, counter, ends_us in done.durable
        ]
    )


def prune(now: datetime) -> int:
    """Delete checkpoints of windows that are over and of projects that are no more; return how many."""
    now_us, oldest_us = compile.microseconds(now) or 0, compile.microseconds(now - LIFETIME_KEPT) or 0
    over = models.Q(ends_us__gt=0, ends_us__lt=now_us) | models.Q(ends_us=0, last_us__lt=oldest_us)
    known = Project.objects.filter(pk=models.OuterRef("tag"))
    orphan = ~models.Q(tag=GLOBAL_TAG) & ~models.Exists(known)
    return Checkpoint.objects.filter(over | orphan).delete()[0]


def kept_of(row: Checkpoint) -> Kept:
    return Kept(row.counter, *(getattr(row, name) for name in Checkpoint.VALUES))


def _not_over() -> models.Q:
    """By this process' clock, with an hour to spare: the store's own decides."""
    return models.Q(ends_us=0) | models.Q(ends_us__gt=(time.time() - 3600) * 1_000_000)


def _dirty(client: redis.Redis, tags: Iterable[str]) -> Iterator[str]:
    yield from (tag for tag, size in _ask(client, tags, lambda pipe, key: pipe.scard(key)) if size > 1)


def _ask(client: redis.Redis, tags: Iterable[str], question: Any) -> Iterator[tuple[str, Any]]:
    """Yield each tag with what the store answers about its set."""
    for some in batched(tags, TAGS_AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for tag in some:
                question(pipe, store.keys().dirty(tag))
            yield from zip(some, pipe.execute(), strict=True)


def _checkpoint_tag(client: redis.Redis, tag: str, done: Done) -> None:
    members = client.sscan_iter(store.keys().dirty(tag), count=COUNTERS_AT_ONCE)
    for some in batched((member for member in members if member != WHOLE), COUNTERS_AT_ONCE):
        lost = _checkpoint_counters(client, tag, some, done)
        if lost:
            done.restored += _raise(client, tag, lost)
            # They know the checkpoint now, and what they have is its later state.
            _checkpoint_counters(client, tag, [kept.counter for kept in lost], done)


def _checkpoint_counters(client: redis.Redis, tag: str, counters: Iterable[str], done: Done) -> list[Kept]:
    """Read, commit, strike out; return what is kept of counters that have forgotten it."""
    keys, counters = store.keys(), list(counters)
    readings = list(protocol.readings(counters, _call(client, protocol.read_call(keys, tag, counters))))
    kept, lost = keep(tag, readings)
    done.kept += kept
    forgotten = {one.counter for one in lost}
    known = [counter for counter in counters if counter not in forgotten]
    _call(client, protocol.strike_call(keys, tag, known, readings))
    return lost


def keep(tag: str, readings: list[Reading]) -> tuple[int, list[Kept]]:
    """
    Write down readings that follow what is kept; return how many, and what is kept of counters that have forgotten it.

    Raises:
        IntegrityError: Other runs came first three times.
    """
    for _ in range(ATTEMPTS - 1):
        # Another run may insert a row after this one has looked: look again.
        with suppress(IntegrityError):
            return _keep(tag, readings)
    return _keep(tag, readings)


@transaction.atomic
def _keep(tag: str, readings: list[Reading]) -> tuple[int, list[Kept]]:
    names = [reading.kept.counter for reading in readings]
    # Locked, and in one order: two runs at once wait for each other here, and the later one sees what the earlier kept.
    rows = Checkpoint.objects.select_for_update().filter(tag=tag, counter__in=names).order_by("counter")
    before = {row.counter: kept_of(row) for row in rows}
    later = [reading.kept for reading in readings if reading.follows(before.get(reading.kept.counter))]
    Checkpoint.objects.bulk_create(_row(tag, kept) for kept in later if kept.counter not in before)
    _write([_row(tag, kept) for kept in later if kept.counter in before])
    lost = [before[r.kept.counter] for r in readings if r.forgot(before.get(r.kept.counter))]
    return len(later), lost


def _row(tag: str, kept: Kept) -> Checkpoint:
    return Checkpoint(tag=tag, counter=kept.counter, **{name: getattr(kept, name) for name in Checkpoint.VALUES})


def _write(rows: list[Checkpoint]) -> None:
    Checkpoint.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["tag", "counter"], update_fields=Checkpoint.VALUES
    )


def _raise(client: redis.Redis, tag: str, kept: Iterable[Kept]) -> int:
    """Raise counters to what is kept of them, where they have less; return how many were written."""
    some = batched(kept, COUNTERS_AT_ONCE)
    return sum(_call(client, protocol.restore_call(store.keys(), tag, part, whole=False)) for part in some)


def _call(client: redis.Redis, call: protocol.Call) -> Any:
    """Call a function; a store that lost the library gets it back."""
    function, names, arguments = call
    try:
        return client.fcall(function, len(names), *names, *arguments)
    except redis.ResponseError as exc:
        if not is_unknown_function(exc):
            raise
    load_library(client)
    return client.fcall(function, len(names), *names, *arguments)
