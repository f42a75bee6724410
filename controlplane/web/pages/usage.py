from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth import get_permission_codename
from django.core.exceptions import BadRequest, PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import FieldTextFilter
from unfold.decorators import display

from controlplane.core.csp import HEADER
from controlplane.core.files import cell, csv_line, streamed
from controlplane.core.money import exact, permits
from controlplane.core.optional import USAGE
from controlplane.core.periods import PERIODS
from controlplane.objects.people.scope import is_operator, keeps_access
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.usage.models import DailyReport, DeniedRequest, MeteredRow, UsageRow
from controlplane.web.kit.filters import InstantRangeFilter, LabelFilter
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import Column, Filter, ListPanel, View
from controlplane.web.kit.site import instant, link_to, long_name
from controlplane.web.kit.times import stacked
from controlplane.web.scope.rows import RowScope
from enforcement.metering.tally import COUNT_NAMES

# A report is a page without scripts, which contains its style.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
COLUMNS = ("at", "project_id", "token_id", "policy_id", "limit_name", "unit", "allowed", "denied", "would_deny", "cost")
MOST_ROWS, AT_ONCE = 100_000, 10_000
# The model that each id names, and the column of its name.
NAMES: dict[str, tuple[type[Model], str]] = {
    "project": (Project, "slug"),
    "token": (Token, "name"),
    "policy": (Policy, "slug"),
}


PERIOD_FILTER = Filter(
    # One period at a time, because hours contain their minutes.
    name="period",
    title="period",
    choices=[(period, period) for period in PERIODS],
    usual="hour",
    narrow=lambda rows, period, request: rows.filter(period=period),
)


SCOPE_FILTER = Filter(
    name="of",
    title="counted by",
    choices=[("decisions", "token (all decisions)"), ("limits", "limit")],
    usual="decisions",
    narrow=lambda rows, scope, _: rows.filter(limit_name="") if scope == "decisions" else rows.exclude(limit_name=""),
)


class NamedFilter(FieldTextFilter):
    """A filter that accepts an id or a name."""

    model: type[Project] | type[Token] | type[Policy]
    column: str

    def queryset(self, request: HttpRequest, rows: QuerySet[UsageRow]) -> QuerySet[UsageRow]:
        wanted = (self.value() or "").strip()
        if not wanted:
            return rows
        named = self.model.objects.filter(**{self.column: wanted}).values_list("pk", flat=True)
        return rows.filter(**{f"{self.field_path}__in": [wanted, *named]})


class ProjectFilter(NamedFilter):
    model, column = Project, "slug"


class TokenFilter(NamedFilter):
    model, column = Token, "name"


class PolicyFilter(NamedFilter):
    model, column = Policy, "slug"


class TokenLabelFilter(LabelFilter):
    column = "token_id"


type Row = UsageRow | MeteredRow | DeniedRequest


@dataclass(frozen=True, slots=True)
class Named:
    """
    The projects, tokens and policies that rows name by their ids.

    A row is kept after its project or token is deleted, and then shows the id in place of the name.
    """

    projects: Mapping[str, Project]
    tokens: Mapping[str, Token]
    policies: Mapping[str, Policy]

    def project(self, row: Row) -> str:
        found = self.projects.get(row.project_id)
        return link_to(found) if found else row.project_id

    def token(self, row: Row) -> str:
        found = self.tokens.get(row.token_id)
        return link_to(found, found.name) if found else row.token_id or "—"

    def limit(self, row: UsageRow | DeniedRequest, otherwise: str) -> str:
        if not row.limit_name:
            return otherwise
        found = self.policies.get(row.policy_id)
        return format_html("{}/{}", link_to(found) if found else row.policy_id, row.limit_name)


def named(rows: Sequence[Row], request: HttpRequest) -> Named:
    """Return what the rows name, read by one query for each kind."""
    policies = {row.policy_id for row in rows if not isinstance(row, MeteredRow)}
    return Named(
        Project.objects.in_bulk({row.project_id for row in rows}),
        Token.objects.in_bulk({row.token_id for row in rows}),
        Policy.objects.in_bulk(policies) if policies else {},
    )


def by_names(name: str, title: str, show: Callable[[Any, Named], str], order: str) -> Column[Any, Named]:
    return Column(name=name, title=title, read=named, show=show, order=order)


PROJECT = by_names("project", "Project", lambda row, names: names.project(row), "project_id")
TOKEN = by_names("token", "Token", lambda row, names: names.token(row), "token_id")


def number(name: str, title: str) -> Callable[[Any, Any], str]:
    """Return a column for the integer *name*, which is shown with separators and sorted by."""

    @display(description=title, ordering=name)
    def shown(page: Any, row: Any) -> str:
        return f"{getattr(row, name):,}"

    return shown


