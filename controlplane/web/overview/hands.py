"""What needs a hand, as lines at the top of the first page, which can be acknowledged and muted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any

from django.apps import apps
from django.contrib import messages
from django.contrib.admin.utils import quote
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from controlplane.changes.change.transaction import change
from controlplane.core.instants import exact
from controlplane.core.optional import unread
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import is_member, is_operator, joined, may
from controlplane.operations.alerts import acknowledging
from controlplane.operations.alerts.models import RAISED, Acknowledgement, AlertEvent
from controlplane.operations.health.condition import Condition, Level, Target
from controlplane.operations.health.conditions import LOOKED_AT, Told, health_now, told
from controlplane.web.kit.site import actor_of, instant

TEMPLATE = "admin/sluicegate/hands.html"
SHOWN, NAMED = 5, 8
# Alerts that the menu counts.
MOST_COUNTED = 100
HOUR, MORNING, RESOLVED, OTHER = "hour", "morning", "resolved", "other"
_MORNING = time(8)
OVER = "That is over meanwhile, so nothing was changed."


@dataclass(frozen=True, slots=True)
class Line:
    """One condition as a line, with who has answered it, if somebody has."""

    condition: Condition
    url: str
    may_answer: bool
    said: Acknowledgement | None = None

    @property
    def is_urgent(self) -> bool:
        return self.condition.level is Level.URGENT

    @property
    def when(self) -> str:
        """Since when, as HTML."""
        return instant(self.condition.since) if self.condition.since else ""

    @property
    def sentence(self) -> str:
        return " ".join(filter(None, (self.condition.fault, self.condition.text)))


def hands(request: HttpRequest, now: datetime) -> dict[str, Any]:
    """Return what the template of the lines shows, of the conditions that the user may see."""
    health = health_now(now)
    user = request.user
    found = told(_seen(health.conditions, user), now)
    may_answer = _answers(user)
    lines = [_line(one, may_answer) for one in found.open]
    rest = lines[SHOWN:]
    return {
        "lines": lines[:SHOWN],
        "rest": rest,
        "rest_names": "; ".join(line.condition.fault for line in rest[: NAMED - SHOWN]),
        "rest_more": max(0, len(rest) - (NAMED - SHOWN)),
        "urgent": sum(line.is_urgent for line in lines),
        "to_look_at": sum(not line.is_urgent for line in lines),
        "answered": [
            (name, [_line(one, may_answer, said) for one, said in pairs])
            for name, pairs in (("acknowledged", found.acknowledged), ("muted", found.muted))
            if pairs
        ],
        "is_well": _is_well(found),
        "looked_at": ", ".join(LOOKED_AT) if is_operator(user) else "alerts, caps and reservations of your projects",
        "ends": _ends(now),
        "at": health.at,
    }


def _is_well(found: Told) -> bool:
    """Return whether nothing needs a hand, and everything could be read."""
    return not (found.open or found.acknowledged or found.muted or unread())


def _seen(conditions: Iterable[Condition], user: User | AnonymousUser) -> list[Condition]:
    if is_operator(user):
        return list(conditions)
    projects = set(joined(user)) if is_member(user) else set()
    return [one for one in conditions if one.project in projects]


def _answers(user: User | AnonymousUser) -> Callable[[Condition], bool]:
    """Return a function that says whether the user may acknowledge and mute a condition."""
    everything = is_operator(user)
    return lambda one: everything or (one.project is not None and may(user, EDITOR, one.project))


def _line(one: Condition, may_answer: Callable[[Condition], bool], said: Acknowledgement | None = None) -> Line:
    return Line(one, url_of(one.target), may_answer(one), said)


def url_of(target: Target) -> str:
    """Return the address of what a condition is about."""
    if target.model == "docs":
        return reverse("docs-page", args=[target.pk])
    model = apps.get_model(target.model)
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    if target.pk:
        return reverse(f"{name}_change", args=[quote(target.pk)])
    return reverse(f"{name}_changelist") + (f"?{target.query}" if target.query else "")


def _ends(now: datetime) -> list[tuple[str, str, str]]:
    """Return the usual ends of a mute: their names, what they are, and when that is."""
    times = {name: exact(end_of(name, now)) for name in (HOUR, MORNING)}
    return [
        (HOUR, "For 1 hour", f"until {times[HOUR]}"),
        (MORNING, "Until the morning", times[MORNING]),
        (RESOLVED, "Until it is over", "at most 7 days"),
    ]


def end_of(name: str, now: datetime, given: str = "") -> datetime:
    """
    Return when a mute ends.

    Args:
        name: ``hour``, ``morning`` (8 o'clock in the present zone), ``resolved`` (the longest), or ``other``.
        given: For ``other``, a local time such as "2026-12-08T08:00".
    Raises:
        ValidationError: There is no such end.
    """
    if name == HOUR:
        return now + timedelta(hours=1)
    if name == RESOLVED:
        return now + acknowledging.LONGEST_MUTE
    if name == MORNING:
        local = timezone.localtime(now)
        day = local.date() + timedelta(days=local.time() >= _MORNING)
        return datetime.combine(day, _MORNING, tzinfo=local.tzinfo)
    try:
        found = parse_datetime(given) if name == OTHER else None
    except ValueError:
        found = None
    if found is None:
        raise ValidationError({"until": "Must be a time, such as 2026-12-08T08:00."})
    return timezone.make_aware(found) if timezone.is_naive(found) else found


@never_cache
@require_GET
def hands_view(request: HttpRequest) -> HttpResponse:
    """Return the lines as they are now, which the first page reads every five seconds."""
    return HttpResponse(render_to_string(TEMPLATE, {"hands": hands(request, timezone.now())}, request))


@never_cache
@require_POST
def answer_view(request: HttpRequest) -> HttpResponse:
    """Acknowledge or mute a condition, or take that back, and return to the first page."""
    now, posted = timezone.now(), request.POST
    subject, deed = posted.get("subject", ""), posted.get("deed", "")
    found = next((one for one in _seen(health_now(now).conditions, request.user) if one.subject == subject), None)
    if found is None:
        messages.info(request, OVER)
    elif not _answers(request.user)(found):
        raise PermissionDenied
    else:
        try:
            _answer(request, found, deed, now)
        except ValidationError as exc:
            messages.error(request, " ".join(exc.messages))
    return HttpResponseRedirect(reverse("admin:index"))


def _answer(request: HttpRequest, one: Condition, deed: str, now: datetime) -> None:
    with change(actor=actor_of(request)) as tx:
        if deed == "open":
            acknowledging.take_back(tx, one.subject)
            return
        if deed == Acknowledgement.ACKNOWLEDGED:
            until = None if one.since else now + acknowledging.LONGEST
        elif deed == Acknowledgement.MUTED:
            until = end_of(request.POST.get("end", ""), now, request.POST.get("until", ""))
        else:
            raise ValidationError({"deed": "Must be acknowledged, muted or open."})
        said = Acknowledgement(subject=one.subject, state=deed, fault=one.fault[:500], project_id=one.project)
        said.level, said.weight, said.until = one.level, one.weight, until
        acknowledging.answer(tx, said, now)


def firing_badge(request: HttpRequest) -> str:
    """Return for the menu how many alerts fire that nobody has acknowledged or muted, or an empty string for none."""
    rows = AlertEvent.objects.filter(state=RAISED, resolved_at=None)
    if not is_operator(request.user):
        rows = rows.filter(project__in=joined(request.user))
    pairs = rows.order_by().values_list("rule", "subject").distinct()[:MOST_COUNTED]
    subjects = [acknowledging.subject_of_event(*pair) for pair in pairs]
    known = acknowledging.in_force(subjects, timezone.now()) if subjects else {}
    return str(sum(subject not in known for subject in subjects) or "")
