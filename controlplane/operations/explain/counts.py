"""Usage in the minute of a request, and in the window up to it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet

from controlplane.core.periods import COUNTS, KEPT, start_of
from controlplane.core.sums import read_sums, sums
from controlplane.operations.explain.matches import Matched
from controlplane.operations.explain.question import Case, Reach
from controlplane.traffic.usage.models import UsageRow
from enforcement.model import calendars
from enforcement.model.instants import from_us, to_us
from enforcement.model.limits import Limit

LENGTHS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
NOTHING = dict.fromkeys(COUNTS, 0)
Span = tuple[str, datetime, datetime]


@dataclass(frozen=True, slots=True)
class Period:
    """
    The finest period of a time that is still kept.

    Attributes:
        name: "minute", "hour" or "day". Empty if nothing is kept of it.
    """

    name: str
    at: datetime

    @property
    def end(self) -> datetime:
        return self.at + LENGTHS[self.name] if self.name else self.at


def period_of(at: datetime, now: datetime) -> Period:
    """Return the finest period around an instant of which usage is still kept."""
    periods = (name for name, age in KEPT.items() if start_of(name, at) >= now - age)
    name = next(periods, "")
    return Period(name, start_of(name, at) if name else at)


def total_of(case: Case, period: Period) -> dict[str, int] | None:
    """Return the decisions about the token in a period, or None if there is no row, which is not the same as 0."""
    if not period.name or case.project is None:
        return None
    rows = UsageRow.objects.filter(period=period.name, at=period.at, project_id=case.project.pk)
    row = rows.filter(token_id=case.token_id, policy_id="", limit_name="").aggregate(**sums(COUNTS))
    return None if row["sum_allowed"] is None else read_sums(row, COUNTS)


def of_limits(case: Case, found: Iterable[Matched], period: Period, reach: Reach) -> dict[tuple[str, str, str], Any]:
    """Return what each limit has counted in a period by its identity, without what the asker may not see."""
    if not period.name:
        return {}
    counted: dict[tuple[str, str, str], Any] = {}
    for scope, some in _by_scope(found).items():
        rows = rows_of(case, scope, reach)
        if rows is None:
            continue
        sums = _sums(rows.filter(period=period.name, at=period.at), some)
        counted |= {one.identity: sums.get((one.policy_id, one.limit.name, one.limit.unit), NOTHING) for one in some}
    return counted


def used_until(case: Case, found: Iterable[Matched], now: datetime, reach: Reach) -> dict[tuple[str, str, str], int]:
    """
    Return the permits that were charged to each window up to the end of the minute of the case, by the identity.

    Only limits of fixed windows that begin and end with a minute are in it, and only while each part is kept.
    """
    end = start_of("minute", case.at) + LENGTHS["minute"]
    grouped: dict[tuple[str, datetime], list[Matched]] = defaultdict(list)
    for one in found:
        if (start := window_start(one.limit, case.at)) is not None and not one.limit.partition_by:
            grouped[one.scope, start].append(one)
    used: dict[tuple[str, str, str], int] = {}
    for (scope, start), some in grouped.items():
        spans, rows = list(spans_of(start, end)), rows_of(case, scope, reach)
        if rows is None or any(since < now - KEPT[name] for name, since, _ in spans):
            continue
        within = Q(pk__in=[])
        for name, since, until in spans:
            within |= Q(period=name, at__gte=since, at__lt=until)
        sums = _sums(rows.filter(within), some)
        for one in some:
            used[one.identity] = sums.get((one.policy_id, one.limit.name, one.limit.unit), NOTHING)["cost"]
    return used


def window_of(limit: Limit, at: datetime) -> tuple[datetime, datetime] | None:
    """Return the start and the end of the fixed window around an instant, or None if the limit has no such windows."""
    if limit.algorithm != "fixed_window" or limit.calendar == "lifetime":
        return None
    if limit.calendar:
        start, end = calendars.window(to_us(at), limit.calendar, limit.time_zone, limit.anchor)
        return from_us(start), from_us(end)
    length = (limit.window_seconds or 0) * 1_000_000
    start = to_us(at) // length * length
    return from_us(start), from_us(start + length)


def window_start(limit: Limit, at: datetime) -> datetime | None:
    """Return when the fixed window around an instant began, or None if its usage cannot be added up from minutes."""
    window = window_of(limit, at)
    if window is None or limit.rollover or any(edge != start_of("minute", edge) for edge in window):
        return None
    return window[0]


def spans_of(start: datetime, end: datetime) -> Iterator[Span]:
    """Yield the fewest spans of minutes, hours and days that together make up the time from *start* to *end*."""
    names = ("minute", "hour", "day", "hour", "minute")
    for place, name in enumerate(names):
        coarser = names[place + 1] if place < 2 else ""
        until = start_of(name, end)  # a row of the period that goes on after the end has too much
        until = min(until, _ceiling(coarser, start)) if coarser else until
        if until > start:
            yield name, start, until
            start = until


def _ceiling(period: str, at: datetime) -> datetime:
    start = start_of(period, at)
    return start if start == at else start + LENGTHS[period]


def rows_of(case: Case, scope: str, reach: Reach) -> QuerySet[UsageRow] | None:
    """Return a query of the usage that a limit with this scope counts together, or None if the asker may not see it."""
    if scope == "global":
        return UsageRow.objects.all() if reach.everything else None
    rows = UsageRow.objects.filter(project_id=case.project.pk if case.project else "")
    if scope == "project":
        return rows
    return rows.filter(token_id=case.token_id)


def _by_scope(found: Iterable[Matched]) -> dict[str, list[Matched]]:
    grouped = defaultdict(list)
    for one in found:
        grouped[one.scope].append(one)
    return grouped


def _sums(rows: QuerySet[UsageRow], some: Iterable[Matched]) -> dict[tuple[str, str, str], dict[str, int]]:
    some = list(some)
    rows = rows.filter(policy_id__in={one.policy_id for one in some}, limit_name__in={one.limit.name for one in some})
    names = ("policy_id", "limit_name", "unit")
    found = rows.order_by().values(*names).annotate(**sums(COUNTS))
    return {(row["policy_id"], row["limit_name"], row["unit"]): read_sums(row, COUNTS) for row in found}
