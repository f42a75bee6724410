"""The first page of the admin, with the decisions, the health of the fleet, and what needs attention."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

from django.conf import settings
from django.db.models import Min, Model, QuerySet, Sum
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from controlplane.access.scope import is_member, is_operator, projects_of
from controlplane.adminkit.site import badge, change_url, instant, link_to, list_url
from controlplane.core import store
from controlplane.explain.panels import near_card
from controlplane.fleet.admin import state_of
from controlplane.fleet.heartbeats import Fleet, fleet_now
from controlplane.fleet.models import DEGRADED, OK, Instance
from controlplane.policies.models import Limit, Policy
from controlplane.projects.models import Project, Token
from controlplane.publishing import publisher
from controlplane.publishing.models import OutboxEntry
from controlplane.usage import checkpoints
from controlplane.usage.models import UsageRow
from controlplane.usage.periods import start_of
from enforcement.control.instances import PROBLEMS
from enforcement.store.client import STORE_ERRORS

TOP = 5
EXPIRING = timedelta(days=7)
INSTANCES_SHOWN = 12
COUNTS = ("allowed", "denied", "would_deny")

# The permissions that a panel asks for, which are those of the pages from which it shows something.
USAGE, TOKENS, INSTANCES = "usage.view_usagerow", "projects.view_token", "fleet.view_instance"
PANELS = {
    **dict.fromkeys(("span", "spans", "series", "totals", "chart", "chart_description", "would_deny_url"), (USAGE,)),
    "denied_tokens": (USAGE, TOKENS),
    "denied_limits": (USAGE, "policies.view_policy"),
    **dict.fromkeys(("fleet", "fleet_is_known", "more_instances"), (INSTANCES,)),
    "expiring": (TOKENS,),
}
# Whoever needs no permission is everybody.
assert all(PANELS.values())


@dataclass(frozen=True, slots=True)
class Span:
    """A range of time that ends now, divided into steps of a period in which usage is counted."""

    name: str
    title: str
    period: str
    step: timedelta
    steps: int
    label: str

    def starts(self, now: datetime) -> list[datetime]:
        """Return the start of each step up to that of *now*, oldest first."""
        last = start_of(self.period, now)
        return [last - self.step * back for back in reversed(range(self.steps))]


SPANS = {
    span.name: span
    for span in (
        Span("1h", "Last hour", "minute", timedelta(minutes=1), 60, "%H:%M"),
        Span("24h", "Last 24 hours", "hour", timedelta(hours=1), 24, "%H:%M"),
        Span("7d", "Last 7 days", "hour", timedelta(hours=1), 7 * 24, "%a %H:%M"),
        Span("30d", "Last 30 days", "day", timedelta(days=1), 30, "%d %b"),
    )
}


def dashboard_callback(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Return the template context of the first page, with the panels that the user may see."""
    now, user = timezone.now(), request.user
    span = SPANS.get(request.GET.get("range", ""), SPANS["1h"])
    rows = UsageRow.objects.filter(period=span.period, at__gte=span.starts(now)[0])
    if not is_operator(user):
        rows = rows.filter(project_id__in=projects_of(user).values("pk"))
    series = series_of(rows, span, now)
    totals = {name: sum(point[name] for point in series) for name in COUNTS}
    fleet = fleet_now()
    health = [store_health(), outbox_health(now), *quota_health(now), *fleet_health(fleet), *limit_health(fleet)]
    panels = {
        "span": span,
        "spans": SPANS.values(),
        "series": [point for point in series if any(point[name] for name in COUNTS)],
        "totals": totals,
        "chart": chart(series, span),
        "chart_description": chart_description(totals, span),
        # Sorted by the column "Would deny", the eighth.
        "would_deny_url": list_url(UsageRow, f"?of=limits&period={span.period}&o=-8"),
        "denied_tokens": denied_tokens(rows),
        "denied_limits": denied_limits(rows),
        "fleet": fleet_rows(fleet),
        "fleet_is_known": not fleet.unknown,
        "more_instances": max(len(fleet) - INSTANCES_SHOWN, 0),
        "expiring": expiring_tokens(now, projects_of(user)),
    }
    seen = {name: value for name, value in panels.items() if user.has_perms(PANELS[name])}
    if user.has_perms((USAGE, TOKENS)):
        seen["near"] = near_card(request)
    if is_operator(user):  # the health and the steps are those of the installation, with all its projects
        seen |= {"health": health, "steps": first_steps(fleet)}
    return context | seen | {"sees_nothing": not is_member(user)}


