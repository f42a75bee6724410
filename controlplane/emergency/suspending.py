"""Suspend and resume on the pages of tokens and projects."""

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.contrib.filters.admin import DropdownFilter

from controlplane.access.scope import EDITOR, may
from controlplane.adminkit.dialogs import action
from controlplane.adminkit.forms import ReasonDialog
from controlplane.adminkit.site import badge, change_url, done
from controlplane.emergency.actions import resume, suspend
from controlplane.emergency.models import is_suspended
from controlplane.projects.models import Project


class SuspendedFilter(DropdownFilter):
    """A filter by whether a row is suspended."""

    title = "suspension"
    parameter_name = "suspended"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "suspended"), ("no", "not suspended")]

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        if self.value() == "yes":
            return rows.exclude(suspension=None)
        return rows.filter(suspension=None) if self.value() == "no" else rows


class Suspendable:
    """A mixin for a page of tokens or projects, which suspends and resumes them. Its actions are in ACTIONS."""

    ACTIONS = ("suspend", "resume")

    def _may_suspend(self, request: HttpRequest, object_id: Any, *, suspended: bool) -> bool:
        row = self.get_queryset(request).select_related("suspension").filter(pk=self.key_of(object_id)).first()
        if row is None or is_suspended(row) is not suspended:
            return False
        return may(request.user, EDITOR, row.pk if isinstance(row, Project) else row.project_id)

    def has_suspend_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may_suspend(request, object_id, suspended=False)

    def has_resume_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may_suspend(request, object_id, suspended=True)

    @action(
        description="Suspend",
        permissions=["suspend"],
        icon="pause_circle",
        dialog={
            "title": "Suspend for now",
            "description": "Every proxy refuses it within a second, until somebody resumes it. Nothing else changes.",
            "form_class": ReasonDialog,
            "form_submit_text": "Suspend",
        },
    )
    def suspend(self, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        with self.changing(request, form.cleaned_data["reason"]) as tx:
            row = self.present(request, object_id)
            suspend(tx, row)
            self.message_user(request, f"{row} is suspended.")
        return done(change_url(row))

    @action(
        description="Resume",
        permissions=["resume"],
        icon="play_circle",
        dialog={
            "title": "Resume",
            "description": "Every proxy lets it in again within a second, under the limits that apply to it.",
            "form_class": ReasonDialog,
            "form_submit_text": "Resume",
        },
    )
    def resume(self, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        with self.changing(request, form.cleaned_data["reason"]) as tx:
            row = self.present(request, object_id)
            if is_suspended(row):
                resume(tx, row.suspension)
                self.message_user(request, f"{row} is resumed.")
        return done(change_url(row))


def with_suspension(state: str, row: Any) -> str:
    """Return the badge of a row's state, or, while it is suspended, one that says so."""
    return badge("suspended", "bad") if is_suspended(row) else state
