"""The decisions in a range of time, as totals and as a series."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Model, Q, QuerySet, Sum

from controlplane.core.periods import DECISIONS
from controlplane.core.sums import read_sums, sums
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.fleet import outages
from controlplane.traffic.usage.models import DailyReport, DecisionCount, UsageRow
from controlplane.web.kit.site import link_to, list_url
from controlplane.web.overview.spans import Span, input_of

NOTHING = dict.fromkeys(DECISIONS, 0)
TOP = 5
# Lists of usage sorted by one of their columns, the highest first.
ALLOWED, DENIED, WOULD_DENY = "of=decisions&o=-6", "of=decisions&o=-7", "of=limits&o=-8"


Sums = Mapping[datetime, Mapping[str, int]]
"""The counted decisions of each step with usage, by its start."""


def rows_of(projects: QuerySet[Project] | None, span: Span, now: datetime) -> QuerySet[UsageRow]:
    """
    Return the rows of usage in the range.

    Args:
        projects: Those that the user may see. None stands for all of them, also for deleted ones.
    """
    rows = UsageRow.objects.filter(period=span.period, at__gte=span.starts(now)[0], at__lt=now)
    return rows if projects is None else rows.filter(project_id__in=projects.values("pk"))


def sums_of(projects: QuerySet[Project] | None, span: Span, now: datetime) -> Sums:
    """Return the decisions in the range and in the one before. They are read by project, and not by token."""
    rows = DecisionCount.objects.filter(policy_id="", period=span.period, at__gte=span.before_start(now), at__lt=now)
    if projects is not None:
        rows = rows.filter(project_id__in=projects.values("pk"))
    return {row["at"]: read_sums(row, DECISIONS) for row in rows.values("at").annotate(**sums(DECISIONS))}


class Point(NamedTuple):
    """The decisions of a step by their kinds, and the address of their list."""

    at: datetime
    label: str
    url: str
    counts: Mapping[str, int]


def series_of(sums: Sums, span: Span, now: datetime) -> list[Point]:
    """Return the counted decisions of every step, also of those without usage."""
    usage = list_url(UsageRow)
    return [_point(sums.get(at, NOTHING), at, span, usage) for at in span.starts(now)]


def _point(counts: Mapping[str, int], at: datetime, span: Span, usage: str) -> Point:
    # To its last minute, because the list also shows the row that begins at the end of its range.
    start, end = (input_of(t) for t in (at, at + span.step - timedelta(minutes=1)))
    query = f"?of=decisions&period={span.period}&at_from={start}&at_to={end}"
    return Point(at, span.label_of(at), usage + query, counts)


def totals_of(steps: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of each count."""
    totals = dict(NOTHING)
    for step in steps:
        for name in DECISIONS:
            totals[name] += step[name]
    return totals


def share_denied(allowed: int, denied: int) -> str:
    """Return the denied part of all decisions, such as "2.1 %", or "no data" without any."""
    return f"{100 * denied / (allowed + denied):.1f} %" if allowed + denied else "no data"


def compared(totals: dict[str, int], sums: Sums, span: Span, now: datetime) -> str:
    """Return a sentence that compares the share of denials with that of the range before."""
    start = span.starts(now)[0]
    before = totals_of(counts for at, counts in sums.items() if at < start)
    present = share_denied(totals["allowed"], totals["denied"])
    return f"{present}, {span.before} {share_denied(before['allowed'], before['denied'])}"


@dataclass(frozen=True, slots=True)
class Alone:
    """The decisions without the store since the start of an hour or a day."""

    decisions: int
    since: datetime


def without_store(span: Span, now: datetime) -> Alone:
    """Return how many decisions the whole fleet made without the store in about this range."""
    start = span.starts(now)[0]
    if span.period != "day":
        since = start.replace(minute=0)
        return Alone(outages.since_hour(since), since)
    today = outages.of_day(now.date()).decisions
    reports = DailyReport.objects.filter(day__gte=start.date(), day__lt=now.date()).values_list("summary", flat=True)
    return Alone(today + sum(it.get("without_store", {}).get("decisions", 0) for it in reports), start)


def shadow_limits(projects: QuerySet[Project] | None) -> int:
    """Return how many limits are in shadow, among those that the user may see."""
    limits = Limit.objects.filter(mode="shadow")
    if projects is not None:
        limits = limits.filter(Q(policy__project__in=projects) | Q(policy__project=None))
    return limits.count()


def most_denied_tokens(rows: QuerySet[UsageRow], *, names_limits: bool) -> list[dict[str, object]]:
    """
    Return the tokens with most denials, each as a dictionary with a link and their number.

    Args:
        names_limits: Whether each also has the limit that denied most of its requests, with a link to its policy.
    """
    top = _most_denied(rows.filter(policy_id="", limit_name="").exclude(token_id=""), "token_id")
    ids = [row["token_id"] for row in top]
    known = Token.objects.select_related("project").in_bulk(ids)
    denying = _denying_most(rows, ids) if names_limits else {}
    return [row | {"link": _link(known, row["token_id"]), "by": denying.get(row["token_id"])} for row in top]


def _denying_most(rows: QuerySet[UsageRow], tokens: list[str]) -> dict[str, dict[str, str]]:
    """Return for each of these tokens the limit that denied most of its requests, as a dictionary for the template."""
    if not tokens:
        return {}
    denied = rows.filter(denied__gt=0, token_id__in=tokens).exclude(limit_name="")
    sums = denied.values("token_id", "policy_id", "limit_name").annotate(total=Sum("denied"))
    # The last of each token is kept, which is the one with most denials.
    most = {row["token_id"]: row for row in sums.order_by("total", "-policy_id", "-limit_name")}
    known = Policy.objects.in_bulk({row["policy_id"] for row in most.values()})
    return {
        token: {"link": _link(known, row["policy_id"]), "limit_name": row["limit_name"]} for token, row in most.items()
    }


def most_denying_limits(rows: QuerySet[UsageRow]) -> list[dict[str, object]]:
    """Return the limits with most denials, each as a dictionary with a link to its policy and their number."""
    top = _most_denied(rows.exclude(limit_name=""), "policy_id", "limit_name")
    known = Policy.objects.in_bulk([row["policy_id"] for row in top])
    return [row | {"link": _link(known, row["policy_id"])} for row in top]


def _most_denied(rows: QuerySet[UsageRow], *names: str) -> list[dict[str, Any]]:
    # Grouped are only the rows with denials, because of a million tokens few are denied.
    sums = rows.filter(denied__gt=0).values(*names).annotate(total=Sum("denied")).order_by("-total")
    top = [{**row, "denied": row["total"]} for row in sums[:TOP]]
    most = max((row["denied"] for row in top), default=1)
    return [row | {"share": round(100 * row["denied"] / most)} for row in top]


def _link(known: Mapping[str, Model], key: str) -> str:
    """Return a link to the row with this id, or the id if the row is deleted."""
    return link_to(known[key]) if key in known else key


def described(totals: dict[str, int], span: Span) -> str:
    """Return the sums in words, for people who do not see the chart."""
    would_deny = f"of which {totals['would_deny']:,} would be denied by shadow limits, " if totals["would_deny"] else ""
    return f"{totals['allowed']:,} allowed, {would_deny}{totals['denied']:,} denied, {span.title.lower()}"
