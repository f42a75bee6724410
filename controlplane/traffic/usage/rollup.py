"""
The sums of usage by minute, hour and day.

The sums of all three periods are increased in the transaction that saves a batch. So an hour is always the sum of its
minutes, and a day the sum of its hours. Late rows need no second roll-up, two drains at the same time cannot overwrite
each other's sums, and a row whose minutes are already pruned still counts for its hour and day.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache

from django.db.models import QuerySet

from controlplane.core.periods import COUNTS, KEPT, start_of
from controlplane.core.tables.partitions import PartitionedTable
from controlplane.core.transactions import RowsLeft, delete_in_pieces
from controlplane.core.upserts import Keyed, Statement, Sums, execute, sum_in_sql, summed, upserts
from controlplane.objects.prices.models import BrokenBound
from controlplane.traffic.stream.batches import SAMPLE_NUMBERS, Row, SampleRow, SettledRow
from controlplane.traffic.usage import months as months
from controlplane.traffic.usage.models import (
    DecisionCount,
    DeniedRequest,
    EstimateSample,
    MeteredRow,
    UsageBatch,
    UsageRow,
)
from enforcement.metering.tally import COUNT_NAMES

logger = logging.getLogger(__name__)

# An instance repeats a batch until it knows that the batch has arrived, which takes minutes, or as long as an outage.
BATCHES_KEPT = timedelta(days=7)
DENIALS_KEPT = timedelta(days=8)
BROKEN_KEPT = timedelta(days=90)
DELETED_AT_ONCE = 5000
# The list of policies shows the last hour of minutes, of which some come late. The Overview compares an hour of minutes
# or a week of hours with those before.
POLICIES_KEPT = {"minute": timedelta(hours=2), "day": KEPT["day"]}
PROJECTS_KEPT = POLICIES_KEPT | {"hour": timedelta(days=15)}
# A row that has no activity keeps 0.
_TABLE = UsageRow._meta.db_table
# Sums of squares, of which two are less than 2**63.
MOST_SAMPLED = 2**61


def add(rows: Iterable[Row], now: datetime) -> None:
    """
    Add *rows* to the sums of every period, also to those of policies and of projects.

    The caller's transaction ensures that this happens once.
    """
    rows = list(rows)
    execute([*upserts_of(rows, now), *upserts_of_counts(rows, now)])


def add_metered(rows: Iterable[SettledRow], now: datetime) -> None:
    """Add *rows* to the sums of metered requests. The caller's transaction ensures that this happens once."""
    execute(upserts_of_metered(rows, now))


def upserts_of(rows: Iterable[Row], now: datetime) -> list[Statement]:
    """Return the statements that add *rows* to the sums of every period."""
    minutes = summed((row.at, row.names, row.counts) for row in rows)
    usage = upserts(
        UsageRow, UsageRow.KEY, (*COUNTS, "activity"), _with_activity(_sums(minutes, now, KEPT)), computed=_grown()
    )
    return [*months.upserts_of(minutes, now), *usage]


@cache
def _grown() -> dict[str, str]:
    sums = UsageRow.activity_in_sql(*(sum_in_sql(_TABLE, name) for name in ("allowed", "denied")))
    return {"activity": f"CASE WHEN excluded.activity = 0 THEN {_TABLE}.activity ELSE {sums} END"}


def upserts_of_counts(rows: Iterable[Row], now: datetime) -> list[Statement]:
    """
    Return the statements that add *rows* to the sums of policies and of projects, which few rows have for all tokens.

    They come last in their transaction, because other drains that add to the same sums wait for its end.
    """
    sums = summed((row.at, (row.names[2], row.names[0]), row.counts[:-1]) for row in rows if _is_counted(row))
    policies = {at: {key: counts for key, counts in by_key.items() if key[0]} for at, by_key in sums.items()}
    projects = {at: {key: counts for key, counts in by_key.items() if not key[0]} for at, by_key in sums.items()}
    return [
        *_upserts(DecisionCount, COUNTS[:-1], policies, now, POLICIES_KEPT),
        *_upserts(DecisionCount, COUNTS[:-1], projects, now, PROJECTS_KEPT),
    ]


def _is_counted(row: Row) -> bool:
    """Return whether a row has the decisions of a policy, or those about a token as a whole."""
    return bool(row.names[2] or not row.names[3])


