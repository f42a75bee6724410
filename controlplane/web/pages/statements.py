"""
The page of statements: what a project, a token, a policy or a label has used in a month, to look at, print and export.
"""

import csv
import io
from datetime import date, datetime
from typing import Any

from django.contrib import admin
from django.contrib.humanize.templatetags.humanize import intcomma
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone

from controlplane.core.money import amount, permits, rounded
from controlplane.core.optional import USAGE
from controlplane.core.text import escaped
from controlplane.core.zones import month_of, next_month
from controlplane.objects.people.scope import is_member, may, projects_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.reports import report
from controlplane.traffic.reports.days import Days, chart, days_of, lines_of
from controlplane.traffic.reports.models import MonthRow
from controlplane.traffic.reports.report import Line, Scope
from controlplane.traffic.usage.months import closes_at
from controlplane.web.kit.filters import label_of
from controlplane.web.kit.links import statement_url
from controlplane.web.kit.page import PartsPage
from controlplane.web.scope.rows import RowScope

FORMATS = ("csv", "json", "print")
GROUPS = ("token", "label", "model", "day")
# The possible subjects of a statement.
SUBJECTS = ("project", "token", "policy", "tagged")
COLUMNS = ("allowed", "denied", "would_deny", "cost", "requests", "input", "cached_input", "cache_write", "output")


@admin.register(MonthRow)
class StatementAdmin(PartsPage):
    """Members see what their projects have used, and operators what all have."""

    optional_source = USAGE
    scope = RowScope(paths=("project_id",))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: MonthRow | None = None) -> bool:
        return is_member(request.user) and (obj is None or may(request.user, "viewer", obj.project_id))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        query, now = request.GET, timezone.now()
        month = _month(query.get("month", ""))
        if not any(query.get(name) for name in SUBJECTS):
            return self._overview(request, month or month_of(now, "UTC"))
        scope = scope_of(request, month, now)
        group, label = _group(query)
        shape = query.get("format", "")
        if shape not in ("", *FORMATS):
            raise Http404
        days = days_of(scope, now) if group == "day" or shape in ("", "print") else None
        # Files, and the page that is printed, have all lines.
        most = None if shape else report.LINES_SHOWN
        lines, more = (lines_of(days), 0) if group == "day" else _grouped(scope, group, label, most)
        if shape in ("csv", "json"):
            return _csv(scope, lines, group) if shape == "csv" else _json(scope, lines, group)
        return self._statement(request, scope, (lines, more), group, label, days, template=shape)

    def _overview(self, request: HttpRequest, month: date) -> HttpResponse:
        """Return a page with the sums of each project that the user may see."""
        projects = projects_of(request.user)
        lines = report.of_projects(month, projects)
        links = {line.name: statement_url(project=line.name, month=f"{month:%Y-%m}") for line in lines}
        return self.page(
            request,
            "statements.html",
            title="Statements",
            month=month,
            rows=[(line, links[line.name], rounded(line.counts.get("micros", 0))) for line in lines],
            before=statement_url(month=f"{_month_before(month):%Y-%m}"),
            after=statement_url(month=f"{next_month(month):%Y-%m}"),
        )

    def _statement(
        self,
        request: HttpRequest,
        scope: Scope,
        found: tuple[list[Line], int],
        group: str,
        label: str,
        days: Days | None,
        template: str,
    ) -> HttpResponse:
        now, summary = timezone.now(), report.summary(scope)
        whole = summary.total
        given = {name: value for name, value in request.GET.items() if name in SUBJECTS}
        by = {"group": group, **({"label": label} if label else {})}
        month = f"{scope.month:%Y-%m}"
        micros = whole.counts["micros"]
        context = {
            "title": f"Statement of {subject_of(scope)}",
            "scope": scope,
            "closed": scope.is_closed(now),
            "closes": closes_at(scope.month, scope.zone),
            "now": now,
            "whole": whole,
            "money": rounded(micros),
            **_of_days(days, whole),
            "group": group,
            "label": label,
            "shown": [
                (one, rounded(one.counts.get("micros", 0)), _share(one, whole), url)
                for one, url in zip(found[0], _urls(found[0], group, label, given, month), strict=True)
            ],
            "more": found[1],
            "limits": [(limit, permits(limit.counts["cost"], limit.detail)) for limit in summary.limits],
            "corrections": summary.corrections,
            "given": given,
            "months": [(f"{one:%Y-%m}", f"{one:%B %Y}") for one in report.months_of(scope.projects)],
            "month": month,
            "before": statement_url(**given, **by, month=f"{_month_before(scope.month):%Y-%m}"),
            "after": statement_url(**given, **by, month=f"{next_month(scope.month):%Y-%m}"),
            "files": [(shape, statement_url(**given, **by, month=month, format=shape)) for shape in FORMATS],
        }
        return self.page(request, "statement_print.html" if template == "print" else "statement.html", **context)


