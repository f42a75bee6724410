"""
Transfer of the usage streams to SQL by several processes at once, in which each entry is counted exactly once.

A consumer group of each stream gives each entry to one drain. An entry is deleted after the commit that counts it. If a
process dies between the two, the entry stays in the stream, and the next drain finds its id in UsageBatch and only
deletes it. If two drains have one entry, the unique id lets only one of them commit.

A drain that is suspended inside its transaction loses it after a few seconds, and so do those that wait for its rows.
Their entries stay in the stream for the next run.
"""

import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import batched

import redis
from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, OperationalError, models, transaction
from redis.exceptions import NoPermissionError

from controlplane.core import store
from controlplane.core.locks import hold, prolong
from controlplane.core.transactions import bounded, is_deadlock, take_turn, was_held_up
from controlplane.core.upserts import Statement, execute
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices import broken
from controlplane.objects.projects.models import Token
from controlplane.traffic.callers import recording
from controlplane.traffic.stream.batches import MOST_AHEAD, InvalidBatch, Refused, StreamBatch, parse_denials
from controlplane.traffic.stream.claims import Claims, Entry, oldest
from controlplane.traffic.stream.streams import LOCK_TTL_MS, UsageStream, filled
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.folding import folded
from controlplane.traffic.usage.models import DeniedRequest, UsageBatch

logger = logging.getLogger(__name__)

LOCK = "drain"
# A run stops after this time and the next one continues, so that a long queue of usage does not delay publications.
MOST_SECONDS = 10
# A run beside the first one is shorter, because a worker may have only two processes for all tasks.
MOST_SECONDS_BESIDE = 2
# 100 instances report so many in two seconds. Rows that are read together are often sums of one row in SQL.
ENTRIES_AT_ONCE = 200
# About 40,000 rows, which the database adds in a few seconds. Others who need one of its rows wait for less than
# transactions.LOCK_WAIT_MS, and the lock of a drain that works lasts for longer.
BYTES_AT_ONCE = 6_000_000
ENTRIES_A_READ = 25
ATTEMPTS = 3
TOKENS_AT_ONCE = 1000
# Two drains would lock the same tokens, each in an order of its own.
TURN = "note use of tokens"
# A form has a token for less time than that. A form that is suspended has it for as long as it likes.
NOTE_WAIT_MS = 500
LOCKED_NAMED = 5
# The errors for a value that a database cannot store. Python's module for SQLite raises an error of its own.
TOO_LARGE = (DataError, OverflowError)
REJECTED_BYTES = 16_384
# The most denials kept of the intake of a project, whose account may write any number of them.
MOST_DENIALS = 10_000


@dataclass(slots=True)
class DrainResult:
    """The numbers of entries that one run has counted, found counted already (``repeated``), or rejected."""

    counted: int = 0
    repeated: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.counted or self.repeated or self.rejected)


def drain(now: datetime, client: redis.Redis | None = None, more: Callable[[], object] = lambda: None) -> DrainResult:
    """
    Count the entries of the usage streams for about MOST_SECONDS, and return a DrainResult of how many were counted,
    repeated and rejected.

    Args:
        more: Called once if there is more to count than one drain reads at once, so that another one may help, and once
            more if the time of this one ends before it is counted.
    Raises:
        One of STORE_ERRORS: The store is unavailable. Committed entries are not counted again.
    """
    client = client or store.connection()
    done = DrainResult()
    with _place(client) as place:
        if place is not None:
            _drain_in(place, client, now, done, more)
    if done:
        logger.info("Usage: %d entries counted, %d repeated, %d rejected", done.counted, done.repeated, done.rejected)
    return done


def would_refuse_all(now: datetime) -> bool:
    """
    Return whether usage that is counted just now would be refused at *now*, because a clock is wrong by hours or days.

    Its minutes, and the times of its entries, are those of the store's clock. False if the account of the store may not
    read that. Raises one of STORE_ERRORS.
    """
    try:
        seconds, _ = store.connection().time()
    except NoPermissionError:
        return False
    ahead = datetime.fromtimestamp(seconds, UTC) - now
    return not -rollup.BATCHES_KEPT < ahead < MOST_AHEAD


@contextmanager
def _place(client: redis.Redis) -> Iterator[int | None]:
    """Hold the first free one of the places for drains during the block, and yield its number, or None."""
    for place in range(settings.DRAINS):
        with hold(client, _lock(place), ttl_ms=LOCK_TTL_MS) as fence:
            if fence:
                yield place
                return
    yield None