def series_of(rows: QuerySet[UsageRow], span: Span, now: datetime) -> list[dict[str, Any]]:
    """Return a list with a dictionary of the counted decisions for every step, also for those without usage."""
    whole = rows.filter(policy_id="", limit_name="")
    sums = {row["at"]: row for row in whole.values("at").annotate(**{name: Sum(name) for name in COUNTS})}
    nothing = dict.fromkeys(COUNTS, 0)
    return [{**nothing, **sums.get(at, {}), "at": at, "label": at.strftime(span.label)} for at in span.starts(now)]


def chart(series: list[dict[str, Any]], span: Span) -> dict[str, str]:
    """Return the data and options of a stacked bar chart as JSON, which the theme's script reads."""
    # A request that a shadow limit would have denied was allowed, so the first two parts of a bar are its allowed ones.
    parts = [
        ("allowed", "var(--sg-allowed)", [point["allowed"] - point["would_deny"] for point in series]),
        ("allowed, would deny", "var(--sg-would-deny)", [point["would_deny"] for point in series]),
        ("denied", "var(--sg-denied)", [point["denied"] for point in series]),
    ]
    datasets = [
        {"label": label, "data": data, "backgroundColor": colour, "stack": "decisions"} for label, colour, data in parts
    ]
    axis = {"stacked": True, "grid": {"display": False}, "ticks": {"color": "#6b7a90", "maxTicksLimit": 8}}
    options = {
        "animation": False,
        "responsive": True,
        "maintainAspectRatio": False,
        "plugins": {"legend": {"display": False}},
        "scales": {
            "x": {**axis, "ticks": {**axis["ticks"], "maxRotation": 0}},
            "y": {**axis, "grid": {"display": True}, "beginAtZero": True, "ticks": {**axis["ticks"], "precision": 0}},
        },
    }
    labels = [point["label"] for point in series]
    return {"data": json.dumps({"labels": labels, "datasets": datasets}), "options": json.dumps(options)}


def chart_description(totals: dict[str, int], span: Span) -> str:
    """Return the sums in words, for people who do not see the chart."""
    would_deny = f"of which {totals['would_deny']:,} would be denied by shadow limits, " if totals["would_deny"] else ""
    return f"{totals['allowed']:,} allowed, {would_deny}{totals['denied']:,} denied, {span.title.lower()}"


def denied_tokens(rows: QuerySet[UsageRow]) -> list[dict[str, Any]]:
    """Return the tokens with most denials, each as a dictionary with a link and the counts."""
    whole = rows.filter(policy_id="", limit_name="").exclude(token_id="")
    top = _most_denied(whole.values("token_id"))
    known = Token.objects.select_related("project").in_bulk([row["token_id"] for row in top])
    return [row | {"link": _link(known, row["token_id"])} for row in top]


def denied_limits(rows: QuerySet[UsageRow]) -> list[dict[str, Any]]:
    """Return the limits with most denials, each as a dictionary with a link to its policy and the counts."""
    top = _most_denied(rows.exclude(limit_name="").values("policy_id", "limit_name"))
    known = Policy.objects.in_bulk([row["policy_id"] for row in top])
    return [row | {"link": _link(known, row["policy_id"])} for row in top]


def _most_denied(rows: Any) -> list[dict[str, Any]]:
    sums = rows.annotate(denied=Sum("denied"), allowed=Sum("allowed")).filter(denied__gt=0)
    top = list(sums.order_by("-denied")[:TOP])
    most = max((row["denied"] for row in top), default=1)
    return [row | {"share": round(100 * row["denied"] / most)} for row in top]


def _link(known: dict[str, Model], key: str) -> str:
    """Return a link to the row with this id, or the id if the row is deleted."""
    return link_to(known[key]) if key in known else key


