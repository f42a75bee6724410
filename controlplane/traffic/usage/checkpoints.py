"""
Checkpoints of durable counters. They are copied from the store to SQL every few seconds, and restored if they are lost.

A run may die at any place without a loss, because a counter stays in the store's set of changed counters until SQL has
its present value. Two runs at the same time do no harm. The stamp (see `store_calls.checkpoints`) keeps a low
count from replacing a high one, because a counter that was lost and started again does not know the last checkpoint,
and is raised to it.

Counters are restored before a publication, because each enforcer decides alone for a tag whose counters are incomplete.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import batched, groupby
from typing import Any

import redis
from django.db import IntegrityError, models, transaction
from django.utils import timezone

from controlplane.core import store
from controlplane.core.locks import hold
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.counter_names import present_names
from controlplane.traffic.usage.models import Checkpoint, CheckpointRun
from enforcement.logs import RateLimitedLogger
from enforcement.model.instants import DAY_SECONDS, to_us
from enforcement.model.keys import EARLIER_NAME_LENGTH, GLOBAL_TAG, NAME_LENGTH, WHOLE
from enforcement.model.limits import DURABLE_CALENDARS
from enforcement.store.base_client import StoreClient
from enforcement.store.client import STORE_ERRORS, with_library
from enforcement.store.errors import trouble
from enforcement.store_calls import checkpoints as protocol
from enforcement.store_calls.checkpoints import CheckpointReading, StoredCheckpoint
from enforcement.store_calls.inspection import Reset
from enforcement.store_calls.publication import tags_of

logger = logging.getLogger(__name__)
# A run follows every few seconds, and an account of a project may spoil its keys before each.
often = RateLimitedLogger(logger, seconds=600)

LOCK = "checkpoint"
# The time for which a killed run blocks the next one. It is longer than a run.
LOCK_TTL_MS = 25_000
# A run stops after this time. The next one starts with other projects, so that none of them waits for ever.
MOST_SECONDS = 20
COUNTERS_AT_ONCE = 500
# How often a run reads COUNTERS_AT_ONCE names of one tag, as an account of a project may put any number of them into
# its set. The next run reads the others.
MOST_READS = 100
# The same for names that 0.2 has left, which are read only once.
MOST_READS_ONCE = 2_000
TAGS_AT_ONCE = 500
CALLS_AT_ONCE = 100
ATTEMPTS = 3
# As long as the store keeps a counter with the window "lifetime".
LIFETIME_KEPT = timedelta(days=3650)
# A checkpoint is late after this time. A store that loses its counters admits the requests since then once more.
LATE = timedelta(seconds=60)

Names = tuple[str, list[str]]
"""A hash tag, and the last parts of the keys of some of its counters."""


@dataclass(slots=True)
class CheckpointResult:
    """The numbers of counters that one run has saved (``kept``) and restored, and whether it was complete."""

    kept: int = 0
    restored: int = 0
    complete: bool = False


def checkpoint(now: datetime, client: StoreClient | None = None) -> CheckpointResult:
    """
    Save changed durable counters and restore lost ones, for at most MOST_SECONDS, and return a CheckpointResult.

    Raises:
        One of STORE_ERRORS: The store, or a server of it, is unavailable. The counters of other servers are saved. The
            next run saves the rest.
    """
    client = client or store.connection()
    done, deadline = CheckpointResult(), time.monotonic() + MOST_SECONDS
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS) as fence:
        if fence is None:
            return done
        tags = all_tags()
        random.shuffle(tags)
        away: Exception | None = None
        for some in _by_server(client, tags):
            try:
                _checkpoint(client, some, deadline, done)
            except STORE_ERRORS as exc:
                away = exc
        if away is not None:
            raise away
        done.complete = time.monotonic() <= deadline
        if done.complete:
            CheckpointRun.objects.update_or_create(pk=1, defaults={"at": now, "counters": Checkpoint.objects.count()})
    return done


def _checkpoint(client: redis.Redis, tags: list[str], deadline: float, done: CheckpointResult) -> None:
    done.restored += restore(client, missing(client, tags))
    for some in _changed(client, tags):
        if time.monotonic() > deadline:
            return
        keep_present(client, some, done)


def _by_server(client: StoreClient, tags: Iterable[str]) -> Iterable[list[str]]:
    """Return the tags in one list for each server, so that an unavailable server does not delay the others."""
    servers: dict[Any, list[str]] = defaultdict(list)
    for tag in tags:
        key = store.keys().dirty(tag)
        servers[client.pool_of(key)].append(tag)
    return servers.values()


def needed() -> bool:
    """Return whether any limit has durable counters."""
    day = models.Q(calendar__in=DURABLE_CALENDARS) | models.Q(window_seconds__gte=DAY_SECONDS)
    return Limit.objects.filter(day, algorithm="fixed_window").exists()


def last_run() -> CheckpointRun | None:
    """Return the last complete run, or None before the first."""
    return CheckpointRun.objects.first()


def all_tags() -> list[str]:
    """Return the hash tag of the global counters and those of all projects, which may have durable counters."""
    return [GLOBAL_TAG, *Project.objects.values_list("pk", flat=True)]


def missing(client: redis.Redis, tags: Iterable[str]) -> list[str]:
    """
    Return a list of those of the *tags* whose counters the store never had, or has lost.

    A key of a wrong type is deleted.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    result = []
    for tag, whole in _ask(client, tags, lambda pipe, key: pipe.sismember(key, WHOLE)):
        if whole is None:
            client.unlink(store.keys().dirty(tag))
        if not whole:
            result.append(tag)
    return result


