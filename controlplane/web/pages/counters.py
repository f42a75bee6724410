"""The present counters on the page of a token or project, and the action that resets them."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.functional import lazy
from unfold.widgets import UnfoldAdminSelectWidget

from controlplane.core.instants import exact, whole
from controlplane.core.money import permits, quantity
from controlplane.core.optional import COUNTERS, optional
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.scope import is_operator
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain import live_counters
from controlplane.operations.explain.emergencies import glass_at
from controlplane.operations.explain.words import duration
from controlplane.traffic.usage import units
from controlplane.web.kit.amounts import counts_nothing
from controlplane.web.kit.dialogs import Asking, Page, RowAction
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import Panel, View
from controlplane.web.kit.site import change_url, done
from enforcement.model.limit_fields import attribute
from enforcement.store.client import STORE_ERRORS
from enforcement.store_calls.inspection import LiveCounter

# In per cent of a quota. Counters that have used as much come first.
NEAR = 80
# A window that ends within this time needs no words of its own.
LONG = timedelta(hours=1)


class ResetDialog(ReasonDialog):
    limit = forms.ModelChoiceField(
        queryset=Limit.objects.none(),
        required=False,
        empty_label="all its own limits",
        widget=UnfoldAdminSelectWidget,
    )
    field_order = ["limit", "reason"]
    model: type[Token] | type[Project]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        holder = self.model.objects.filter(pk=unquote(self.object_id or "")).first()
        policies = [holder.policy_id] if holder else []
        if isinstance(holder, Token):
            policies.append(holder.project.policy_id)
        elif holder:
            policies.append(holder.anonymous_policy_id)
        self.fields["limit"].queryset = Limit.objects.filter(policy__in=policies).select_related("policy")


class ResetTokenDialog(ResetDialog):
    model = Token


class ResetProjectDialog(ResetDialog):
    model = Project


def reset(page: Page, request: HttpRequest, form: ResetDialog, object_id: str) -> HttpResponse:
    holder = page.model._default_manager.get(pk=unquote(object_id))
    limit = form.cleaned_data["limit"]
    try:
        with page.changing(request, form.cleaned_data["reason"]) as tx:
            # Only read when it is shown, because the counters are deleted after the commit.
            page.message_user(request, lazy(_words, str)(live_counters.reset(tx, holder, limit), holder))
    except STORE_ERRORS:
        messages.error(request, "The store is unavailable. Nothing was reset.")
    except live_counters.ResetUnfinished:
        text = "The reset is recorded but not finished, because the store or the database became unavailable."
        messages.error(request, f"{text} Reset the counters again.")
    except live_counters.Forgotten:
        messages.error(request, "This token expired long ago and has no counters. Nothing was reset.")
    return done(change_url(holder))


def resetting(form: type[ResetDialog]) -> RowAction:
    """Return an action that resets counters, with a dialog that lists the limits of a token or project."""
    return RowAction(
        name="reset_counters",
        title="Reset counters",
        icon="restart_alt",
        answer=reset,
        dialog=Asking(
            title="Reset counters",
            description="The full quota is available again at once, for all proxies. Counters of limits that are "
            "partitioned by attributes of requests are not reset. They end with their window.",
            submit="Reset counters",
            form=form,
        ),
    )


def _words(done: live_counters.Resetting, holder: Token | Project) -> str:
    return f"{done.count} counter{'' if done.count == 1 else 's'} of {holder} reset."


def counters_view(page: PartsPage, request: HttpRequest, object_id: str) -> HttpResponse:
    """Return a response with only the rows of the table, which the page inserts, or with status 404."""
    holder = page.get_queryset(request).filter(pk=page.key_of(object_id)).first()
    if holder is None or not page.has_view_permission(request, holder):
        return HttpResponse(status=404)
    now = timezone.now()
    context: dict[str, Any] = {"now": now, "sees_all": is_operator(request.user), "glass": glass_at(now)}
    context |= _live(holder, context)
    response = render(request, "admin/sluicegate/live_rows.html", context)
    response["Cache-Control"] = "no-store"
    return response


# The present counters of a token or project, whose rows the page reads again and again from the view.
LIVE_COUNTERS = Panel[Any](name="live", template="admin/sluicegate/live.html", answer=lambda request, row: row)
COUNTERS_VIEW = View(path="<path:object_id>/counters/", name="counters", answer=counters_view)


@optional(COUNTERS, lambda *_: {"away": True})
def _live(holder: Token | Project, context: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows of the counters of a holder."""
    try:
        rows = rows_of(holder, live_counters.counters_of(holder))
    except live_counters.Forgotten:
        return {"rows": []}
    return {"rows": rows, "notes": [] if context["glass"] else notes_of(rows, context["now"], context["sees_all"])}