def store_health() -> dict[str, Any]:
    """Ask the store, and return a row that says whether it responds and has the last revision."""
    began = time.perf_counter()
    try:
        state = store.StoreState.read(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except STORE_ERRORS as exc:
        detail = f"{store.reason_of(exc)} Changes are saved, and published when it is back."
        return _fact(
            "Store", badge("not reachable", "bad"), f"{detail} Until then, proxies decide by each limit's rule."
        )
    detail = f"response time {(time.perf_counter() - began) * 1000:.1f} ms"
    last = publisher.last_state()
    if state.name != last:
        return _fact("Store", badge(f"at {state.name}", "warn"), f"SQL is at {last}; {detail}")
    return _fact("Store", badge("reachable", "good"), f"{last}, {detail}")


def outbox_health(now: datetime) -> dict[str, Any]:
    """Return a row that says how many changes are not published yet, if any, and how old the oldest is."""
    pending = OutboxEntry.objects.filter(revision=None)
    count, oldest = pending.count(), pending.aggregate(at=Min("created_at"))["at"]
    url = list_url(OutboxEntry)
    if not count:
        return _fact("Publishing", badge("nothing pending", "good"), "Every change is in the store.", url)
    return _fact("Publishing", badge(f"{count} pending", "warn"), instant(oldest, now), url)


def quota_health(now: datetime) -> Iterable[dict[str, Any]]:
    """
    Yield a row with the age of the last checkpoint, or nothing without durable counters. A store that loses its data
    admits the requests since then once more.
    """
    if not checkpoints.needed():
        return
    run = checkpoints.last_run()
    if run is None:
        yield _fact("Quotas", badge("not saved yet", "warn"), "No worker has saved the counters of long windows.")
        return
    late = now - run.at > checkpoints.LATE
    detail = format_html("{} counters of a day or longer, saved {}", f"{run.counters:,}", instant(run.at, now))
    yield _fact("Quotas", badge("late", "bad") if late else badge("saved", "good"), detail)


def fleet_health(fleet: Fleet) -> Iterable[dict[str, Any]]:
    """Yield rows that say how many instances run the last revision, and how many are degraded."""
    url, last = list_url(Instance), publisher.last_revision()
    if fleet.unknown:
        ran = f"{len(fleet)} ran when it was last reached. " if fleet else ""
        detail = f"{ran}Heartbeats come through the store, so nobody knows which instances run."
        yield _fact("Fleet", badge("unknown", "warn"), detail, url)
        return
    if not fleet:
        yield _fact("Fleet", badge("no live instance", "warn"), "No process with the library sends a heartbeat.", url)
        return
    current = sum(instance.revision >= last for instance in fleet)
    degraded = sum(instance.state == DEGRADED for instance in fleet)
    all_current = badge(f"{current} of {len(fleet)} current", "good" if current == len(fleet) else "warn")
    yield _fact("Fleet", all_current, f"run revision {last}", url)
    problems = sorted({name for instance in fleet for name in instance.problems})
    detail = "These instances decide without the store." if degraded else "Every instance reaches the store."
    if problems:
        detail = f"{'; '.join(PROBLEMS[name] for name in problems)}.".capitalize()
    yield _fact(
        "Degraded", badge(f"{degraded} degraded" if degraded else "none", "bad" if degraded else "good"), detail, url
    )


def meter_health(fleet: list[Instance]) -> Iterable[dict[str, Any]]:
    """
    Yield one row on the limits that count nothing, because instances charge no cost in their unit, if there are any.
    """
    names = sorted({name for instance in fleet for name in instance.unmetered})
    if names:
        shown = ", ".join(names[:TOP]) + (f" and {len(names) - TOP} more" if len(names) > TOP else "")
        detail = f"{shown}: requests give no cost in their unit, so they admit everything."
        yield _fact("Limits", badge(f"{len(names)} unmetered", "warn"), detail, list_url(Instance))


def support_health(fleet: list[Instance]) -> Iterable[dict[str, Any]]:
    """Yield one row on the limits for which instances refuse requests, because they cannot enforce them, if any."""
    names = sorted({row["limit"] for instance in fleet for row in instance.unsupported})
    if names:
        shown = ", ".join(names[:TOP]) + (f" and {len(names) - TOP} more" if len(names) > TOP else "")
        detail = f"{shown}: some instances cannot enforce them, so they refuse requests."
        yield _fact("Limits", badge(f"{len(names)} unsupported", "warn"), detail, list_url(Instance))


def limit_health(fleet: list[Instance]) -> Iterable[dict[str, Any]]:
    """Yield the rows of :func:`meter_health`, :func:`support_health` and :func:`cap_health`."""
    yield from meter_health(fleet)
    yield from support_health(fleet)
    yield from cap_health(fleet)


def cap_health(fleet: list[Instance]) -> Iterable[dict[str, Any]]:
    """Yield a row for each project in which a limit recently had more values than the project's cap allows."""
    full = sorted({limited for instance in fleet for limited in instance.overflowing})
    projects = Project.objects.in_bulk({project for project, _, _ in full})
    slugs = dict(Policy.objects.filter(pk__in={policy for _, policy, _ in full}).values_list("pk", "slug"))
    for project, limits in groupby(full, key=itemgetter(0)):
        if project in projects:
            names = ", ".join(f"{slugs.get(policy, policy)}/{name}" for _, policy, name in limits)
            detail = f"{names}: more values than the cap allows, so the other values share one counter."
            yield _fact("Values", badge(f"{projects[project]} is full", "warn"), detail, change_url(projects[project]))


def _fact(name: str, state: str, detail: str, url: str = "") -> dict[str, Any]:
    return {"name": name, "state": state, "detail": detail, "url": url}


def fleet_rows(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the first rows of the table of instances as dictionaries, those with a problem first."""
    # Instances with a problem come first, because a large fleet does not fit here.
    worst = sorted(fleet, key=lambda instance: (instance.state == OK, instance.revision, instance.id))
    return [
        {
            "link": link_to(row),
            "host": row.host,
            "revision": row.revision,
            "state": state_of(row, None if fleet.unknown else True),
            "version": row.version,
        }
        for row in worst[:INSTANCES_SHOWN]
    ]


def expiring_tokens(now: datetime, projects: QuerySet[Project]) -> list[dict[str, Any]]:
    """
    Return the live tokens of *projects* that expire soonest within EXPIRING, each as a dictionary with links and its
    end.
    """
    ending = Token.objects.live(now).filter(expires_at__lte=now + EXPIRING, project__in=projects)
    ending = ending.select_related("project")
    return [
        {"link": link_to(token), "project": link_to(token.project), "ends": instant(token.expires_at, now)}
        for token in ending.order_by("expires_at")[:TOP]
    ]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the installation, with the button that leads to it."""

    title: str
    detail: str
    done: bool
    url: str
    button: str


def first_steps(fleet: list[Instance]) -> list[dict[str, Any]]:
    """Return all steps of a new installation, done or not, or an empty list if all of them are done."""
    decided = UsageRow.objects.exists()
    first, detail = "Send a request", "The first decision appears within a minute."
    steps = [
        _adding(Project, "Create a project", "The tenant that owns tokens.", Project.objects.exists()),
        _adding(Policy, "Create a policy with a limit", "Such as 100 requests per minute.", Limit.objects.exists()),
        _adding(Token, "Create a token", "Give it the policy. Its secret is shown once.", Token.objects.exists()),
        Step(
            "Start a proxy with the library",
            "It appears here by itself.",
            bool(fleet) or decided,
            list_url(Instance),
            "See instances",
        ),
        Step(first, detail, decided, list_url(UsageRow), "See usage"),
    ]
    return [] if all(step.done for step in steps) else [asdict(step) for step in steps]


def _adding(model: type[Model], title: str, detail: str, done: bool) -> Step:
    """Return the step whose button leads to the form of a new row."""
    app, name = model._meta.app_label, model._meta.model_name
    return Step(title, detail, done, reverse(f"admin:{app}_{name}_add"), f"Add {name}")
