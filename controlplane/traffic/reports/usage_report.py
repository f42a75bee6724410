"""The usage of one day, summed up for people."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from heapq import nlargest
from itertools import batched
from typing import Any

from django.db.models import F, Model, OuterRef, Q, QuerySet, Subquery
from django.db.models.fields.json import KeyTextTransform

from controlplane.core.money import exact, permits
from controlplane.core.periods import COUNTS
from controlplane.core.sums import read_sums, sums
from controlplane.core.text import escaped
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.fleet import outages
from controlplane.traffic.fleet.outages import Outage
from controlplane.traffic.reservations.models import LOST, Reservation
from controlplane.traffic.usage.models import MeteredRow, UsageRow
from enforcement.metering.tally import COUNT_NAMES

TOP = 10
NO_TOKEN = "(no token)"
NAMES_AT_ONCE = 1000


@dataclass(slots=True)
class ReportLine:
    """The sums of a token under one limit. Without a limit, of all its decisions. Without a token, of its project."""

    project: str
    token: str = ""
    token_id: str = ""
    limit: str = ""
    unit: str = "requests"
    allowed: int = 0
    denied: int = 0
    would_deny: int = 0
    cost: int = 0

    @property
    def charged(self) -> str:
        """The cost as people read it, in the currency if the unit is money."""
        return permits(self.cost, self.unit)

    def add(self, other: "ReportLine") -> None:
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class ModelLine:
    """The metered requests for one model, which is empty for those that no meter could read."""

    model: str
    requests: int = 0
    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    micros: int = 0
    estimated_input: int = 0
    calls: int = 0
    approximate: int = 0
    settled_as: dict[str, int] = field(default_factory=dict)

    @property
    def all_input(self) -> int:
        return self.input + self.cached_input + self.cache_write

    @property
    def money(self) -> str:
        return exact(self.micros)


@dataclass(frozen=True, slots=True)
class LostReservations:
    """How many reservations were lost on a day, and how many of them nobody has settled yet."""

    lost: int
    unsettled: int


@dataclass(frozen=True, slots=True)
class Report:
    """
    The usage of one day.

    ``tokens`` and ``projects`` count each decision once. ``limits`` has one line for each token, limit and unit.
    """

    day: date
    complete: bool
    outage: Outage
    totals: ReportLine
    projects: list[ReportLine] = field(default_factory=list)
    tokens: list[ReportLine] = field(default_factory=list)
    limits: list[ReportLine] = field(default_factory=list)
    models: list[ModelLine] = field(default_factory=list)
    reservations: LostReservations = LostReservations(0, 0)

    @property
    def top_denied_tokens(self) -> list[ReportLine]:
        return _top_denied(self.tokens)

    @property
    def top_denied_limits(self) -> list[ReportLine]:
        """The limits that denied most requests of all tokens. Such a limit is too low or under attack."""
        whole: dict[tuple[str, str], ReportLine] = {}
        for line in self.limits:
            whole.setdefault((line.limit, line.unit), ReportLine("", limit=line.limit, unit=line.unit)).add(line)
        return _top_denied(whole.values())

    @property
    def summary(self) -> dict[str, Any]:
        totals = {name: getattr(self.totals, name) for name in COUNTS}
        alone = {"decisions": self.outage.decisions, "at_most_ms": self.outage.at_most // timedelta(milliseconds=1)}
        counted = {"projects": len(self.projects), "tokens": sum(bool(line.token_id) for line in self.tokens)}
        lost = {"lost": self.reservations.lost, "unsettled": self.reservations.unsettled}
        return {**totals, **counted, "without_store": alone, "reservations": lost}


def build(day: date, now: datetime) -> Report:
    """Return a new report of the usage on a day. If the day is not over, it covers the usage so far."""
    rows = list(day_rows(day).order_by("project_id", "token_id", "policy_id", "limit_name", "unit"))
    names = _names(rows)
    lines = [_line(row, names) for row in rows]
    tokens = [line for line in lines if not line.limit]
    projects: dict[str, ReportLine] = defaultdict(lambda: ReportLine(""))
    totals = ReportLine("")
    for line in tokens:
        projects[line.project].project = line.project
        projects[line.project].add(line)
        totals.add(line)
    return Report(
        day=day,
        complete=_is_over(day, now),
        outage=outages.of_day(day),
        totals=totals,
        projects=sorted(projects.values(), key=_busiest),
        tokens=sorted(tokens, key=_busiest),
        limits=[line for line in lines if line.limit],
        models=totals_by_model(MeteredRow.objects.filter(period="day", at=_start_of(day)))[:TOP],
        reservations=lost_reservations(day),
    )


def totals_by_model(rows: QuerySet[MeteredRow]) -> list[ModelLine]:
    """Return the sums of each model, the dearest first, as a new list."""
    lines: dict[str, ModelLine] = {}
    for row in rows.order_by().values("model", "settled_as", "approximate").annotate(**sums(COUNT_NAMES)):
        line = lines.setdefault(row["model"], ModelLine(escaped(row["model"])))
        counts = read_sums(row, COUNT_NAMES)
        for name, number in counts.items():
            setattr(line, name, getattr(line, name) + number)
        requests = counts["requests"]
        line.approximate += requests if row["approximate"] else 0
        line.settled_as[row["settled_as"]] = line.settled_as.get(row["settled_as"], 0) + requests
    return sorted(lines.values(), key=lambda line: (-line.micros, -line.requests, line.model))


def totals_by_label(rows: QuerySet[MeteredRow], name: str, at_most: int) -> list[dict[str, Any]]:
    """
    Return the sums of each value of a label, the dearest first, as new dictionaries.

    The value is what the token has now, because a row has its id only. It is None for tokens without the label, for
    deleted tokens, and for requests without a token.
    """
    values = Token.objects.filter(pk=OuterRef("token_id")).annotate(label=KeyTextTransform(name, "labels"))
    by_value = rows.order_by().annotate(value=Subquery(values.values("label"))).values("value")
    dearest = F("sum_micros").desc(), F("sum_requests").desc()
    lines = by_value.annotate(**sums(COUNT_NAMES)).order_by(*dearest, "value")[:at_most]
    return [{"value": line["value"], **read_sums(line, COUNT_NAMES)} for line in lines]


def lost_reservations(day: date) -> LostReservations:
    """Return how many reservations were lost on a day."""
    start = _start_of(day)
    was_lost = Q(state=LOST) | Q(settled_at__gt=F("expires_at"))
    rows = Reservation.objects.filter(was_lost, expires_at__gte=start, expires_at__lt=start + timedelta(days=1))
    return LostReservations(rows.count(), rows.filter(state=LOST).count())


def day_rows(day: date) -> QuerySet[UsageRow]:
    return UsageRow.objects.filter(period="day", at=_start_of(day))


def _start_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _is_over(day: date, now: datetime) -> bool:
    return day < now.astimezone(UTC).date()


def _line(row: UsageRow, names: dict[str, str]) -> ReportLine:
    """
    Return a new line of the report for a row of usage. Names are escaped, because old ones may control a terminal.
    """
    limit = f"{names.get(row.policy_id, row.policy_id)}/{row.limit_name}" if row.limit_name else ""
    counts = {name: getattr(row, name) for name in COUNTS}
    project = names.get(row.project_id, row.project_id)
    token = names.get(row.token_id, row.token_id) if row.token_id else NO_TOKEN
    return ReportLine(escaped(project), escaped(token), row.token_id, escaped(limit), row.unit, **counts)


def _names(rows: list[UsageRow]) -> dict[str, str]:
    """Return the names of projects, policies and tokens by id, without the deleted ones."""
    return {
        **_column(Project, "slug", {row.project_id for row in rows}),
        **_column(Policy, "slug", {row.policy_id for row in rows}),
        **_column(Token, "name", {row.token_id for row in rows}),
    }


def _column(model: type[Model], column: str, ids: set[str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for some in batched(sorted(ids), NAMES_AT_ONCE):
        result.update(model._default_manager.filter(pk__in=some).values_list("pk", column))
    return result


def _busiest(line: ReportLine) -> tuple[int, str, str]:
    return -(line.allowed + line.denied), line.project, line.token_id


def _top_denied(lines: Iterable[ReportLine]) -> list[ReportLine]:
    return nlargest(TOP, (line for line in lines if line.denied), key=lambda line: line.denied)