def rows_of(holder: Token | Project, found: list[LiveCounter]) -> list[dict[str, Any]]:
    """
    Return what the template shows of each counter: first those near their limit, then those of the token, of the
    project and of everything.
    """
    policies = {policy.slug: policy for policy in Policy.objects.filter(slug__in={one.policy for one in found})}
    overrides = Override.objects.select_related("limit").in_bulk({one.override for one in found if one.override})
    project = holder.project if isinstance(holder, Token) else holder
    shared = project.tokens.live(timezone.now()).count()
    holders = {
        "global": "every request",
        "project": f"project {project}, shared by {shared:,} token{'' if shared == 1 else 's'}",
        "anonymous": "requests without a token",
        "token": "this token",
    }
    rows, idle = [], units.idle(one.unit for one in found)
    for counter in found:
        policy = policies.get(counter.policy)
        more = {"holder": holders[counter.scope], "policy_url": change_url(policy) if policy else ""}
        more |= {"counts_nothing": counts_nothing(counter.unit) if counter.unit in idle else ""}
        rows.append({**row_of(counter), **more, "source": source_of(overrides.get(counter.override or ""))})
    order = ("token", "project", "anonymous", "global")
    return sorted(rows, key=lambda row: (-row["share"] if row["near"] else 0, order.index(row["counter"].scope)))


def notes_of(rows: list[dict[str, Any]], now: datetime, sees_all: bool) -> list[dict[str, str]]:
    """
    Return what the template says above the table: which limits deny now, and of which long windows most is used.

    Args:
        sees_all: Whether the user may know how much of a global limit is used.
    """
    seen = [row for row in rows if row["counter"].mode != "shadow" and (sees_all or row["counter"].scope != "global")]
    full = [{"kind": "bad", "icon": "block", **_denying(row, now)} for row in seen if row["full"]]
    near = [row for row in seen if row["near"] and not row["full"] and _end_of(row["counter"], now, LONG)]
    return full + [{"kind": "warn", "icon": "warning", **_running_out(row, now)} for row in near]


def _denying(row: dict[str, Any], now: datetime) -> dict[str, str]:
    counter = row["counter"]
    name = f"{counter.policy} / {counter.limit}"
    lead = f"{name} denies now."
    if counter.quota == 0:
        return {"lead": lead, "text": "Its quota is 0."}
    if end := _end_of(counter, now):
        lead, again = f"{name} denies until {exact(end)}.", f"It has room again in {row['reset']}."
    elif counter.reset_ms is None:
        again = "It never resets."
    else:
        again = f"Room comes back little by little, all of it in {row['reset']}."
    return {"lead": lead, "text": f"{row['used']} of {row['quota']} are used. {again}"}


def _running_out(row: dict[str, Any], now: datetime) -> dict[str, str]:
    counter, end = row["counter"], _end_of(row["counter"], now)
    lead = f"{counter.policy} / {counter.limit} is {row['share']} % used."
    until = f" until {exact(end)}, which is in {row['reset']}" if end else ""
    return {"lead": lead, "text": f"{row['left']} of {row['quota']} are left{until}."}


def _end_of(counter: LiveCounter, now: datetime, least: timedelta = timedelta(0)) -> datetime | None:
    """Return the end of a fixed window that is at least *least* away, or None without one."""
    if counter.algorithm != "fixed_window" or counter.reset_ms is None:
        return None
    left = timedelta(milliseconds=counter.reset_ms)
    return whole(now + left) if left >= least else None


def source_of(override: Override | None) -> str:
    """Return in words until when an override sets the quota, and that of the policy, or "" for the policy itself."""
    if override is None:
        return ""
    until = f"until {exact(override.ends_at)}" if override.ends_at else "without an end"
    return f"{until} · policy says {permits(override.limit.quota, override.limit.unit)}"


def row_of(counter: LiveCounter) -> dict[str, Any]:
    """Return the values that the template shows for one counter as a new dictionary."""
    share = None
    if counter.used is not None and counter.remaining is not None and counter.quota:
        whole = max(counter.quota, counter.used + counter.remaining) if counter.rollover else counter.quota
        # Rounded down, as in the list of those that are near a limit, so that 100 % says that nothing is left.
        share = min(100, 100 * counter.used // whole)
    return {
        "counter": counter,
        "share": share,
        "near": share is not None and share >= NEAR,
        "partitions": [attribute(name) for name in counter.partition_by if name not in counter.labels],
        "reset": duration(-(-counter.reset_ms // 1000)) if counter.reset_ms else "—",
        "full": counter.remaining == 0,
        # As people read them. The unit is in the quota.
        "used": _permits(counter.used, counter.unit),
        "quota": quantity(counter.quota, counter.unit),
        "left": _permits(counter.remaining, counter.unit),
        "carried": _permits(counter.rollover, counter.unit),
        "leased": _permits(counter.unused_max, counter.unit),
        "shared_left": _permits(counter.values.remaining if counter.values else None, counter.unit),
    }


def _permits(number: int | None, unit: str) -> str:
    """Return permits as people read them, or an empty string if there are none to tell of."""
    return "" if number is None else permits(number, unit)
