"""A statement of the usage of a project, a token or a policy in one month."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import batched
from typing import Any

from django.db.models import Count, F, OuterRef, QuerySet, Subquery, Sum, Window
from django.db.models.fields.json import KeyTextTransform

from controlplane.core.sums import read_sums, sums
from controlplane.core.transactions import much_memory
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.reports.models import MonthMetered, MonthRow
from controlplane.traffic.usage.months import closes_at

COUNTS, METERED = MonthRow.COUNTS, MonthMetered.COUNTS
TOTAL = {"policy_id": "", "limit_name": "", "unit": "requests"}
# A page shows so many lines of a table. Files have all of them.
LINES_SHOWN = 200
MOST_MONTHS = 36
# Parameters of one statement.
AT_ONCE = 5_000
NO_TOKEN = "without a token"


@dataclass(frozen=True, slots=True)
class Scope:
    """
    The subject of a statement: one month of one project, of a token in it, or of a policy or a label in some projects.

    Attributes:
        projects: The ids of the projects that count.
        zone: The time zone of the month. Of several projects, each counts by its own.
    """

    month: date
    projects: tuple[str, ...]
    zone: str
    token: Token | None = None
    policy: Policy | None = None
    label: tuple[str, str] | None = None

    def of_tokens(self) -> dict[str, Any]:
        """Return the condition of the rows of the token, or of the tokens that have the label now."""
        if self.label:
            tokens = Token.objects.filter(project__in=self.projects).with_label(*self.label)
            return {"token_id__in": tokens.order_by().values("pk")}
        return {"token_id": self.token.pk} if self.token else {}

    def usage(self) -> QuerySet[MonthRow]:
        rows = MonthRow.objects.filter(month=self.month, project_id__in=self.projects, **self.of_tokens())
        return rows.filter(policy_id=self.policy.pk) if self.policy else rows

    def metered(self) -> QuerySet[MonthMetered]:
        """Return the metered requests. They belong to no policy, so a statement of a policy has none."""
        rows = MonthMetered.objects.filter(month=self.month, project_id__in=self.projects, **self.of_tokens())
        return rows.none() if self.policy else rows

    def is_closed(self, now: datetime) -> bool:
        return now >= closes_at(self.month, self.zone)


@dataclass(slots=True)
class Line:
    """
    One line of a table, with the sums of usage and of metered requests.

    Attributes:
        label: The value of the label, in a table that is grouped by one.
    """

    name: str
    detail: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    label: str = ""

    @property
    def requests(self) -> int:
        """The allowed requests, or, in a table of models, the metered ones."""
        return self.counts.get("allowed", self.counts.get("requests", 0))

    @property
    def tokens(self) -> int:
        """The tokens of a language model, read and written."""
        return sum(self.counts.get(name, 0) for name in ("input", "cached_input", "cache_write", "output"))


@dataclass(frozen=True, slots=True)
class Summary:
    """
    The sums of a statement beside the lines of its group.

    Attributes:
        total: The sums of everything. Requests count once, but under a policy once for each of its limits.
        limits: The sums of each limit and unit, the most used first. A request is in the line of each of its limits.
        corrections: The sums of usage that arrived after the month was closed, for each day on which it did.
    """

    total: Line
    limits: list[Line]
    corrections: list[Line]


def summary(scope: Scope) -> Summary:
    """Return the summary of a statement. Of a popular policy, the database takes long to read the rows only once."""
    by = ("policy_id", "limit_name", "unit", "correction")
    usage = list(scope.usage().order_by().values(*by).annotate(**sums(COUNTS)))
    metered = list(scope.metered().order_by().values("correction").annotate(**sums(METERED)))
    whole, late = Line("Total"), dict[str, Line]()
    limits: dict[tuple[str, ...], Line] = {}
    for name in (*counts_of(scope), *METERED):
        whole.counts[name] = 0
    for row in usage:
        if row["limit_name"]:
            _add(limits.setdefault(tuple(row[name] for name in by[:3]), Line("")), row, COUNTS)
        if scope.policy or all(row[name] == value for name, value in TOTAL.items()):
            _add(whole, row, counts_of(scope))
            _add(late.setdefault(row["correction"], Line(row["correction"])), row, counts_of(scope))
    for row in metered:
        _add(whole, row, METERED)
        _add(late.setdefault(row["correction"], Line(row["correction"])), row, METERED)
    return Summary(whole, _named_limits(limits), [line for day, line in sorted(late.items()) if day])


def _named_limits(lines: dict[tuple[str, ...], Line]) -> list[Line]:
    slugs = dict(Policy.objects.filter(pk__in={policy for policy, *_ in lines}).values_list("pk", "slug"))
    for (policy, limit, unit), line in lines.items():
        line.name, line.detail = f"{slugs.get(policy, policy)}/{limit}", unit
    return [line for _, line in sorted(lines.items(), key=lambda pair: (-pair[1].counts["cost"], pair[0]))]


def _add(line: Line, row: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name, number in read_sums(row, names).items():
        line.counts[name] = line.counts.get(name, 0) + number


def decisions_of(scope: Scope) -> QuerySet[MonthRow]:
    """Return the rows that count each decision of the scope."""
    return scope.usage() if scope.policy else scope.usage().filter(**TOTAL)


def counts_of(scope: Scope) -> tuple[str, ...]:
    """Return the counts that have a sum. The costs of the limits of a policy may have different units."""
    return tuple(name for name in COUNTS if name != "cost") if scope.policy else COUNTS


def by_token(scope: Scope, at_most: int | None = None) -> tuple[list[Line], int]:
    """
    Return the sums of each token by name, the busiest first, and how many tokens there are beyond *at_most*.

    A deleted token has its id for a name.
    """
    usage, metered = decisions_of(scope), scope.metered()
    more = 0
    if at_most is not None:
        keys, more = _busiest_tokens(usage, metered, at_most)
        usage, metered = usage.filter(token_id__in=keys), metered.filter(token_id__in=keys)
    lines: dict[str, Line] = {}
    _merge(lines, usage.annotate(line=F("token_id")), counts_of(scope))
    _merge(lines, metered.annotate(line=F("token_id")), METERED)
    names: dict[str, str] = {}
    for some in batched(lines, AT_ONCE):
        names |= Token.objects.filter(pk__in=some).values_list("pk", "name")
    for pk, line in lines.items():
        line.name = names.get(pk) or pk or NO_TOKEN
        line.detail = pk
    return sorted(lines.values(), key=_busiest), more


def _busiest_tokens(usage: QuerySet, metered: QuerySet, at_most: int) -> tuple[list[str], int]:
    """Return the ids of the tokens that cost most, and then of those with most requests, and how many others are."""
    dear = metered.order_by().values("token_id").annotate(sum=Sum("micros")).filter(sum__gt=0)
    keys = list(dear.order_by("-sum", "token_id").values_list("token_id", flat=True)[:at_most])
    # Counted in the same pass, because of a popular policy there are 100,000 tokens.
    sums = usage.order_by().values("token_id").annotate(sum=Sum("allowed")).annotate(all=Window(Count("*")))
    with much_memory():
        rows = list(sums.order_by("-sum", "token_id").values_list("token_id", "all")[:at_most])
    keys = list(dict.fromkeys([*keys, *(pk for pk, _ in rows)]))[:at_most]
    return keys, max(0, (rows[0][1] if rows else 0) - len(keys))


def by_label(scope: Scope, name: str) -> list[Line]:
    """Return the sums of each value of a label that tokens have now, the busiest first. Others have no value."""
    values = Token.objects.order_by().filter(pk=OuterRef("token_id")).annotate(label=KeyTextTransform(name, "labels"))
    line = Subquery(values.values("label")[:1])
    lines: dict[Any, Line] = {}
    _merge(lines, decisions_of(scope).annotate(line=line), counts_of(scope))
    _merge(lines, scope.metered().annotate(line=line), METERED)
    for value, found in lines.items():
        found.name = value if value is not None else f"without the label {name}"
        found.label = value or ""
    return sorted(lines.values(), key=_busiest)


def by_model(scope: Scope) -> list[Line]:
    """Return the sums of metered requests for each model, the dearest first."""
    lines: dict[str, Line] = {}
    _merge(lines, scope.metered().annotate(line=F("model")), METERED)
    for model, line in lines.items():
        line.name = model or "unknown model"
    return sorted(lines.values(), key=_busiest)


def months_of(projects: tuple[str, ...]) -> list[date]:
    """Return the months of which there is usage of these projects, the last one first."""
    rows = MonthRow.objects.filter(project_id__in=projects).order_by("-month").values_list("month", flat=True)
    result: list[date] = []
    # Each is looked up in the index, because to find those that differ the database reads all rows.
    while len(result) < MOST_MONTHS and (month := rows.filter(month__lt=result[-1] if result else date.max).first()):
        result.append(month)
    return result


def of_projects(month: date, projects: QuerySet[Project]) -> list[Line]:
    """Return the sums of each project in a month, the busiest first. Each month is that of the project's time zone."""
    ids = projects.order_by().values("pk")
    lines: dict[str, Line] = {}
    usage = MonthRow.objects.filter(month=month, project_id__in=ids, **TOTAL)
    _merge(lines, usage.annotate(line=F("project_id")), COUNTS)
    metered = MonthMetered.objects.filter(month=month, project_id__in=ids)
    _merge(lines, metered.annotate(line=F("project_id")), METERED)
    slugs = dict(projects.values_list("pk", "slug"))
    for pk, line in lines.items():
        line.name = slugs[pk]
    return sorted(lines.values(), key=_busiest)


def _merge(lines: dict[Any, Line], rows: QuerySet, names: tuple[str, ...]) -> None:
    found = rows.order_by().values("line").annotate(**sums(names)).order_by(f"-sum_{names[0]}", "line")
    for row in found:
        lines.setdefault(row["line"], Line("")).counts.update(read_sums(row, names))


def _busiest(line: Line) -> tuple[int, int, str]:
    return -line.counts.get("micros", 0), -line.requests, line.name
