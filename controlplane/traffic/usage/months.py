"""
The sums of usage by month, from which statements are made.

They are increased in the transaction that counts a batch, minute by minute. So they are exact in each time zone, and
equal to what the enforcers have counted.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from operator import attrgetter

from controlplane.core.upserts import Statement, Sums, execute, summed, upserts
from controlplane.core.zones import month_of, next_month, start_of_month
from controlplane.objects.projects.models import Project
from controlplane.traffic.stream.batches import SettledRow
from controlplane.traffic.usage.month_rows import MonthMetered, MonthRow

# Usage of an instance that was cut off arrives when it is back. After this time, a month changes by corrections only.
OPEN_FOR = timedelta(days=3)
_KEPT = attrgetter(*MonthMetered.COUNTS)


def closes_at(month: date, zone: str) -> datetime:
    """Return when a month is closed, which is three days after its end in this time zone."""
    return start_of_month(next_month(month), zone) + OPEN_FOR


def add(minutes: Sums, now: datetime) -> None:
    """Add the usage of minutes to the sums of its months. See :func:`upserts_of`."""
    execute(upserts_of(minutes, now))


def add_metered(rows: Iterable[SettledRow], now: datetime) -> None:
    """Add metered requests to the sums of their months. The caller's transaction ensures that this happens once."""
    execute(upserts_of_metered(rows, now))


def upserts_of(minutes: Sums, now: datetime) -> list[Statement]:
    """
    Return the statements that add the usage of minutes to the sums of its months.

    Args:
        minutes: The counts by their minute, and by their names in the order of ``NAMES`` in ``traffic.stream.batches``.
    """
    rows = ((at, names, counts) for at, by_names in minutes.items() for names, counts in by_names.items())
    return _upserts(MonthRow, _Months(now), rows)


def upserts_of_metered(rows: Iterable[SettledRow], now: datetime) -> list[Statement]:
    """Return the statements that add metered requests to the sums of their months."""
    return _upserts(MonthMetered, _Months(now), ((row.at, row.names[:3], _KEPT(row.counts)) for row in rows))


class _Months:
    """The months of projects, in their time zones, and whether they are closed at *now*."""

    def __init__(self, now: datetime) -> None:
        self._zones = dict(Project.objects.exclude(time_zone="UTC").values_list("pk", "time_zone"))
        self._now = now
        self._known: dict[tuple[str, datetime], tuple[date, str]] = {}

    def of(self, project: str, at: datetime) -> tuple[date, str]:
        """Return the month of *at*, and the day of the correction if the month is closed, or an empty string."""
        zone = self._zones.get(project, "UTC")
        if (zone, at) not in self._known:
            month = month_of(at, zone)
            closed = self._now >= closes_at(month, zone)
            self._known[zone, at] = month, self._now.date().isoformat() if closed else ""
        return self._known[zone, at]


def _upserts(
    model: type[MonthRow | MonthMetered],
    months: _Months,
    rows: Iterable[tuple[datetime, tuple[str, ...], Sequence[int]]],
) -> list[Statement]:
    sums = summed((months.of(names[0], at), names, counts) for at, names, counts in rows)
    return upserts(model, model.KEY, model.COUNTS, _sorted(sums))


def _sorted(sums: Sums) -> Iterator[tuple[tuple[date | str, ...], Sequence[int]]]:
    """Yield each key and its counts, sorted, so that two drains at the same time lock common rows in the same order."""
    for month, correction in sorted(sums):
        for names, counts in sorted(sums[month, correction].items()):
            yield (month, *names, correction), counts
