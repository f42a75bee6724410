"""
Pages about the nearest limits: the card of the Overview, the whole list, and a column and filter of tokens and
projects.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from controlplane.core.instants import exact, whole
from controlplane.core.money import permits, quantity
from controlplane.core.optional import COUNTERS, USAGE, optional
from controlplane.core.requests import PerRequest
from controlplane.objects.people.roles import VIEWER
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain import live_counters, near
from controlplane.operations.explain.day import Day, day_of
from controlplane.operations.explain.forecast import Forecast
from controlplane.operations.explain.holders import MOST_COMMANDS, Held, held_by, read
from controlplane.operations.explain.live import Now
from controlplane.operations.explain.question import Reach
from controlplane.operations.explain.words import duration
from controlplane.traffic.usage.models import UsageRow
from controlplane.web.kit.links import statement_url
from controlplane.web.kit.parts import Column, Filter, Panel
from controlplane.web.kit.site import badge, link_to, list_url
from controlplane.web.scope.views import permission_required
from enforcement.model.instants import HOUR_SECONDS

SHOWN = 6
# The most commands for the column of a list of 50 rows, as a part of those of a page. The list of those near has the
# rest.
COLUMN_COMMANDS = 60
TITLE = "Near a limit"
NOT_READ = "not read"


def reach_of(request: HttpRequest) -> Reach:
    """Return what the user may see."""
    projects = projects_of(request.user)
    return Reach(projects, Token.objects.filter(project__in=projects), is_operator(request.user))


def near_card(request: HttpRequest, most: int = SHOWN, candidates: int = near.FEW_CANDIDATES) -> dict[str, Any]:
    """Return the context of the template near.html, with at most *most* rows, from the busiest *candidates*."""
    now = timezone.now()
    found = _near_list(reach_of(request), candidates)
    if found is None:
        return {"away": True, "now": now}
    known = Policy.objects.in_bulk({row.held.rule.policy.id for row in found.rows[:most]})
    rows = [row_of(row, known.get(row.held.rule.policy.id)) for row in found.rows[:most]]
    url = reverse("near-limit")
    return {"rows": rows, "count": len(found.rows), "found": found, "now": now, "url": url, "near": near.NEAR}


@optional(COUNTERS, lambda *_: None)
def _near_list(reach: Reach, candidates: int = near.MOST_CANDIDATES) -> near.NearList | None:
    return near.near_list(reach, timezone.now(), live_counters.client(), MOST_COMMANDS - COLUMN_COMMANDS, candidates)


# Those near a limit whom the user may see, or None if they cannot be read. The query of a filter runs twice.
near_of = PerRequest(lambda request: _near_list(reach_of(request)))


@permission_required(VIEWER)
def near_view(request: HttpRequest) -> HttpResponse:
    """Return the page with everybody who is near a limit and whom the user may see."""
    card = near_card(request, near.MOST_CANDIDATES, near.MOST_CANDIDATES)
    context = {**admin.site.each_context(request), "title": TITLE, "near": card}
    response = TemplateResponse(request, "admin/sluicegate/near_page.html", context)
    response["Cache-Control"] = "no-store"
    return response


def row_of(row: near.Near, policy: Policy | None) -> dict[str, Any]:
    """Return what the template shows of one limit."""
    rule, unit = row.held.rule, row.held.rule.limit.unit
    return {
        "holder": holder_of(row.held),
        "project": row.holder.project.slug if isinstance(row.holder, Token) else "",
        "policy": link_to(policy, policy.slug) if policy else rule.policy.slug,
        "limit": rule.limit.name,
        "shadow": rule.limit.shadow,
        "used": permits(row.now.used, unit),
        "quota": quantity(row.now.quota, unit),
        "percent": percent(row.share),
        "width": min(100, round(100 * row.share)),
        "runs_out": runs_out(row.forecast, row.resets_at, shadow=rule.limit.shadow),
        "basis": row.forecast.basis if row.forecast else "",
        "resets": resets(row.resets_at),
        "admits": admits(row.admits_at),
    }


def holder_of(held: Held) -> SafeString | str:
    if isinstance(held.holder, Token):
        return link_to(held.holder, held.holder.name)
    return link_to(held.holder, f"project {held.holder}") if held.holder else "all requests"


def percent(share: float) -> str:
    """Return a share in per cent, below 100 unless nothing is left."""
    return f"{min(int(100 * share), 99) if share < 1 else round(100 * share)} %"


def runs_out(forecast: Forecast | None, resets_at: Any, *, shadow: bool = False) -> SafeString | str:
    """Return in words when a limit runs out."""
    now = timezone.now()
    if forecast is None:
        return "refills continuously"
    if forecast.at is None:
        return "no, resets first" if resets_at else "no"
    if forecast.at <= now:
        return badge("full, in shadow", "warn") if shadow else badge("full, denying", "bad")
    local = timezone.localtime(forecast.at)
    if forecast.is_vague:
        text = f"about {local:%a %d %b} (± a day)"
    elif local.date() == timezone.localtime(now).date():
        text = f"today, {local:%H:%M}"
    else:
        text = f"{local:%a %d %b, %H:%M}"
    html = '<time datetime="{}" title="{}">{}</time>'
    return format_html(html, forecast.at.isoformat(timespec="seconds"), exact(forecast.at), text)


def resets(at: datetime | None) -> SafeString | str:
    """Return in words in what time a limit resets, or an empty string if it never does."""
    if at is None:
        return ""
    left = max(1, math.ceil((at - timezone.now()).total_seconds()))
    text = f"resets in {duration(left)}"
    if left >= HOUR_SECONDS:
        text += f", {timezone.localtime(whole(at)):%a %d %b, %H:%M}"
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), text)


def admits(at: datetime | None) -> str:
    """Return in words when a limit with nothing left admits again, or an empty string if that is when it resets."""
    return f"admits again in {duration(max(1, math.ceil((at - timezone.now()).total_seconds())))}" if at else ""


def only_near(rows: QuerySet[Any], chosen: str, request: HttpRequest) -> QuerySet[Any]:
    if chosen != "yes":
        return rows
    found = near_of(request)
    if found is None:
        messages.warning(request, "Counters cannot be read now, so nobody knows who is near a limit.")
        return rows.none()
    if found.is_cut:
        active = f"Only the busiest {found.candidates} of those who were active or denied in the last 5 minutes"
        messages.info(request, f"{active} are looked at, or not all of their limits.")
    return rows.filter(pk__in={row.holder.pk for row in found.rows if isinstance(row.holder, rows.model)})


NEAR_FILTER = Filter(
    name="near", title="near a limit", choices=[("yes", f"{near.NEAR:.0%} or more used")], narrow=only_near
)


@optional(COUNTERS, lambda rows: None)
def nearest_of(rows: list[Token | Project]) -> dict[str, tuple[Held, Now] | str] | None:
    """
    Return for each row by its id its own limit that is used most, or None if counters cannot be read.

    A row that the commands did not suffice for has NOT_READ in its place. It must not look like one without a limit.
    """
    now = timezone.now()
    tokens = [row for row in rows if isinstance(row, Token)]
    held = held_by(tokens, [row for row in rows if isinstance(row, Project)], now)
    kind: type = Token if tokens else Project
    own = [one for one in held if isinstance(one.holder, kind)]
    found: dict[str, tuple[Held, Now]] = {}
    for one, count in read(live_counters.client(), own, now, COLUMN_COMMANDS):
        pk = one.key[1]
        if pk not in found or near.share_of(one, count) > near.share_of(*found[pk]):
            found[pk] = one, count
    return {**dict.fromkeys((one.key[1] for one in own), NOT_READ), **found}


def _shown(row: Token | Project, found: dict[str, tuple[Held, Now] | str] | None) -> str:
    """Return the name of the own limit that is nearest to its end, and how much of it is used."""
    result = NOT_READ if found is None else found.get(row.pk, "—")
    if isinstance(result, str):
        return result
    held, count = result
    share = near.share_of(held, count)
    text = f"{held.rule.limit.name} {percent(share)}"
    kind = "bad" if not count.remaining else "warn" if share >= near.NEAR else ""
    return badge(text, kind) if kind else text


NEAREST = Column[Any, Any](
    name="nearest", title="Nearest limit", read=lambda rows, request: nearest_of(list(rows)), show=_shown
)


@dataclass(frozen=True, slots=True)
class UsageDay:
    """The decisions about a row in the last 24 hours, and where there are more of them."""

    day: Day
    url: str
    month_url: str


def usage_day(request: HttpRequest, row: Token | Project | Policy) -> UsageDay | None:
    """Return the decisions about a row, or None if usage cannot be read."""
    day = optional(USAGE, lambda *_: None)(day_of)(row, reach_of(request), timezone.now())
    return UsageDay(day, usage_url(row), month_url(row)) if day else None


def sees_usage(request: HttpRequest) -> bool:
    return request.user.has_perm("usage.view_usagerow")


USAGE_DAY = Panel[Any](name="usage_day", template="admin/sluicegate/usage_day.html", answer=usage_day, may=sees_usage)


def usage_url(row: Token | Project | Policy) -> str:
    """Return the address of the usage of a row by the hour."""
    if isinstance(row, Policy):
        return list_url(UsageRow, f"?period=hour&of=limits&policy_id={row.pk}")
    column = "token_id" if isinstance(row, Token) else "project_id"
    return list_url(UsageRow, f"?period=hour&{column}={row.pk}")


def month_url(row: Token | Project | Policy) -> str:
    """Return the address of the statement of a row in this month."""
    if isinstance(row, Token):
        return statement_url(token=row.pk)
    return statement_url(policy=row.slug) if isinstance(row, Policy) else statement_url(project=row.slug)
