"""
Minutes, hours and days.

The sums of all three periods are raised in the transaction that takes a batch in, so that an hour is always the sum of
its minutes and a day of its hours: late rows need no second roll-up, two drains at once cannot overwrite each other's
sums, and what comes after its minutes were pruned is still counted where it belongs.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import batched

from django.db import connection
from django.db.models import QuerySet

from controlplane.usage.batches import COUNTS, Row
from controlplane.usage.models import UsageBatch, UsageRow
from controlplane.usage.periods import KEPT, start_of

# An instance sends a batch again for as long as it does not know that it arrived: minutes, or an outage.
BATCHES_KEPT = timedelta(days=7)
# Parameters are limited to 32766 in one statement of SQLite, 65535 in PostgreSQL; a row has eleven.
ROWS_A_STATEMENT = 1000
DELETED_AT_ONCE = 5000

Key = tuple[str, datetime, str, str, str, str, str]  # in the order of UsageRow.KEY


def add(rows: Iterable[Row], now: datetime) -> None:
    """Raise the sums of every period by *rows*; the caller's transaction makes that happen once."""
    sums: dict[Key, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for row in rows:
        for period in _open_periods(row.at, now):
            held = sums[(period, start_of(period, row.at), *row.names)]
            held[:] = map(sum, zip(held, row.counts, strict=True))
    # Sorted: two drains at once lock the rows that they share in one order.
    for some in batched(sorted(sums.items()), ROWS_A_STATEMENT):
        _raise(some)


def _open_periods(at: datetime, now: datetime) -> list[str]:
    """Name the periods that are still kept for that moment: pruning would only delete the others again."""
    return [period for period, kept in KEPT.items() if start_of(period, at) >= now - kept]


def _raise(sums: Iterable[tuple[Key, list[int]]]) -> None:
    # The ORM's upsert can replace a value and not add to it.
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
    """Delete rows that are older than their period is kept, and batch ids nobody will send again; return how many."""
    old = [UsageRow.objects.filter(period=period, at__lt=now - kept) for period, kept in KEPT.items()]
    old.append(UsageBatch.objects.filter(received_at__lt=now - BATCHES_KEPT))
    return sum(_delete(rows) for rows in old)


def _delete(rows: QuerySet) -> int:
    """Delete in pieces: the drain waits for each transaction that deletes."""
    deleted = 0
    while ids := list(rows.values_list("pk", flat=True)[:DELETED_AT_ONCE]):
        deleted += rows.model.objects.filter(pk__in=ids).delete()[0]
    return deleted