def _urls(lines: list[Line], group: str, label: str, given: dict[str, str], month: str) -> list[str]:
    """Return the address of the statement of each line, or an empty string if none has the same numbers."""
    if group == "token" and "policy" not in given:
        # The name of a deleted token is its id.
        known = [line.detail if line.name != line.detail else "" for line in lines]
        return [statement_url(token=pk, month=month) if pk else "" for pk in known]
    if group == "label" and not {"tagged", "token"} & given.keys():
        return [line.label and statement_url(**given, tagged=f"{label}={line.label}", month=month) for line in lines]
    return [""] * len(lines)


def scope_of(request: HttpRequest, month: date | None, now: datetime) -> Scope:
    """
    Return what the query asks for, or raise Http404 for what the user may not see.

    It names a project by its slug, a token by its id, a policy by its slug, or a label such as team=red.

    Args:
        month: The first day of the month. None: the present month in the zone of the project.
    """
    query, projects = request.GET, projects_of(request.user)
    if query.get("token"):
        token = Token.objects.filter(pk=query["token"], project__in=projects).select_related("project").first()
        if token is None:
            raise Http404
        return _scope(month, now, token.project, token=token)
    policy = None
    if query.get("policy"):
        policy = Policy.objects.filter(slug=query["policy"]).first()
        foreign = policy and policy.project_id and not may(request.user, "viewer", policy.project_id)
        if policy is None or foreign:
            raise Http404
    label = _tagged(query.get("tagged", ""))
    if query.get("project"):
        project = projects.filter(slug=query["project"]).first()
        if project is None:
            raise Http404
        return _scope(month, now, project, policy=policy, label=label)
    ids = tuple(projects.values_list("pk", flat=True))
    return Scope(month or month_of(now, "UTC"), ids, "UTC", policy=policy, label=label)


def _scope(month: date | None, now: datetime, project: Project, **fields: Any) -> Scope:
    zone = project.time_zone
    return Scope(month or month_of(now, zone), (project.pk,), zone, **fields)


def _tagged(text: str) -> tuple[str, str] | None:
    """Return the name and the value of a label such as team=red, None for an empty string, or raise Http404."""
    if not text:
        return None
    try:
        name, value = label_of(text)
    except ValueError as exc:
        raise Http404 from exc
    if value is None:
        raise Http404
    return name, value


def subject_of(scope: Scope) -> str:
    """Return the name of what a statement is about."""
    if scope.token:
        return f"{scope.token.name} of {scope.token.project.slug}"
    owner = Project.objects.filter(pk=scope.projects[0]).first() if len(scope.projects) == 1 else None
    names = ["=".join(scope.label)] if scope.label else []
    names += [scope.policy.slug] if scope.policy else []
    return " in ".join([*names, owner.slug if owner else "all of your projects"])


def _month(text: str) -> date | None:
    """Return the first day of a month such as 2026-11, None for an empty string, or raise Http404."""
    if not text:
        return None
    try:
        month = date.fromisoformat(f"{text}-01")
    except ValueError as exc:
        raise Http404 from exc
    if not 2000 <= month.year < 3000:
        raise Http404
    return month


def _month_before(month: date) -> date:
    return date(month.year - (month.month == 1), (month.month - 2) % 12 + 1, 1)


def _group(query: Any) -> tuple[str, str]:
    """Return by what the lines are grouped, and the name of the label if it is one, or raise Http404."""
    group, label = query.get("group") or "token", (query.get("label") or "").strip()
    if group not in GROUPS:
        raise Http404
    if group != "label":
        return group, ""
    try:
        name, value = label_of(label)
    except ValueError:
        return "token", ""
    return ("label", name) if value is None else ("token", "")


