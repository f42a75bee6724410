"""The first page of the admin, with what needs a hand, the decisions, the fleet, and what ends soon."""

from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from controlplane.core import optional
from controlplane.objects.people.scope import is_member, is_operator, projects_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.health.of_fleet import lost_now
from controlplane.traffic.fleet.heartbeats import fleet_now
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.usage.models import UsageRow
from controlplane.web.kit.first_steps import first_steps
from controlplane.web.kit.site import list_url
from controlplane.web.overview import chart, decisions
from controlplane.web.overview.ending import ending
from controlplane.web.overview.fleet import fleet_rows, summary
from controlplane.web.overview.hands import hands
from controlplane.web.overview.spans import SPANS, Span
from controlplane.web.pages.near import near_card

USAGE, TOKENS, POLICIES = "usage.view_usagerow", "projects.view_token", "policies.view_policy"


def dashboard_callback(request: HttpRequest, context: dict[str, Any]) -> dict[str, object]:
    """Return the template context of the first page, with the panels that the user may see."""
    now, user = timezone.now(), request.user
    span = SPANS.get(request.GET.get("range", ""), SPANS["1h"])
    projects = None if is_operator(user) else projects_of(user)
    seen: dict[str, object] = {"now": now, "span": span, "spans": SPANS.values()}
    if is_member(user) and user.has_perm(USAGE):
        seen |= _decisions(projects, user, span, now)
    if user.has_perms((USAGE, TOKENS)):
        seen["near"] = near_card(request)
    if is_operator(user):
        # The fleet and the steps are those of the installation, with all its projects.
        seen |= _installation(span, now)
    if is_member(user):
        seen["hands"] = hands(request, now)
        seen["ending"] = ending(user, projects_of(user), now)
    return context | seen | {"sees_nothing": not is_member(user)}


@optional.optional(optional.USAGE, lambda *_: {})
def _decisions(projects: QuerySet[Project] | None, user: Any, span: Span, now: datetime) -> dict[str, object]:
    """Return the panels that count decisions in these projects, or in all for None."""
    rows, sums = decisions.rows_of(projects, span, now), decisions.sums_of(projects, span, now)
    series = decisions.series_of(sums, span, now)
    totals = decisions.totals_of(point.counts for point in series)
    panels = {
        "totals": totals,
        "denied_share": decisions.compared(totals, sums, span, now),
        "shadow_limits": decisions.shadow_limits(projects),
        "chart": chart.chart(series),
        "rows": chart.table(series, span),
        "chart_description": decisions.described(totals, span),
        "urls": {
            name: list_url(UsageRow, f"?{query}&{span.query(now)}")
            for name, query in (
                ("allowed", decisions.ALLOWED),
                ("denied", decisions.DENIED),
                ("would_deny", decisions.WOULD_DENY),
                ("limits", "of=limits&o=-7"),
            )
        },
        "shadow_url": list_url(Policy),
    }
    if user.has_perm(TOKENS):
        panels["denied_tokens"] = decisions.most_denied_tokens(rows, names_limits=user.has_perm(POLICIES))
    if user.has_perm(POLICIES):
        panels["denied_limits"] = decisions.most_denying_limits(rows)
    return panels


def _installation(span: Span, now: datetime) -> dict[str, object]:
    """Return the panels for operators."""
    fleet, lost = fleet_now(), lost_now(now)
    rows = fleet_rows(fleet, lost, now)
    return {
        "first_steps": first_steps(now),
        "fleet_summary": summary(fleet),
        "alone": optional.optional(optional.USAGE, lambda *_: None)(decisions.without_store)(span, now),
        "instances_url": list_url(Instance),
        "fleet": rows,
        "fleet_is_known": not fleet.unknown,
        "more_instances": len(fleet) + len(lost) - len(rows),
    }
