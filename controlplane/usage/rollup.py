"""
The sums of usage by minute, hour and day.

The sums of all three periods are increased in the transaction that saves a batch. So an hour is always the sum of its
minutes, and a day the sum of its hours. Late rows need no second roll-up, two drains at the same time cannot overwrite
each other's sums, and a row whose minutes are already pruned still counts for its hour and day.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import batched
from typing import Any

from django.db.models import QuerySet

from controlplane.core.upserts import add_up
from controlplane.statements import recording as months
from controlplane.usage.batches import COUNTS, METERED_COUNTS, Row, SettledRow
from controlplane.usage.models import DeniedRequest, MeteredRow, UsageBatch, UsageRow
from controlplane.usage.periods import KEPT, start_of

# An instance repeats a batch until it knows that the batch has arrived, which takes minutes, or as long as an outage.
BATCHES_KEPT = timedelta(days=7)
DENIALS_KEPT = timedelta(days=8)
# A statement has at most 32766 parameters in SQLite and 65535 in PostgreSQL, and a row has at most eighteen.
ROWS_A_STATEMENT = 1000
DELETED_AT_ONCE = 5000

Sums = dict[tuple[Any, ...], list[int]]
"""Sums by the key of their row, which is the period, its start and the other columns of the model's ``KEY``."""


def add(rows: Iterable[Row], now: datetime) -> None:
    """Add *rows* to the sums of every period. The caller's transaction ensures that this happens once."""
    rows = list(rows)
    months.add(rows, now)
    _add(UsageRow, COUNTS, ((row.at, row.names, row.counts) for row in rows), now)


def add_metered(rows: Iterable[SettledRow], now: datetime) -> None:
    """Add *rows* to the sums of metered requests. The caller's transaction ensures that this happens once."""
    rows = list(rows)
    months.add_metered(rows, now)
    whole = ((row.at, row.key, (*row.counts, *[0] * (len(METERED_COUNTS) - len(row.counts)))) for row in rows)
    _add(MeteredRow, METERED_COUNTS, whole, now)


def _add(
    model: type[UsageRow | MeteredRow],
    names: Sequence[str],
    rows: Iterable[tuple[datetime, tuple[Any, ...], Sequence[int]]],
    now: datetime,
) -> None:
    sums: Sums = defaultdict(lambda: [0] * len(names))
    for at, key, counts in rows:
        for period in _open_periods(at, now):
            held = sums[(period, start_of(period, at), *key)]
            held[:] = map(sum, zip(held, counts, strict=True))
    # Sorted, so that two drains at the same time lock common rows in the same order.
    for some in batched(sorted(sums.items()), ROWS_A_STATEMENT):
        add_up(model, model.KEY, names, some)


def _open_periods(at: datetime, now: datetime) -> list[str]:
    """
    Return those of ``minute``, ``hour`` and ``day`` in which a row for *at* is still kept at *now*.

    Rows of the others would be pruned at once.
    """
    return [period for period, kept in KEPT.items() if start_of(period, at) >= now - kept]


def prune(now: datetime) -> int:
    """Delete the usage rows, sampled denials and batch ids that are no longer kept, and return their number."""
    old = [
        model.objects.filter(period=period, at__lt=now - kept)
        for model in (UsageRow, MeteredRow)
        for period, kept in KEPT.items()
    ]
    old.append(DeniedRequest.objects.filter(at__lt=now - DENIALS_KEPT))
    old.append(UsageBatch.objects.filter(received_at__lt=now - BATCHES_KEPT))
    return sum(_delete(rows) for rows in old)


def _delete(rows: QuerySet) -> int:
    """Delete rows in small transactions, as the drain waits for each of them, and return the number of deleted rows."""
    deleted = 0
    while ids := list(rows.values_list("pk", flat=True)[:DELETED_AT_ONCE]):
        deleted += rows.model.objects.filter(pk__in=ids).delete()[0]
    return deleted