def upserts_of_metered(rows: Iterable[SettledRow], now: datetime) -> list[Statement]:
    """Return the statements that add *rows* to the sums of metered requests."""
    rows = list(rows)
    minutes = summed((row.at, row.key, row.counts) for row in rows)
    return [*months.upserts_of_metered(rows, now), *_upserts(MeteredRow, COUNT_NAMES, minutes, now)]


def upserts_of_samples(rows: Iterable[SampleRow]) -> list[Statement]:
    """
    Return the statements that add *rows* to the sums from which estimates are learned.

    Sums stay at MOST_SAMPLED, however large they are: what one project writes must not keep others from being counted.
    """
    sums = summed(((row.day, row.names, row.numbers) for row in rows), MOST_SAMPLED)
    keyed = (((day, *key), numbers) for day in sorted(sums) for key, numbers in sorted(sums[day].items()))
    grown = {name: sum_in_sql(EstimateSample._meta.db_table, name, MOST_SAMPLED) for name in SAMPLE_NUMBERS}
    return upserts(EstimateSample, EstimateSample.KEY, SAMPLE_NUMBERS, keyed, computed=grown)


def _with_activity(rows: Iterable[Keyed]) -> Iterator[Keyed]:
    """Yield rows of usage with their activity, which only those of the decisions of a minute have."""
    for key, counts in rows:
        period, _, _, _, policy, limit, _ = key
        is_ranked = period == "minute" and not policy and not limit
        yield key, (*counts, UsageRow.activity_of(counts[0], counts[1]) if is_ranked else 0)


def _upserts(
    model: type[MeteredRow | DecisionCount],
    names: Sequence[str],
    minutes: Sums,
    now: datetime,
    kept: Mapping[str, timedelta] = KEPT,
) -> list[Statement]:
    return upserts(model, model.KEY, names, _sums(minutes, now, kept))


def _sums(minutes: Sums, now: datetime, ages: Mapping[str, timedelta]) -> Iterator[Keyed]:
    """Yield the sums of all periods that are still open."""
    sums = {("minute", at): by_key for at, by_key in minutes.items()}
    finer = minutes
    for period in ("hour", "day"):
        longer = ((start_of(period, at), key, counts) for at, by_key in finer.items() for key, counts in by_key.items())
        finer = summed(longer)
        sums |= {(period, at): by_key for at, by_key in finer.items()}
    open_ones = ((period, at) for period, at in sums if period in ages and at >= now - ages[period])
    # Sorted, so that two drains at the same time lock common rows in the same order.
    return (((*start, *key), counts) for start in sorted(open_ones) for key, counts in sorted(sums[start].items()))


def prune(now: datetime) -> int:
    """
    Delete the usage rows, sampled denials and batch ids that are no longer kept, and return their number.

    On PostgreSQL, the rows of a past day are dropped with their partition and not counted.
    """
    old: list[QuerySet] = []
    for model, table in tables().items():
        if dropped := table.maintain(now):
            logger.info("Usage: dropped of %s: %s", table.name, ", ".join(dropped))
        rows = model.objects.all()
        for part in table.held_up(now):
            rows = rows.exclude(period=part.period, at__gte=part.begins, at__lt=part.ends)
        old += [rows.filter(period=period, at__lt=table.first_kept(period, now)) for period in KEPT]
    counts = DecisionCount.objects.all()
    old += [counts.filter(period=period, at__lt=now - age) for period, age in PROJECTS_KEPT.items()]
    old.append(BrokenBound.objects.filter(last_at__lt=now - BROKEN_KEPT))
    old.append(EstimateSample.objects.filter(day__lt=now - KEPT["day"]))
    old.append(DeniedRequest.objects.filter(at__lt=now - DENIALS_KEPT))
    old.append(UsageBatch.objects.filter(received_at__lt=now - BATCHES_KEPT))
    return sum(map(_delete, old))


def _delete(rows: QuerySet) -> int:
    """Delete rows, and return their number. The next run deletes those that are locked, if this one cannot."""
    try:
        return delete_in_pieces(rows, DELETED_AT_ONCE)
    except RowsLeft as exc:
        logger.warning("%s", exc)
        return exc.deleted


def tables() -> dict[type[UsageRow | MeteredRow], PartitionedTable]:
    """Return the tables that have partitions on PostgreSQL, by their model."""
    return {model: PartitionedTable(model._meta.db_table, KEPT) for model in (UsageRow, MeteredRow)}
