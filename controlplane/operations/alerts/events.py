"""
Which findings are events.

The events of a rule, the end of earlier ones, and the messages about them are one transaction. Whoever decides first
writes when the states were looked at. So of two looks at the same time, or of a worker that was held up, the older one
decides nothing, and each event has one row, one id, and one message a destination.
"""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q

from controlplane.objects.projects.models import Project
from controlplane.operations.alerts.acknowledging import forget, to_be_told
from controlplane.operations.alerts.findings import AlertFinding, Found
from controlplane.operations.alerts.models import RAISED, RESOLVED, AlertEvent, AlertRule
from controlplane.operations.alerts.rule_kinds import KINDS
from controlplane.operations.webhooks.deliveries import body_of, enqueue

KEPT = timedelta(days=90)
# The most events of one decision, so that its transaction is short. The next look decides on the others.
MOST_EVENTS = 500
# A task is stopped before it is so old. So a decision that is further ahead is one of a clock that was set back since.
CLOCK_SET_BACK = timedelta(minutes=2)


def decide(rule: AlertRule, found: Found, now: datetime) -> list[AlertEvent]:
    """
    Save the events that follow from what was found, with their messages, and return them.

    Args:
        now: When the look began. Nothing is decided if a later one has decided already, unless the clock was set back.
    """
    is_open = Q(state=RAISED, resolved_at=None)
    if not found.findings and not AlertEvent.objects.filter(is_open, rule=rule).exists():
        return []  # most looks end here, without a transaction, which on SQLite would block other writers
    with transaction.atomic():
        earlier = Q(evaluated_at=None) | Q(evaluated_at__lt=now) | Q(evaluated_at__gt=now + CLOCK_SET_BACK)
        if not AlertRule.objects.filter(earlier, pk=rule.pk, active=True).update(evaluated_at=now):
            return []
        past = _past(rule, found, now)
        by_subject = {finding.subject: finding for finding in found.findings}
        events: list[AlertEvent] = []
        for subject in dict.fromkeys([*by_subject, *past]):
            if len(events) >= MOST_EVENTS:
                break
            events += _of_subject(rule, by_subject.get(subject), past[subject], found, now)
        AlertEvent.objects.bulk_create(events)
        _tell(rule, events)
    return events


def _past(rule: AlertRule, found: Found, now: datetime) -> defaultdict[str, list[AlertEvent]]:
    """Return the raised events that are open, of the present period, or within the cool-down, by subject."""
    subjects = [finding.subject for finding in found.findings]
    periods = {finding.period for finding in found.findings if finding.period}
    cooling = Q(at__gt=now - _cool_down(rule), at__lt=now + _cool_down(rule))
    recent = Q(subject__in=subjects) & (cooling | Q(period__in=periods))
    rows = AlertEvent.objects.filter(Q(resolved_at=None) | recent, rule=rule, state=RAISED)
    past: defaultdict[str, list[AlertEvent]] = defaultdict(list)
    for event in rows.order_by("-at", "-id"):
        past[event.subject].append(event)
    return past


def _cool_down(rule: AlertRule) -> timedelta:
    return timedelta(seconds=rule.cool_down_seconds)


def _of_subject(
    rule: AlertRule, finding: AlertFinding | None, past: list[AlertEvent], found: Found, now: datetime
) -> list[AlertEvent]:
    """Return the new events of one subject. Those of its earlier events that are over are saved as such."""
    still = [event for event in past if event.resolved_at is None]
    over: list[AlertEvent] = []
    # Less than the threshold that was reached is not over. Events say of their end that the lowest one is not reached.
    if still and finding is None:
        if not found.says_over(still[0], now):
            return []
        highest = max(still, key=lambda event: event.level)
        over = [_resolved(highest, now)] if rule.recovery else []
        _close(still, now)
        forget(rule, highest.subject)
        still = []
    if finding is None or not _is_new(rule, finding, past, now):
        return over
    event = _raised(rule, finding, past, now)
    _close([one for one in still if one.period != event.period], now)
    return [*over, event]


def _is_new(rule: AlertRule, finding: AlertFinding, past: list[AlertEvent], now: datetime) -> bool:
    """Return whether there is no event of this level or a higher one in the period or within the cool-down."""
    cool_down, period = _cool_down(rule), _period(finding, past, now)
    # Also of one that is ahead, because the clock was set back.
    return not any(
        one.level >= finding.level and (one.period == period or abs(now - one.at) < cool_down) for one in past
    )


def _period(finding: AlertFinding, past: list[AlertEvent], now: datetime) -> str:
    """Return the key of the period. Without a window, it is when the events began that are open, or now."""
    if finding.period:
        return finding.period
    still = [event for event in past if event.resolved_at is None]
    return still[0].period if still else now.isoformat()


def _raised(rule: AlertRule, finding: AlertFinding, past: list[AlertEvent], now: datetime) -> AlertEvent:
    return AlertEvent(
        rule=rule,
        project_id=finding.project,
        kind=rule.kind,
        subject=finding.subject,
        period=_period(finding, past, now),
        level=finding.level,
        title=finding.title[:500],
        over=finding.over[:500],
        data=dict(finding.data),
        at=now,
        ends_at=finding.ends_at,
        resolved_at=None if KINDS[rule.kind].recovers else now,
    )


def _resolved(event: AlertEvent, now: datetime) -> AlertEvent:
    names = ("rule_id", "project_id", "kind", "subject", "period", "level")
    fields: dict[str, Any] = {name: getattr(event, name) for name in names}
    # The first text asks for something that is done by now.
    data = {**event.data, "text": f"Since {event.at:%Y-%m-%d %H:%M} UTC: {event.title}."}
    title = event.over or f"Over: {event.title}"[:500]
    return AlertEvent(**fields, data=data, state=RESOLVED, title=title, at=now, resolved_at=now)


def _close(events: list[AlertEvent], now: datetime) -> None:
    AlertEvent.objects.filter(pk__in=[event.pk for event in events]).update(resolved_at=now)
    for event in events:
        event.resolved_at = now


def _tell(rule: AlertRule, events: list[AlertEvent]) -> None:
    """Save the messages about events. Those about one event all have its id and the same body."""
    destinations = list(rule.destinations.filter(active=True)) if events else []
    if not destinations:
        return
    events = to_be_told(rule, events, max(event.at for event in events))
    projects = Project.objects.filter(pk__in={event.project_id for event in events})
    slugs = dict[str | None, str](projects.values_list("pk", "slug"))
    for event in events:
        kind = f"alert.{event.kind}.{event.state}"
        about = {"id": event.pk, "rule": rule.name, "project": slugs.get(event.project_id), "state": event.state}
        data = {**about, "level": event.level, "title": event.title, **event.data}
        enqueue(destinations, event.pk, kind, body_of(kind, event.at, data))


def prune(now: datetime) -> int:
    """Delete the events of which the last is over for 90 days and whose period is too, and return their number."""
    old = AlertEvent.objects.filter(at__lt=now - KEPT).exclude(resolved_at=None).exclude(ends_at__gt=now)
    return old.delete()[1].get("alerts.AlertEvent", 0)