EXPORT_LINK = ListPanel(
    name="export_url",
    template="admin/sluicegate/usage_export.html",
    answer=lambda request: f"{request.path}export.csv?{request.GET.urlencode()}",
)


class SumsAdmin(PartsPage):
    """
    The base class of lists of sums by minute, hour and day, which can be downloaded.

    Attributes:
        exported: The columns of the downloaded file. The first is the time.
    """

    optional_source = USAGE
    scope = RowScope(paths=("project_id",))
    ordering = ["-at", "id"]
    list_display_links = None
    list_panels = (EXPORT_LINK,)
    exported: ClassVar[tuple[str, ...]] = ()

    @display(description="From", ordering="at")
    def begins(self, row: UsageRow | MeteredRow) -> str:
        return row.at.strftime("%Y-%m-%d UTC") if row.period == "day" else stacked(row.at)

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Return a CSV file with the rows of the list, with the same filters, written while they are read."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            rows = self.listed(request)[:MOST_ROWS]
        except IncorrectLookupParameters as exc:
            raise BadRequest from exc  # the list itself then shows all rows, which a file must not pass for
        permission = f"{self.opts.app_label}.{get_permission_codename('view', self.opts)}"
        return streamed(self._lines(rows), "usage.csv", keeps_access(request.user, permission))

    views = (View(path="export.csv", name="csv", answer=export_view),)

    def _lines(self, rows: QuerySet) -> Iterator[str]:
        named = [
            (self.exported.index(f"{name}_id"), *it) for name, it in NAMES.items() if f"{name}_id" in self.exported
        ]
        yield csv_line([*self.exported, *(name for name in NAMES if f"{name}_id" in self.exported)])
        known: dict[int, dict[str, str]] = {place: {} for place, _, _ in named}
        for some in batched(rows.values_list(*self.exported).iterator(chunk_size=AT_ONCE), AT_ONCE):
            for place, model, column in named:
                if new := {row[place] for row in some} - known[place].keys():
                    known[place] |= dict.fromkeys(new, "")
                    known[place] |= dict(model._default_manager.filter(pk__in=new).values_list("pk", column))
            for row in some:
                names = [names[row[place]] for place, names in known.items()]
                yield csv_line([row[0].isoformat(), *map(cell, [*row[1:], *names])])


@admin.register(UsageRow)
class UsageAdmin(SumsAdmin):
    list_display = ["begins", "project", "token", "limit", "unit", "passed", "refused", "would_refuse", "charged"]
    passed, refused = number("allowed", "Allowed"), number("denied", "Denied")
    would_refuse = number("would_deny", "Would deny")
    list_filter = [
        PERIOD_FILTER,
        SCOPE_FILTER,
        ("project_id", ProjectFilter),
        ("token_id", TokenFilter),
        ("policy_id", PolicyFilter),
        TokenLabelFilter,
        ("unit", FieldTextFilter),
        ("at", InstantRangeFilter),
    ]
    exported = COLUMNS
    columns = (
        PROJECT,
        TOKEN,
        by_names("limit", "Limit", lambda row, names: names.limit(row, "all decisions"), "limit_name"),
    )
    empty = ("The decisions of proxies are counted here by the minute, about half a minute later.", "")

    @display(description="Cost", ordering="cost")
    def charged(self, row: UsageRow) -> str:
        return permits(row.cost, row.unit)


@admin.register(MeteredRow)
class MeteredAdmin(SumsAdmin):
    columns = (
        by_names(
            "holder",
            "Project and token",
            lambda row, names: _stacked(names.project(row), names.token(row)),
            "project_id",
        ),
    )
    # Eight columns, because the last one, money, has to be seen without scrolling.
    list_display = ["begins", "holder", "model_name", "asked", "all_input", "written", "called", "money"]
    asked, written, called = number("requests", "Requests"), number("output", "Output"), number("calls", "Calls")
    list_filter = [
        PERIOD_FILTER,
        ("project_id", ProjectFilter),
        ("token_id", TokenFilter),
        TokenLabelFilter,
        ("model", FieldTextFilter),
        ("settled_as", FieldTextFilter),
        ("at", InstantRangeFilter),
    ]
    exported = ("at", *MeteredRow.KEY[2:], *COUNT_NAMES)
    empty = ("The tokens of metered requests are counted here by model and minute, once they are settled.", "")

    @display(description="Model, settled as", ordering="model")
    def model_name(self, row: MeteredRow) -> str:
        return _stacked(long_name(row.model) if row.model else "—", self.settled(row))

    @display(description="Input", ordering="input")
    def all_input(self, row: MeteredRow) -> str:
        parts = [f"{row.cached_input:,} cached" if row.cached_input else ""]
        parts += [f"{row.cache_write:,} to the cache" if row.cache_write else ""]
        return _stacked(f"{row.input:,}", ", ".join(filter(None, parts)))

    @display(description="Money", ordering="micros")
    def money(self, row: MeteredRow) -> str:
        return exact(row.micros)

    @staticmethod
    def settled(row: MeteredRow) -> str:
        return f"{row.settled_as}, approximate" if row.approximate else row.settled_as