def _lock(place: int) -> str:
    # A worker of an earlier version knows only the first one.
    return f"{LOCK}-{place}" if place else LOCK


def _drain_in(place: int, client: redis.Redis, now: datetime, done: DrainResult, more: Callable[[], object]) -> None:
    deadline = time.monotonic() + (MOST_SECONDS_BESIDE if place else MOST_SECONDS)
    found, has_called = filled(client, place), False
    # They take turns, so that neither intakes that are never empty nor many shards keep the others waiting.
    queues = deque([deque(it for it in found if it.is_for_all), deque(it for it in found if not it.is_for_all)])
    while any(queues) and time.monotonic() < deadline:
        waiting = queues[0] or queues[1]
        queues.rotate()
        stream = waiting.popleft()
        prolong(client, _lock(place), LOCK_TTL_MS)
        with stream.claimed(client, place) as claims:
            entries, is_more = _take(claims) if claims else ([], False)
            if is_more and not has_called:
                more()
                has_called = True
            # Behind the others, so that a stream that is never empty keeps no other one waiting.
            if claims and _is_drained(Source(stream, claims), entries, now, done) and is_more:
                waiting.append(stream)
    if any(queues):
        more()  # its turn comes after that of the tasks which wait meanwhile, and before that of the schedule
    while not place and time.monotonic() < deadline:
        denials = oldest(client, store.keys().denials, ENTRIES_AT_ONCE)
        if not denials:
            break
        _drain_denials(client, denials, now)


def _take(claims: Claims) -> tuple[list[Entry], bool]:
    """Return the entries for one transaction, and whether there may be more of them."""
    entries: list[Entry] = []
    size = 0
    while (left := ENTRIES_AT_ONCE - len(entries)) > 0 and size < BYTES_AT_ONCE:
        some = claims.take(min(left, ENTRIES_A_READ))
        if not some:
            return entries, False
        entries += some
        size += sum(len(value) for _, fields in some for value in fields.values())
    return entries, True


@dataclass(frozen=True, slots=True)
class Source:
    """Where entries come from."""

    stream: UsageStream
    claims: Claims


def _is_drained(source: Source, entries: list[Entry], now: datetime, done: DrainResult) -> bool:
    """Count the entries, and return whether that was possible. Others may lock a row for too long."""
    try:
        _drain(source, entries, now, done)
    except DatabaseError as exc:
        if not was_held_up(exc):
            raise
        why = "its rows were locked for too long, or this process was suspended"
        logger.warning("Usage is counted later, because %s: %s", why, exc)
        return False
    return True


def _drain(source: Source, entries: list[Entry], now: datetime, done: DrainResult) -> None:
    if source.stream.project:
        entries = list(_without_denials(source, entries, now))
    batches = list(_readable(source, entries, now, done))
    try:
        _count_and_delete(source, batches, now, done)
    except TOO_LARGE:
        # One batch has a value that the database cannot store, so each batch is now counted alone.
        for batch in batches:
            _count_or_reject(source, batch, dict(entries)[batch.entry], now, done)


def _without_denials(source: Source, entries: list[Entry], now: datetime) -> Iterator[Entry]:
    """Save the sampled denials in an intake, and yield its other entries."""
    for entry, fields in entries:
        if "denials" not in fields:
            yield entry, fields
            continue
        _save_denials(entry, fields, now, source.stream.project)
        source.claims.delete([entry])


def _save_denials(entry: str, fields: dict[str, str], now: datetime, project: str = "") -> None:
    try:
        rows = parse_denials(fields, now, project=project)
        if project:
            is_foreign = foreign_to([(row.project_id, row.token_id, row.policy_id) for row in rows], project)
            rows = [row for row in rows if not is_foreign((row.project_id, row.token_id, row.policy_id))]
        with bounded():
            new = [DeniedRequest(**row._asdict()) for row in rows]
            DeniedRequest.objects.bulk_create(new, ignore_conflicts=True)
            if project and rows:
                _forget_older(project)
    except (InvalidBatch, DataError) as exc:
        logger.warning("The entry %s of sampled denials was dropped: %s", entry, str(exc)[:500])


def _forget_older(project: str) -> None:
    """Delete the sampled denials of a project that are older than its latest MOST_DENIALS."""
    saved = DeniedRequest.objects.filter(project_id=project)
    for at in saved.order_by("-at", "-id").values_list("at", flat=True)[MOST_DENIALS : MOST_DENIALS + 1]:
        saved.filter(at__lte=at).delete()


