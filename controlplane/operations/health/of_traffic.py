"""What requests show: alerts that fire, bounds that were broken, lost reservations, and denials that jumped."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db.models import Q, Sum

from controlplane.core.optional import PRICES, USAGE, optional
from controlplane.core.periods import start_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.broken import lately as broken_lately
from controlplane.objects.projects.models import Project
from controlplane.operations.alerts import rule_kinds
from controlplane.operations.alerts.acknowledging import subject_of_event
from controlplane.operations.alerts.models import RAISED, AlertEvent
from controlplane.operations.health.condition import Condition, Level, Target, counted, named
from controlplane.traffic.reservations.models import ReservationCount
from controlplane.traffic.usage.models import DecisionCount

BROKEN_LATELY = timedelta(days=1)
# Rules of the other kinds watch what is a condition of its own.
OF_ALERTS = (
    *(rule_kinds.USAGE, rule_kinds.FORECAST, rule_kinds.SPEND),
    *(rule_kinds.DENIALS, rule_kinds.WOULD_DENY, rule_kinds.UNPRICED),
)
MOST_ALERTS = 100
# Denials are compared with those of the day before. A share of fewer requests says little.
JUST_NOW, USUALLY = timedelta(minutes=15), timedelta(hours=24)
LEAST_REQUESTS = 50
JUMP, LEAST_SHARE = 3, 0.05


def of_alerts() -> Iterator[Condition]:
    """Yield a condition of each subject of which an alert fires, with its highest threshold."""
    rows = AlertEvent.objects.filter(state=RAISED, resolved_at=None, kind__in=OF_ALERTS)
    seen = set()
    for event in rows.order_by("-level", "-at", "-id")[:MOST_ALERTS]:
        subject = subject_of_event(event.rule_id, event.subject)
        if subject in seen:
            continue
        seen.add(subject)
        level = Level.URGENT if event.kind == rule_kinds.USAGE and _denies(event) else Level.LOOK
        text, target = str(event.data.get("text", "")).rstrip("."), Target("alerts.AlertEvent", event.pk)
        yield Condition(
            subject, level, event.title, text, "See the alert", target, event.at, event.project_id, event.level
        )


def _denies(event: AlertEvent) -> bool:
    return event.data.get("remaining") == 0 and ", a shadow limit," not in event.title


@optional(PRICES, lambda now: [])
def of_bounds(now: datetime) -> list[Condition]:
    """Return a condition of the models whose bounds were broken within a day, if there are any."""
    rows = broken_lately(now - BROKEN_LATELY)
    if not rows:
        return []
    names = [str(row["model"]) for row in rows]
    fault = (
        f"{'A bound' if len(rows) == 1 else 'Bounds'} of {named(names)} {'was' if len(rows) == 1 else 'were'} broken"
    )
    text = "answers used more than was reserved, so budgets may have been exceeded"
    since = max(at for row in rows if isinstance(at := row["last_at"], datetime))
    return [Condition("bounds", Level.URGENT, fault, text, "See the models", Target("prices.ModelPrice"), since)]


def of_reservations() -> Iterator[Condition]:
    """Yield a condition of each project with reservations that their process has lost."""
    rows = {row.project_id: row for row in ReservationCount.objects.filter(lost__gt=0)}
    for project in Project.objects.filter(pk__in=rows).order_by("slug") if rows else ():
        row = rows[project.pk]
        fault = f"{counted(row.lost, 'reservation')} of {project} {'was' if row.lost == 1 else 'were'} lost"
        text, target = "their estimates stay charged until they are settled", Target("reservations.Reservation")
        subject = f"reservations|{project.pk}"
        deed = "See the reservations"
        yield Condition(subject, Level.LOOK, fault, text, deed, target, row.lost_since, project.pk, row.lost)


@optional(USAGE, lambda now: [])
def of_denials(now: datetime) -> list[Condition]:
    """Return a condition if a much larger share of the requests is denied than in the day before."""
    since = start_of("minute", now - JUST_NOW)
    share, total = _share(Q(period="minute", at__gte=since))
    before, _ = _share(Q(period="hour", at__gte=start_of("hour", now - USUALLY), at__lt=start_of("hour", since)))
    if total < LEAST_REQUESTS or share < max(LEAST_SHARE, JUMP * before):
        return []
    rows = DecisionCount.objects.filter(period="minute", at__gte=since).exclude(policy_id="")
    top = rows.order_by().values("policy_id").annotate(sum=Sum("denied")).order_by("-sum").first()
    most = Policy.objects.filter(pk=top["policy_id"]).values_list("slug", flat=True).first() if top else None
    fault = f"Denials jumped from {100 * before:.1f} to {100 * share:.1f} %"
    target = Target("usage.UsageRow", query="of=limits&o=-7")
    return [Condition("denials", Level.LOOK, fault, f"most by {most}" if most else "", "See who is denied", target)]


def _share(rows: Q) -> tuple[float, int]:
    """Return the denied share of the requests in some counts, and their number."""
    sums = DecisionCount.objects.filter(rows, policy_id="").aggregate(yes=Sum("allowed"), no=Sum("denied"))
    total = (sums["yes"] or 0) + (sums["no"] or 0)
    return ((sums["no"] or 0) / total if total else 0.0), total