@admin.register(DeniedRequest)
class DeniedRequestAdmin(PartsPage):
    optional_source = USAGE
    scope = RowScope(paths=("project_id",))
    columns = (PROJECT, TOKEN, by_names("limit", "Limit", lambda row, names: names.limit(row, "—"), "limit_name"))
    list_display = ["moment", "reason", "project", "token", "limit", "values", "instance", "explained"]
    list_filter = [
        ("reason", FieldTextFilter),
        ("project_id", ProjectFilter),
        ("token_id", TokenFilter),
        ("at", InstantRangeFilter),
    ]
    search_fields = ["=decision"]
    search_help_text = "The id of a decision, from the field Sluicegate-Decision of a response"
    list_display_links = None
    list_before_template = "admin/sluicegate/denial_sample.html"
    empty = ("Some of the requests that proxies deny are listed here, a few seconds later.", "")

    def get_exclude(self, request: HttpRequest, obj: DeniedRequest | None = None) -> list[str]:
        """Return what members do not see. Instances serve every project, and their names may hold those of hosts."""
        return [] if is_operator(request.user) else ["instance"]

    def get_list_display(self, request: HttpRequest) -> list[str]:
        hidden = self.get_exclude(request)
        return [name for name in super().get_list_display(request) if name not in hidden]

    @display(description="At", ordering="at")
    def moment(self, row: DeniedRequest) -> str:
        return stacked(row.at, seconds=True)

    @display(description="Decision", ordering="decision")
    def explained(self, row: DeniedRequest) -> str:
        url = f"{reverse('explain-denial')}?{urlencode({'decision': row.decision})}"
        return format_html('<a class="text-link sg-name" href="{}">{}</a>', url, row.decision)

    @display(description="Attributes")
    def values(self, row: DeniedRequest) -> str:
        # These are strings of tenants. The list escapes what is returned here.
        return ", ".join(f"{name}={value}" for name, value in sorted(row.attributes.items())) or "—"


def _stacked(first: str, second: str) -> str:
    """Return two values of one cell, the second smaller and below."""
    return format_html('{}<span class="sg-help sg-block">{}</span>', first, second) if second else first


def attachment(text: str, name: str) -> HttpResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return HttpResponse(text, content_type="text/csv; charset=utf-8", headers=headers)


@admin.register(DailyReport)
class DailyReportAdmin(PartsPage):
    optional_source = USAGE
    list_display = ["date", "decisions", "denied", "would_deny", "without_store", "formats"]
    fields = readonly_fields = ["date", "created", "decisions", "denied", "would_deny", "without_store", "formats"]
    ordering = ["-day"]
    empty = ("The report of each day is saved here in the following night, as a page and as CSV.", "")

    @display(description="Day", ordering="day")
    def date(self, report: DailyReport) -> str:
        return report.day.isoformat()

    @display(description="Created")
    def created(self, report: DailyReport) -> str:
        return instant(report.created_at)

    @display(description="Decisions")
    def decisions(self, report: DailyReport) -> str:
        return f"{report.summary.get('allowed', 0) + report.summary.get('denied', 0):,}"

    @display(description="Denied")
    def denied(self, report: DailyReport) -> str:
        return f"{report.summary.get('denied', 0):,}"

    @display(description="Would deny (shadow)")
    def would_deny(self, report: DailyReport) -> str:
        return f"{report.summary.get('would_deny', 0):,}"

    @display(description="Decided without the store")
    def without_store(self, report: DailyReport) -> str:
        return f"{report.summary.get('without_store', {}).get('decisions', 0):,}"

    @display(description="Formats")
    def formats(self, report: DailyReport) -> str:
        page, table = (reverse(f"admin:usage_dailyreport_{kind}", args=[report.pk]) for kind in ("page", "csv"))
        return format_html(
            '<a class="text-link" href="{}">page</a> · <a class="text-link" href="{}">CSV</a>', page, table
        )

    def page_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        return HttpResponse(self.readable(request, pk).html, headers={HEADER: REPORT_POLICY})

    def csv_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        report = self.readable(request, pk)
        return attachment(report.csv, f"{report.day}.csv")

    views = (
        View(path="<int:pk>/page/", name="page", answer=page_view),
        View(path="<int:pk>/csv/", name="csv", answer=csv_view),
    )

    def readable(self, request: HttpRequest, pk: int) -> DailyReport:
        """Return the report, if it exists and the user may read it, or answer with the page of the error."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return get_object_or_404(DailyReport, pk=pk)
