"""
The sums of usage by minute, hour and day.

The sums of all three periods are increased in the transaction that saves a batch. So an hour is always the sum of its
minutes, and a day the sum of its hours. Late rows need no second roll-up, two drains at the same time cannot overwrite
each other's sums, and a row whose minutes are already pruned still counts for its hour and day.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import batched

from django.db import connection
from django.db.models import QuerySet

from controlplane.usage.batches import COUNTS, Row
from controlplane.usage.models import DeniedRequest, UsageBatch, UsageRow
from controlplane.usage.periods import KEPT, start_of

# An instance repeats a batch until it knows that the batch has arrived, which takes minutes, or as long as an outage.
BATCHES_KEPT = timedelta(days=7)
DENIALS_KEPT = timedelta(days=8)
# A statement has at most 32766 parameters in SQLite and 65535 in PostgreSQL, and a row has eleven.
ROWS_A_STATEMENT = 1000
DELETED_AT_ONCE = 5000

Key = tuple[str, datetime, str, str, str, str, str]  # in the order of UsageRow.KEY


def add(rows: Iterable[Row], now: datetime) -> None:
    """Add *rows* to the sums of every period. The caller's transaction ensures that this happens once."""
    sums: dict[Key, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for row in rows:
        for period in _open_periods(row.at, now):
            held = sums[(period, start_of(period, row.at), *row.names)]
            held[:] = map(sum, zip(held, row.counts, strict=True))
    # Sorted, so that two drains at the same time lock common rows in the same order.
    for some in batched(sorted(sums.items()), ROWS_A_STATEMENT):
        _raise(some)


def _open_periods(at: datetime, now: datetime) -> list[str]:
    """
    Return those of ``minute``, ``hour`` and ``day`` in which a row for *at* is still kept at *now*.

    Rows of the others would be pruned at once.
    """
    return [period for period, kept in KEPT.items() if start_of(period, at) >= now - kept]


def _raise(sums: Iterable[tuple[Key, list[int]]]) -> None:
    # The upsert of Django's ORM can replace a value but not add to it.
    table, columns = UsageRow._meta.db_table, (*UsageRow.KEY, *COUNTS)
    rows = [(period, connection.ops.adapt_datetimefield_value(at), *names, *n) for (period, at, *names), n in sums]
    one_row = f"({', '.join(['%s'] * len(columns))})"
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in COUNTS)
    statement = (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one_row] * len(rows))} "
        f"ON CONFLICT ({', '.join(UsageRow.KEY)}) DO UPDATE SET {added}"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [value for row in rows for value in row])


def prune(now: datetime) -> int:
    """Delete the usage rows, sampled denials and batch ids that are no longer kept, and return their number."""
    old = [UsageRow.objects.filter(period=period, at__lt=now - kept) for period, kept in KEPT.items()]
    old.append(DeniedRequest.objects.filter(at__lt=now - DENIALS_KEPT))
    old.append(UsageBatch.objects.filter(received_at__lt=now - BATCHES_KEPT))
    return sum(_delete(rows) for rows in old)


def _delete(rows: QuerySet) -> int:
    """Delete rows in small transactions, as the drain waits for each of them, and return the number of deleted rows."""
    deleted = 0
    while ids := list(rows.values_list("pk", flat=True)[:DELETED_AT_ONCE]):
        deleted += rows.model.objects.filter(pk__in=ids).delete()[0]
    return deleted