def restore(client: redis.Redis, tags: Iterable[str]) -> int:
    """
    Restore the counters of these tags from SQL to the store, mark the tags as complete, and return the number of
    counters.

    Raises:
        One of STORE_ERRORS: The store is unavailable. Enforcers do not trust tags that are not marked yet.
    """
    restored = 0
    for some in batched(tags, TAGS_AT_ONCE):
        mark = protocol.new_mark()
        list(_ask(client, some, lambda pipe, key, mark=mark: pipe.sadd(key, mark)))
        _carry_over(client, some)
        for calls in batched(_restore_calls(some), CALLS_AT_ONCE):
            restored += sum(filter(None, _run(client, calls)))
        # The last step, after every counter of these tags is restored.
        if not all(_run(client, [protocol.whole_call(store.keys(), tag, mark) for tag in some])):
            message = "The store lost durable counters again while they were restored. The next run starts again"
            often.warning("lost again", message)
    if restored:
        often.warning("restored", "The store had lost durable counters, and %d were restored", restored)
    return restored


def _carry_over(client: redis.Redis, tags: Iterable[str]) -> None:
    """
    Save the counts that 0.2 kept under other names, and copy those to the present names that have no count yet.

    Enforcers of 0.2 may go on. Their counters stay, and what they charge from now on is theirs alone.
    """
    earlier = defaultdict(set)
    for tag, counter in Checkpoint.objects.filter(_not_over(), tag__in=tags).values_list("tag", "counter"):
        if len(counter) == EARLIER_NAME_LENGTH:
            earlier[tag].add(counter)
    used = _ask(client, tags, lambda pipe, key: pipe.sismember(key, WHOLE), key_of=store.keys().earlier_dirty)
    tags_of_02 = [tag for tag, whole in used if whole]
    for tag, members in _members(client, tags_of_02, store.keys().earlier_dirty, MOST_READS_ONCE):
        earlier[tag].update(_counters(members, EARLIER_NAME_LENGTH))
    for tag, counters in earlier.items():
        present = present_names(tag) if counters else {}
        # In one order, so that two runs at the same time meet in one batch and not in all of them.
        for names in batched(sorted(counters), COUNTERS_AT_ONCE):
            (reply,) = _run(client, [protocol.read_call(store.keys(), tag, names)])
            keep([(tag, list(protocol.readings(names, reply)))] if reply else [])
            rows = Checkpoint.objects.filter(tag=tag, counter__in=present.keys() & names).order_by("counter")
            copies = [Checkpoint.of(tag, replace(row.as_kept(), counter=present[row.counter])) for row in rows]
            Checkpoint.objects.bulk_create(copies, ignore_conflicts=True)


def _restore_calls(tags: Iterable[str]) -> Iterator[protocol.Call]:
    rows = Checkpoint.objects.filter(_not_over(), tag__in=tags).order_by("tag").iterator(chunk_size=2000)
    for tag, of_tag in groupby(rows, key=lambda row: row.tag):
        for checkpoints in batched((row.as_kept() for row in of_tag), COUNTERS_AT_ONCE):
            yield from protocol.restore_calls(store.keys(), tag, checkpoints)


def number(tags: Iterable[str]) -> int:
    """Return the number of counters in SQL with these tags."""
    return sum(Checkpoint.objects.filter(tag__in=some).count() for some in batched(tags, TAGS_AT_ONCE))


