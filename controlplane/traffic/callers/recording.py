"""
The recording of demand, from which a preview replays what a limit would have denied.

The drain of usage adds to the rows of minutes. A task folds these into one row for each token and day, and deletes
them in the same transaction, so each request is in one of the two. A late row is folded as any other.
"""

import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import batched

from django.db import transaction
from django.db.models import Min

from controlplane.core.transactions import take_turn
from controlplane.core.upserts import Statement, bounded_sum, execute, upserts
from controlplane.traffic.callers.models import RecordedDay, RecordedMinute
from controlplane.traffic.stream.batches import Row

logger = logging.getLogger(__name__)

KEPT = timedelta(days=8)
# A minute is reported in pieces, about one a second and instance. Folded afterwards, its day is written once for it.
SETTLED = timedelta(minutes=2)
# The task has folded what came in time.
LATE = timedelta(minutes=15)
# A statement has at most 32766 parameters in SQLite.
ROWS_A_STATEMENT = 1000
MINUTES_AT_ONCE = 5000

Names = tuple[str, str]
"""The ids of a project and of a token, which is empty for requests without one."""


def add(rows: Iterable[Row], now: datetime) -> None:
    """Add the totals among the *rows* of usage. The caller's transaction ensures that this happens once."""
    execute(upserts_of(rows, now))


def upserts_of(rows: Iterable[Row], now: datetime) -> list[Statement]:
    """Return the statements that add the totals among the *rows* of usage."""
    sums: dict[tuple[str, str, datetime], list[int]] = defaultdict(lambda: [0] * len(RecordedMinute.COUNTS))
    for row in rows:
        allowed, denied, _, cost = row.counts
        if not row.is_total or not (allowed or denied) or row.at < now - KEPT:
            continue
        project, token, *_ = row.names
        held = sums[project, token, row.at]
        seconds, *parts = row.spread or [0] * (1 + len(RecordedMinute.PARTS))
        for place, number in enumerate((allowed, denied, cost)):
            held[place] = bounded_sum(held[place] + number)
        held[3] |= seconds
        for place, number in enumerate(parts):
            held[4 + place] = bounded_sum(held[4 + place] + number)
    # Sorted, so that two drains at the same time lock common rows in the same order.
    return upserts(RecordedMinute, RecordedMinute.KEY, RecordedMinute.COUNTS, sorted(sums.items()), {"seconds": "|"})


def fold(now: datetime) -> int:
    """Fold the minutes that are settled at *now* into the rows of their days, and return how many they were."""
    folded = 0
    while some := _fold_some(now - SETTLED):
        folded += some
    return folded


def fold_few(now: datetime, at_most: int = 2000) -> datetime:
    """
    Fold the minutes before *now* if they are few, and return the end of what the days hold.

    So a preview of a small installation knows the last minute. In a large one it does not wait for the task's work, but
    for minutes that came late, before which it would know nothing.
    """
    waiting = RecordedMinute.objects.filter(at__lt=now)
    for before in (now, now - LATE):
        some = waiting.filter(at__lt=before)
        if some[: at_most + 1].count() <= at_most:
            while _fold_some(before):
                pass
            break
    return waiting.aggregate(first=Min("at"))["first"] or now


@transaction.atomic
def _fold_some(before: datetime) -> int:
    take_turn("fold recorded minutes")  # two would write the same rows of days
    rows = list(RecordedMinute.objects.select_for_update().filter(at__lt=before).order_by("at")[:MINUTES_AT_ONCE])
    by_day: dict[date, dict[Names, list[RecordedMinute]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_day[row.at.astimezone(UTC).date()][row.project_id, row.token_id].append(row)
    for day, of_day in by_day.items():
        _fold_day(day, of_day)
    RecordedMinute.objects.filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)


def _fold_day(day: date, minutes: dict[Names, list[RecordedMinute]]) -> None:
    from controlplane.traffic.callers.chunks import Chunk  # numpy, which no other work of this process needs

    present: dict[Names, RecordedDay] = {}
    for tokens in batched(sorted({token for _, token in minutes}), ROWS_A_STATEMENT):
        found = RecordedDay.objects.filter(day=day, token_id__in=tokens)
        present |= {(row.project_id, row.token_id): row for row in found}
    new, changed = list[RecordedDay](), list[RecordedDay]()
    for names, rows in minutes.items():
        held = present.get(names) or RecordedDay(project_id=names[0], token_id=names[1], day=day)
        try:
            chunk = Chunk.read(held.body).with_rows([_entry(minute) for minute in rows])
            coarse, hours, body = int(chunk.unplaced.sum()), chunk.hours(), chunk.body()
        except (ArithmeticError, ValueError, zlib.error) as exc:
            # Whatever one token has must not end the folding of all others.
            logger.error("What was recorded of %s on %s is left out of previews: %r", names, day, exc)
            continue
        (changed if names in present else new).append(held)
        held.requests = bounded_sum(held.requests + sum(minute.allowed + minute.denied for minute in rows))
        held.allowed = bounded_sum(held.allowed + sum(minute.allowed for minute in rows))
        held.cost = bounded_sum(held.cost + sum(minute.cost for minute in rows))
        held.coarse, held.hours, held.body = coarse, hours, body
    RecordedDay.objects.bulk_create(new, batch_size=500)
    RecordedDay.objects.bulk_update(changed, ["requests", "allowed", "cost", "coarse", "hours", "body"], batch_size=200)


def _entry(row: RecordedMinute) -> tuple[int, int, int, int, list[int]]:
    minute = row.at.hour * 60 + row.at.minute
    parts = [bounded_sum(getattr(row, name)) for name in RecordedMinute.PARTS]
    return minute, bounded_sum(row.allowed + row.denied), bounded_sum(row.allowed), row.seconds, parts


def prune(now: datetime) -> int:
    """Delete the days that are no longer kept, and return their number."""
    return RecordedDay.objects.filter(day__lt=(now - KEPT).astimezone(UTC).date()).delete()[0]