def _drain_denials(client: redis.Redis, entries: list[Entry], now: datetime) -> None:
    """
    Save the sampled denials, and then delete their entries. An entry that cannot be read is only deleted.

    The unique id of the decision prevents a second row if the process dies between the two.
    """
    for entry, fields in entries:
        _save_denials(entry, fields, now)
        client.xdel(store.keys().denials, entry)


def _readable(source: Source, entries: list[Entry], now: datetime, done: DrainResult) -> Iterator[StreamBatch]:
    """Yield what can be counted, and set aside all else."""
    project, batches = source.stream.project, []
    for entry, fields in entries:
        try:
            _refuse_forgotten(entry, now)
            batches.append(StreamBatch.parse(entry, fields, now, project=project))
        except InvalidBatch as exc:
            _reject(source, entry, fields, str(exc), done)
    if project:
        is_foreign = foreign_to([names for batch in batches for names in batch.names], project)
        batches = folded([batch.without(is_foreign) for batch in batches], project)
    yield from batches


def foreign_to(names: Iterable[Sequence[str]], project: str) -> Callable[[Sequence[str]], bool]:
    """
    Return whether the names of a row, which begin with a project and a token, are of another project than this one.

    The ids of others are no secret: a row with one of them would be in the usage of the token, or of the policy.
    """
    ids = sorted({name for row in names for name in row[1:3] if name})
    found: set[str] = set()
    for some in batched(ids, TOKENS_AT_ONCE):
        for model in (Token, Policy):
            others = model.objects.filter(pk__in=some).exclude(project_id=project).exclude(project_id=None)
            found.update(others.values_list("pk", flat=True))
    return lambda row: not found.isdisjoint(row[1:3])


def _refuse_forgotten(entry: str, now: datetime) -> None:
    """Refuse an entry that may have been counted before the ids that are still kept, as in a restored store."""
    if int(entry.partition("-")[0]) / 1000 < (now - rollup.BATCHES_KEPT).timestamp():
        raise InvalidBatch(f"entry: must be at most {rollup.BATCHES_KEPT.days} days old.")


def _count_or_reject(
    source: Source, batch: StreamBatch, fields: dict[str, str], now: datetime, done: DrainResult
) -> None:
    """Count a batch without those of its rows that the database cannot store."""
    try:
        _count_and_delete(source, [batch], now, done)
    except TOO_LARGE:
        refused: list[Refused] = []
        with bounded():
            _note_batches([batch], now)
            _add_by_halves(batch, now, refused)
        if len(refused) == batch.size:
            _reject(source, batch.entry, fields, refused[0].reason, done)
            return
        done.counted += 1
        _finish(source, [replace(batch, refused=(*batch.refused, *refused))], done)


def _add_by_halves(batch: StreamBatch, now: datetime, refused: list[Refused]) -> None:
    """Add the rows of a batch to the sums in SQL, but for those that the database cannot store."""
    try:
        with transaction.atomic():
            _add([batch], _statements([batch], now))
    except TOO_LARGE as exc:
        if batch.size > 1:
            for half in batch.halves():
                _add_by_halves(half, now, refused)
        else:
            refused += [Refused(kind, row, str(exc)) for kind, row in batch.each()]


def _count_and_delete(source: Source, batches: list[StreamBatch], now: datetime, done: DrainResult) -> None:
    if not batches:
        return
    counted = count(batches, now)
    done.counted += len(counted)
    done.repeated += len(batches) - len(counted)
    _finish(source, batches, done)


def _finish(source: Source, batches: list[StreamBatch], done: DrainResult) -> None:
    """Do what follows the commit, also for batches that were counted already, as that drain may have died before it."""
    note_use_of_tokens(batches)
    for batch in batches:
        if batch.refused:
            _set_aside(source, batch)
            done.rejected += 1
    source.claims.delete([batch.entry for batch in batches])