def forget(client: redis.Redis, documents: Mapping[str, Any]) -> None:
    """
    Delete the sets of changed counters of the projects that were published as deleted. Raises one of STORE_ERRORS.
    """
    gone = [name for name, document in documents.items() if document is None]
    list(_ask(client, set(tags_of(gone)) - {GLOBAL_TAG}, lambda pipe, key: pipe.unlink(key)))


def reset(done: Reset) -> None:
    """
    Save in SQL that counters were reset, so that their former values are not restored.

    A run that has read a counter before the reset has an older stamp, so it cannot save the former value.
    """
    at_us = done.at_us
    _write(
        [
            Checkpoint.of(tag, StoredCheckpoint(counter, used=0, ends_us=ends_us, last_us=at_us, stamp=at_us))
            for tag, counter, ends_us in done.durable
        ]
    )


def prune(now: datetime) -> int:
    """Delete the checkpoints of ended windows and deleted projects, and return the number of deleted rows."""
    now_us, oldest_us = to_us(now), to_us(now - LIFETIME_KEPT)
    over = models.Q(ends_us__gt=0, ends_us__lt=now_us, kept_until_us=None) | models.Q(kept_until_us__lt=now_us)
    over |= models.Q(ends_us=0, last_us__lt=oldest_us)
    known = Project.objects.filter(pk=models.OuterRef("tag"))
    orphan = ~models.Q(tag=GLOBAL_TAG) & ~models.Exists(known)
    return Checkpoint.objects.filter(over | orphan).delete()[0]


def _not_over() -> models.Q:
    """
    Return the query condition for counters that are still needed, or that were less than an hour ago.

    The store's clock decides.
    """
    hour_ago_us = to_us(timezone.now() - timedelta(hours=1))
    return models.Q(ends_us=0) | models.Q(ends_us__gt=hour_ago_us) | models.Q(kept_until_us__gt=hour_ago_us)