def _grouped(scope: Scope, group: str, label: str, at_most: int | None) -> tuple[list[Line], int]:
    """Return the lines of a statement, at most *at_most* unless it is None, and how many others there are."""
    if group == "token":
        return report.by_token(scope, at_most)
    lines = report.by_label(scope, label) if group == "label" else report.by_model(scope)
    return lines[:at_most], len(lines[at_most:]) if at_most is not None else 0


def _share(line: Line, whole: Line) -> str:
    """Return the part of a line in the money, or without any in the requests, in per cent."""
    name = "micros" if whole.counts["micros"] else "allowed"
    return f"{line.counts.get(name, 0) * 100 / whole.counts[name]:.1f} %" if whole.counts[name] else "—"


def _of_days(days: Days | None, whole: Line) -> dict[str, Any]:
    """Return what the page shows of the days. The chart has the money, or the requests if there is none."""
    if days is None:
        return {"days": None}
    name = "micros" if whole.counts["micros"] else "allowed"
    shown = _short_money if name == "micros" else intcomma
    found = chart(days, name)
    for line in found["grid"]:
        line["text"] = shown(line["value"])
    for bar in found["bars"]:
        bar["text"], bar["more"] = (
            rounded(number) if name == "micros" else f"{number:,} requests"
            for number in (bar["counted"], bar["counted"] + bar["expected"])
        )
    rest = days.rest or {}
    end = whole.counts[name] + rest.get(name, 0)
    forecast = (rounded(end) if name == "micros" else f"{end:,} requests") if days.rest else ""
    return {"days": days, "chart": found, "by": "Money" if name == "micros" else "Requests", "forecast": forecast}


def _short_money(micros: int) -> str:
    return f"{micros // 1_000_000:,}" if micros % 1_000_000 == 0 else amount(micros)


def _csv(scope: Scope, lines: list[Line], group: str) -> HttpResponse:
    """Return all lines as CSV, first the grouped ones, then those of limits and the corrections."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(
        ["month", "time_zone", "kind", "name", "id_or_unit", *COLUMNS, "calls", "money", "currency_millionths"]
    )
    summary = report.summary(scope)
    parts = [
        ("total", [summary.total]),
        (group, lines),
        ("limit", summary.limits),
        ("correction", summary.corrections),
    ]
    for kind, some in parts:
        for line in some:
            # Without a sum of costs, because the limits of a policy may have different units.
            empty = dict.fromkeys(("cost",) if scope.policy and kind != "limit" else (), "")
            counts = [line.counts.get(name, empty.get(name, 0)) for name in (*COLUMNS, "calls")]
            micros = line.counts.get("micros", 0)
            # A name that begins like a formula must not become one in a spreadsheet.
            name = escaped(line.name)
            name = f"'{name}" if name[:1] in ("=", "+", "-", "@") else name
            writer.writerow(
                [f"{scope.month:%Y-%m}", scope.zone, kind, name, line.detail, *counts, amount(micros), micros]
            )
    response = HttpResponse(out.getvalue(), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="statement-{scope.month:%Y-%m}.csv"'
    return response


def _json(scope: Scope, lines: list[Line], group: str) -> HttpResponse:
    """Return all lines as JSON."""
    summary = report.summary(scope)
    body = {
        "month": f"{scope.month:%Y-%m}",
        "time_zone": scope.zone,
        "closes_at": closes_at(scope.month, scope.zone).isoformat(),
        "closed": scope.is_closed(timezone.now()),
        "of": subject_of(scope),
        "total": summary.total.counts,
        f"by_{group}": [_as_json(line, "zone" if group == "day" else "id") for line in lines],
        "by_limit": [{"limit": line.name, "unit": line.detail, **line.counts} for line in summary.limits],
        "corrections": [{"arrived_on": line.name, **line.counts} for line in summary.corrections],
    }
    return JsonResponse(body)


def _as_json(line: Line, detail: str) -> dict[str, Any]:
    return {"name": line.name, **({detail: line.detail} if line.detail else {}), **line.counts}
