"""The days of a month, added up from the hours of usage, and a forecast of those that are left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import QuerySet

from controlplane.core.periods import KEPT, periods_like
from controlplane.core.sums import read_sums, rounded_up, sums
from controlplane.core.zones import next_month
from controlplane.traffic.reports.report import COUNTS, METERED, TOTAL, Line, Scope, counts_of, decisions_of
from controlplane.traffic.usage.models import MeteredRow, UsageRow

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
WEEK_DAYS = 7
# A day is foretold from the days of the last two weeks with its name.
HISTORY_DAYS = 2 * WEEK_DAYS
# A day in a zone is made of 24 hours for each token, which takes too long for more tokens than these.
MOST_TOKENS_BY_HOUR = 50
MOST_TOKENS = 1_000
HEIGHT = 130


@dataclass(frozen=True, slots=True)
class Day:
    """
    One day, with its sums.

    Attributes:
        counts: The sums until now.
        rest: What is foretold of the part of the day that is still to come.
        has_begun: Whether a part of it is over.
    """

    day: date
    counts: dict[str, int] = field(default_factory=dict)
    rest: dict[str, int] = field(default_factory=dict)
    has_begun: bool = True


@dataclass(frozen=True, slots=True)
class Days:
    """
    The days of a month.

    Attributes:
        zone: Where the days begin at midnight, which is UTC if the hours of the zone are not known.
        rest: What is foretold until the end of the month. None: there is nothing to foretell, or from.
        basis: How many whole days the forecast was made from.
    """

    days: tuple[Day, ...]
    zone: str
    rest: dict[str, int] | None
    basis: int = 0


def days_of(scope: Scope, now: datetime) -> Days | None:
    """Return the days of the month of a statement, or None if they are not kept, or are of too many tokens."""
    tokens = _token_count(scope)
    if tokens > MOST_TOKENS:
        return None
    first, last = scope.month, next_month(scope.month) - DAY
    zone = _zone(scope, first, now, tokens)
    if zone is None:
        return None
    today = _day_at(now, ZoneInfo(zone))
    is_running = first <= today <= last
    sums = _sums(scope, min(first, today - HISTORY_DAYS * DAY) if is_running else first, last, zone)
    if not is_running:
        return Days(tuple(Day(day, sums.get(day, {})) for day in _range(first, last) if day <= today), zone, None)
    return _foretold(sums, first, last, now, zone)


def _token_count(scope: Scope) -> int:
    """Return about how many tokens have usage in the month, counted no further than needed."""
    # A token has one row, and under a policy one for each limit.
    return decisions_of(scope).order_by()[: MOST_TOKENS + 1].count()


def _zone(scope: Scope, first: date, now: datetime, tokens: int) -> str | None:
    """Return the zone whose days can be added up, which is that of the statement or UTC, or None for neither."""
    if now - _midnight(first, scope.zone) <= KEPT["hour"] and tokens <= MOST_TOKENS_BY_HOUR:
        edges = (_midnight(day, scope.zone) for day in _range(first, next_month(first)))
        if all(edge.minute == 0 for edge in edges):
            return scope.zone
    return "UTC" if now - _midnight(first, "UTC") <= KEPT["day"] else None


def _sums(scope: Scope, first: date, last: date, zone: str) -> dict[date, dict[str, int]]:
    """Return the sums of each day that has any."""
    period = "day" if zone == "UTC" else "hour"
    span = {"period": period, "at__gte": _midnight(first, zone), "at__lt": _midnight(last + DAY, zone)}
    usage = UsageRow.objects.filter(**span, **_of(scope))
    usage = usage.filter(policy_id=scope.policy.pk) if scope.policy else usage.filter(**TOTAL)
    metered = MeteredRow.objects.filter(**span, **_of(scope))
    result: dict[date, dict[str, int]] = {}
    day_at = partial(_day_at, zone=ZoneInfo(zone))
    _add(result, usage, counts_of(scope), day_at)
    if not scope.policy:
        _add(result, metered, METERED, day_at)
    return result


def _of(scope: Scope) -> dict[str, Any]:
    return {"project_id__in": scope.projects, **scope.of_tokens()}


def _day_at(at: datetime, zone: ZoneInfo) -> date:
    return at.astimezone(zone).date()


def _add(found: dict[date, dict[str, int]], rows: QuerySet, names: Sequence[str], day_at: Any) -> None:
    for row in rows.order_by().values("at").annotate(**sums(names)):
        counts = found.setdefault(day_at(row["at"]), {})
        for name, number in read_sums(row, names).items():
            counts[name] = counts.get(name, 0) + number


def _foretold(sums: Mapping[date, dict[str, int]], first: date, last: date, now: datetime, zone: str) -> Days:
    """Return the days of the running month, with a forecast if there is a whole day before today."""
    today = _day_at(now, ZoneInfo(zone))
    begun = min((day for day in sums if day < today), default=today)
    history = _range(max(begun, today - HISTORY_DAYS * DAY), today - DAY)
    tomorrow = _midnight(today + DAY, zone)
    left = (tomorrow - now) / (tomorrow - _midnight(today, zone))
    days, rest = [], dict.fromkeys((*COUNTS, *METERED), 0)
    for day in _range(first, last):
        share = 0.0 if day < today else left if day == today else 1.0
        expected = {name: round(mean * share) for name, mean in _means(sums, history, day).items()} if share else {}
        days.append(Day(day, sums.get(day, {}), expected, has_begun=day <= today))
        for name, number in expected.items():
            rest[name] += number
    return Days(tuple(days), zone, rest if history else None, len(history))


def _means(sums: Mapping[date, dict[str, int]], history: Sequence[date], day: date) -> dict[str, float]:
    """Return the mean of the past days with the name of *day*, or of all if the history is shorter than a week."""
    step = DAY if len(history) < WEEK_DAYS else WEEK_DAYS * DAY
    like = periods_like(day, step, history[0], history[-1] + DAY, len(history)) if history else ()
    names = (*COUNTS, *METERED)
    return {name: sum(sums.get(past, {}).get(name, 0) for past in like) / len(like) for name in names} if like else {}


def lines_of(found: Days | None) -> list[Line]:
    """Return a line for each day that has begun, with the zone of the days, for tables and files."""
    days = [day for day in found.days if day.has_begun] if found else []
    return [Line(f"{day.day:%Y-%m-%d}", found.zone if found else "", day.counts) for day in days]


def chart(found: Days, name: str) -> dict[str, Any]:
    """
    Return bars, grid lines and labels of a chart of the days, with x in per cent and y in pixels from the top.

    Args:
        name: The count that it shows, "micros" or "allowed".
    """
    most = max((day.counts.get(name, 0) + day.rest.get(name, 0) for day in found.days), default=0)
    top = rounded_up(most, 1_000_000 if name == "micros" and most > 1_000_000 else 1)
    width = 100 / max(len(found.days), 1)
    grid = [{"y": round(HEIGHT * (1 - part / 4), 1), "value": top * part // 4} for part in range(5)]
    return {"height": HEIGHT, "grid": grid, "bars": [_bar(day, name, top, width) for day in found.days]}


def _bar(one: Day, name: str, top: int, width: float) -> dict[str, Any]:
    counted, expected = one.counts.get(name, 0), one.rest.get(name, 0)
    height, above = round(HEIGHT * counted / top, 1), round(HEIGHT * expected / top, 1)
    left = (one.day.day - 1) * width
    x = {"x": round(left + 0.1 * width, 2), "width": round(0.8 * width, 2), "middle": round(left + 0.5 * width, 2)}
    y = {"y": HEIGHT - height, "height": height, "above_y": round(HEIGHT - height - above, 1), "above": above}
    return {"one": one, "counted": counted, "expected": expected, **x, **y}


def _range(first: date, last: date) -> list[date]:
    return [first + DAY * number for number in range((last - first).days + 1)]


def _midnight(day: date, zone: str) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