def _ask(
    client: redis.Redis,
    tags: Iterable[str],
    question: Any,
    key_of: Callable[[str], str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield each tag with the store's reply to *question* about its set of changed counters, see :func:`_usable`."""
    key_of = key_of or store.keys().dirty
    for some in batched(tags, TAGS_AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for tag in some:
                question(pipe, key_of(tag))
            yield from zip(some, map(_usable, pipe.execute(raise_on_error=False)), strict=True)


def _usable(reply: Any) -> Any:
    """
    Return a reply, or None in place of an error that concerns the keys of its call alone, or raise another error.

    An account that is limited to a project may give any form to the keys of its tag. That must not end what is done for
    the tags of others.
    """
    if isinstance(reply, redis.ResponseError) and trouble(reply).cause == "reply":
        often.warning("spoilt", "Durable counters of a project cannot be used: %s", reply)
        return None
    if isinstance(reply, Exception):
        raise reply
    return reply


def _changed(client: redis.Redis, tags: Iterable[str]) -> Iterator[list[Names]]:
    """Yield lists of tags, each with names of its changed counters, about COUNTERS_AT_ONCE names in a list."""
    gathered: list[Names] = []
    for tag, names in _changed_of_each(client, tags):
        gathered.append((tag, names))
        if sum(len(names) for _, names in gathered) >= COUNTERS_AT_ONCE:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def _changed_of_each(client: redis.Redis, tags: Iterable[str]) -> Iterator[Names]:
    dirty = [tag for tag, size in _ask(client, tags, lambda pipe, key: pipe.scard(key)) if size and size > 1]
    for tag, members in _members(client, dirty, store.keys().dirty):
        yield tag, _counters(members)


def _members(
    client: redis.Redis, tags: Iterable[str], key_of: Callable[[str], str], most_reads: int | None = None
) -> Iterator[tuple[str, list[str]]]:
    """
    Yield each tag with some members of its set, in turn, until all were yielded.

    A set that somebody replaces ends there.

    Args:
        most_reads: How often each set is read at most. None: MOST_READS times.
    """
    at = {key_of(tag): 0 for tag in tags}
    left = list(tags)
    for _ in range(most_reads or MOST_READS):
        rows = _ask(client, left, lambda pipe, key: pipe.sscan(key, at[key], count=COUNTERS_AT_ONCE), key_of)
        left = []
        for tag, found in rows:
            if found is None:
                continue
            cursor, members = found
            yield tag, members
            if cursor:
                at[key_of(tag)] = cursor
                left.append(tag)
        if not left:
            return
    for tag in left:
        often.warning(
            f"long {tag}", "The store lists so many changed counters of %s that some wait for the next run", tag
        )


def _counters(members: Iterable[str], length: int = NAME_LENGTH) -> list[str]:
    """
    Return the members of a scan that are counters, each once.

    A scan may return a member twice, and every client that may count can write other members to the set.
    """
    return [member for member in dict.fromkeys(members) if len(member) == length and member.isprintable()]


def keep_present(client: redis.Redis, some: list[Names], done: CheckpointResult) -> None:
    """Read changed counters from the store, save their values, and restore those that the store has lost."""
    lost = _keep_present(client, some, done)
    if lost:
        keys = store.keys()
        calls = [call for tag, checkpoints in lost for call in protocol.restore_calls(keys, tag, checkpoints)]
        done.restored += sum(filter(None, _run(client, calls)))
        # Now these counters know their checkpoint, and their values are later than it.
        _keep_present(client, [(tag, [one.counter for one in checkpoints]) for tag, checkpoints in lost], done)


def _keep_present(
    client: redis.Redis, some: list[Names], done: CheckpointResult
) -> list[tuple[str, list[StoredCheckpoint]]]:
    """Save counters, and return pairs of a tag and the checkpoints that the store has lost. These stay in the set."""
    keys = store.keys()
    replies = _run(client, [protocol.read_call(keys, tag, names) for tag, names in some])
    usable = [(names, reply) for names, reply in zip(some, replies, strict=True) if reply is not None]
    some = [names for names, _ in usable]
    read = [(tag, list(protocol.readings(names, reply))) for (tag, names), reply in usable]
    saved, lost = keep(read)
    done.kept += saved
    forgotten = {(tag, one.counter) for tag, ones in lost for one in ones}
    strikes = []
    for (tag, names), (_, readings) in zip(some, read, strict=True):
        known = [name for name in names if (tag, name) not in forgotten]
        strikes.append(protocol.strike_call(keys, tag, known, readings))
    _run(client, strikes)
    return lost


def keep(read: list[tuple[str, list[CheckpointReading]]]) -> tuple[int, list[tuple[str, list[StoredCheckpoint]]]]:
    """
    Save each reading that follows its checkpoint, and return how many, and by tag the checkpoints of lost counters.

    Returns:
        The number of saved counters, and by tag the checkpoints of the counters that the store has lost.
    Raises:
        IntegrityError: Other runs came first in three attempts.
    """
    for _ in range(ATTEMPTS - 1):
        # Another run may insert a row after this run has read them, so read them again.
        with suppress(IntegrityError):
            return _keep(read)
    return _keep(read)


@transaction.atomic
def _keep(read: list[tuple[str, list[CheckpointReading]]]) -> tuple[int, list[tuple[str, list[StoredCheckpoint]]]]:
    names = [reading.kept.counter for _, readings in read for reading in readings]
    rows = Checkpoint.objects.filter(tag__in=[tag for tag, _ in read], counter__in=names)
    # Locked in one order, so two runs at the same time wait for each other, and the later one sees the saved rows.
    before = {(row.tag, row.counter): row.as_kept() for row in rows.select_for_update().order_by("tag", "counter")}
    new, changed = list[Checkpoint](), list[Checkpoint]()
    lost: list[tuple[str, list[StoredCheckpoint]]] = []
    for tag, readings in read:
        forgotten = []
        for reading in readings:
            known = before.get((tag, reading.kept.counter))
            if reading.follows(known):
                (changed if known else new).append(Checkpoint.of(tag, reading.kept))
            elif known and reading.forgot(known):
                forgotten.append(known)
        if forgotten:
            lost.append((tag, forgotten))
    Checkpoint.objects.bulk_create(sorted(new, key=lambda row: (row.tag, row.counter)))
    _write(changed)
    return len(new) + len(changed), lost


def _write(rows: list[Checkpoint]) -> None:
    Checkpoint.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["tag", "counter"], update_fields=Checkpoint.VALUES
    )


def _run(client: redis.Redis, calls: Sequence[protocol.Call]) -> list[Any]:
    """
    Call functions of the store and return their replies, see :func:`_usable`, or raise the first other error.

    If the store has lost the library, it is loaded, and all functions are called again, which does no harm.
    """

    def act() -> list[Any]:
        with client.pipeline(transaction=False) as pipe:
            for function, names, arguments in calls:
                pipe.fcall(function, len(names), *names, *arguments)
            return [*map(_usable, pipe.execute(raise_on_error=False))]

    return with_library(client, act)
