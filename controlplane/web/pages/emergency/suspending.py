"""Suspend and resume on the pages of tokens and projects."""

from datetime import datetime
from functools import partial
from typing import Any

from django import forms
from django.contrib.admin.utils import unquote
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminSelectWidget

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.instants import exact
from controlplane.objects.emergency.actions import resume, suspend
from controlplane.objects.emergency.models import Suspended, is_suspended, suspended
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import may
from controlplane.objects.projects.models import Project, Token
from controlplane.web.kit import ends
from controlplane.web.kit.dialogs import Asking, Done, Page, RowAction, in_one_change
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.parts import Filter
from controlplane.web.kit.site import badge

ENDS = (ends.HOUR, ends.TODAY, ends.FRIDAY)
ENDLESS = "When somebody resumes it"


def end_choices() -> list[tuple[str, str]]:
    """Return the usual ends of a suspension with the time of each, in the zone of the user."""
    now, zone = timezone.now(), timezone.get_current_timezone()
    times = [(name, timezone.localtime(ends.quick_end(name, now, zone), zone)) for name in ENDS]
    return [("", ENDLESS), *((name, f"{ends.NAMES[name]} ({at:%a %d %b, %H:%M})") for name, at in times)]


class EndField(forms.ChoiceField):
    """A field whose value is the end of a suspension, or None if it has no end."""

    def __init__(self, **options: Any) -> None:
        fixed = {"choices": end_choices, "required": False, "label": "Ends", "widget": UnfoldAdminSelectWidget}
        super().__init__(**{**fixed, **options})

    def clean(self, value: Any) -> datetime | None:
        name = super().clean(value)
        return ends.quick_end(name, timezone.now(), timezone.get_current_timezone()) if name else None


class SuspendDialog(ReasonDialog):
    """A dialog that asks until when something is suspended, and why."""

    ends_at = EndField()
    field_order = ["ends_at", "reason"]


def until(end: datetime | None) -> str:
    """Return the end of a suspension or of a broken glass in words, or an empty string without one."""
    zone = timezone.get_current_timezone()
    return f" until {ends.in_words(end, timezone.now(), zone)}" if end else ""


def with_suspended(rows: QuerySet[Any], chosen: str, request: HttpRequest) -> QuerySet[Any]:
    if chosen == "yes":
        return rows.filter(suspended(timezone.now()))
    return rows.exclude(suspended(timezone.now())) if chosen == "no" else rows


SUSPENDED_FILTER = Filter(
    name="suspended",
    title="suspension",
    choices=[("yes", "suspended"), ("no", "not suspended")],
    narrow=with_suspended,
)


def _may(page: Page, request: HttpRequest, object_id: str, *, suspended: bool) -> bool:
    row = page.get_queryset(request).select_related("suspension").filter(pk=unquote(object_id)).first()
    if row is None or is_suspended(row, timezone.now()) is not suspended:
        return False
    return may(request.user, EDITOR, row.pk if isinstance(row, Project) else row.project_id)


def _suspend(tx: OpenChange, row: Token | Project, given: dict[str, Any]) -> Done:
    found = suspend(tx, row, given["ends_at"])
    return Done(f"{row} is suspended{until(found.ends_at)}.")


def _resume(tx: OpenChange, row: Any, given: dict[str, Any]) -> Done:
    if not is_suspended(row, timezone.now()):
        return Done()
    resume(tx, row.suspension)
    return Done(f"{row} is resumed.")


SUSPEND = RowAction(
    name="suspend",
    title="Suspend",
    icon="pause_circle",
    may=partial(_may, suspended=False),
    answer=in_one_change(_suspend),
    dialog=Asking(
        title="Suspend for now",
        description="Proxies refuse it within a second, until the end that you choose, or until somebody resumes it. "
        "Nothing else changes. The page says which instances have it.",
        submit="Suspend",
        form=SuspendDialog,
    ),
)
RESUME = RowAction(
    name="resume",
    title="Resume",
    icon="play_circle",
    may=partial(_may, suspended=True),
    answer=in_one_change(_resume),
    dialog=Asking(
        title="Resume",
        description="Proxies let it in again within a second, under the limits that apply to it.",
        submit="Resume",
    ),
)


def with_suspension(state: str, row: Any) -> str:
    """Return the badge of a row's state, or, while it is suspended, one that says so, and until when."""
    return suspension_badge(row.suspension) if is_suspended(row, timezone.now()) else state


def suspension_badge(row: Suspended) -> str:
    """Return a badge that says that something is suspended, with its end and its reason."""
    end = f"until {exact(row.ends_at)}" if row.ends_at else "until somebody resumes it"
    shown = badge("suspended", "bad")
    return format_html('<span title="{}">{}<span class="sg-small">{}</span></span>', row.reason, shown, end)