def count(batches: list[StreamBatch], now: datetime) -> list[StreamBatch]:
    """
    Add the batches that are not counted yet to the sums in SQL, in one transaction, and return those batches.

    Raises:
        One of TOO_LARGE: A number or string is too large for the database. Nothing is counted.
        IntegrityError: Other drains came first in three attempts.
        OperationalError: The database is unavailable, or ended a deadlock in three attempts, or a lock did not come.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _count_new(batches, now)
        except IntegrityError:
            pass  # another drain has committed one of these ids since this drain read them, so read them again
        except OperationalError as exc:
            if not is_deadlock(exc):
                raise
            # Drains lock rows in one order. Others, which erase a project for example, have an order of their own.
    return _count_new(batches, now)


def _count_new(batches: list[StreamBatch], now: datetime) -> list[StreamBatch]:
    ids = [batch.id for batch in batches]
    known = set(UsageBatch.objects.filter(batch_id__in=ids).values_list("batch_id", flat=True))
    # By id, because the stream may contain a batch twice. Sorted as all rows are: of two drains at once
    # only one waits for the other then.
    unknown = {batch.id: batch for batch in reversed(batches) if batch.id not in known}
    new = [batch for _, batch in sorted(unknown.items())]
    # All is computed before the transaction, so that another drain waits only as long as the database works.
    statements = _statements(new, now)
    with bounded():
        # An id that another drain has committed since it was looked for above is an IntegrityError.
        _note_batches(new, now)
        _add(new, statements)
    return new


def _note_batches(batches: Iterable[StreamBatch], now: datetime) -> None:
    UsageBatch.objects.bulk_create(
        UsageBatch(batch_id=batch.id, instance=batch.instance, received_at=now) for batch in batches
    )


def _statements(batches: Sequence[StreamBatch], now: datetime) -> list[Statement]:
    rows = [row for batch in batches for row in batch.rows]
    return [
        *rollup.upserts_of(rows, now),
        *rollup.upserts_of_metered((row for batch in batches for row in batch.metered), now),
        *recording.upserts_of(rows, now),
        *rollup.upserts_of_samples(row for batch in batches for row in batch.samples),
        *rollup.upserts_of_counts(rows, now),
    ]


def _add(batches: Iterable[StreamBatch], statements: Iterable[Statement]) -> None:
    execute(statements)
    if over := [row for batch in batches for row in batch.broken]:
        broken.note(over)


def note_use_of_tokens(batches: list[StreamBatch]) -> None:
    """Save the minute in which each token was last used, with at most one write for each token and minute."""
    last: dict[str, datetime] = {}
    for row in (row for batch in batches for row in batch.rows if row.token_id):
        last[row.token_id] = max(row.at, last.get(row.token_id, row.at))
    tokens_of_minute: dict[datetime, list[str]] = defaultdict(list)
    for token_id, at in last.items():
        tokens_of_minute[at].append(token_id)
    for at, ids in sorted(tokens_of_minute.items()):
        for some in batched(sorted(ids), TOKENS_AT_ONCE):
            _note_use(some, at)


def _note_use(tokens: Sequence[str], at: datetime) -> None:
    """
    Save that these tokens were used in a minute, without those whose rows are locked for longer than NOTE_WAIT_MS.

    Usage of all tokens would otherwise wait for one row. What is left out is saved with the next use of the token.
    """
    # Only to a later minute, because the batches of a token come from many instances in any order.
    older = Token.objects.filter(models.Q(last_used_at=None) | models.Q(last_used_at__lt=at), pk__in=tokens)
    used = {"last_used_at": at, "last_used_on": at.date()}
    try:
        with bounded(NOTE_WAIT_MS):
            take_turn(TURN)
            older.update(**used)
    except DatabaseError as exc:
        if not was_held_up(exc):
            raise
        with bounded():
            take_turn(TURN)
            free = list(older.select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True))
            Token.objects.filter(pk__in=free).update(**used)
        if locked := older.values_list("pk", flat=True)[:LOCKED_NAMED]:
            logger.warning("The last use of tokens is not saved, as their rows are locked: %s", ", ".join(locked))


def _reject(source: Source, entry: str, fields: dict[str, str], reason: str, done: DrainResult) -> None:
    """Move an entry to the stream of rejected entries, where a person can read it."""
    key = source.stream.rejected_key
    shortened = {name[:64]: value[:REJECTED_BYTES] for name, value in list(fields.items())[:10]}
    source.claims.move(entry, {**shortened, "entry": entry, "reason": reason[:500]}, key, source.stream.rejected_kept)
    done.rejected += 1
    logger.error("The usage entry %s was rejected and moved to %s: %s", entry, key, reason[:500])


def _set_aside(source: Source, batch: StreamBatch) -> None:
    """Keep the rows of a batch that were not counted beside the rejected entries."""
    key, reason = source.stream.rejected_key, batch.refused[0].reason[:500]
    rows = json.dumps([[one.field, one.row] for one in batch.refused], default=str)[:REJECTED_BYTES]
    fields = {"entry": batch.entry, "id": batch.id, "instance": batch.instance, "refused": rows, "reason": reason}
    source.claims.keep(fields, key, source.stream.rejected_kept)
    count = len(batch.refused)
    logger.error("%d rows of the usage entry %s were set aside in %s: %s", count, batch.entry, key, reason)
