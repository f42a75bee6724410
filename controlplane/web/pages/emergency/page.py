"""The page on which operators suspend and resume, and break the glass."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.core.instants import exact
from controlplane.core.text import PRINTABLE
from controlplane.objects.emergency.actions import break_glass, end_after, mend_glass, resume, set_end, suspend_value
from controlplane.objects.emergency.models import (
    ALL_PROJECTS,
    BreakGlass,
    EndedSuspension,
    Suspended,
    Suspension,
    concerning,
)
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import is_member, is_operator, may, projects_of
from controlplane.objects.projects.models import Project
from controlplane.operations.health.reached import Reached, sentence
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.web.kit import ends
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import View
from controlplane.web.kit.site import link_to, list_url
from controlplane.web.pages.emergency.suspending import EndField, until
from controlplane.web.scope.rows import RowScope, Visitor

LENGTHS = {
    "900": "In 15 minutes",
    "3600": ends.NAMES[ends.HOUR],
    "14400": "In 4 hours",
    "43200": "In 12 hours",
    "86400": "In 24 hours",
}
# Ended suspensions that the page shows. The audit and REST have all.
ENDED_SHOWN = 50


class EndForm(forms.Form):
    """A form that gives a suspension another end."""

    ends_at = EndField(label="Another end")

    def __init__(self, *args: Any, row: Suspension, **options: Any) -> None:
        super().__init__(*args, prefix=row.pk, **options)
        self.fields["ends_at"].widget.attrs["aria-label"] = f"Another end of {row}"


class ReasonForm(forms.Form):
    reason = forms.CharField(max_length=500, validators=[PRINTABLE], widget=UnfoldAdminTextInputWidget)


class GlassForm(ReasonForm):
    length = forms.ChoiceField(
        choices=[("", "Choose"), *LENGTHS.items()],
        label="Ends",
        widget=UnfoldAdminSelectWidget,
        error_messages={"required": "Choose an end. At most 24 hours."},
    )
    field_order = ["length", "reason"]


class ValueForm(ReasonForm):
    name = forms.CharField(max_length=64, label="Attribute", widget=UnfoldAdminTextInputWidget)
    value = forms.CharField(max_length=1024, label="Value", strip=False, widget=UnfoldAdminTextInputWidget)
    within = forms.ModelChoiceField(Project.objects.none(), label="Project", widget=UnfoldAdminSelectWidget)
    ends_at = EndField()
    field_order = ["name", "value", "within", "ends_at", "reason"]

    def __init__(self, *args: Any, user: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["within"].queryset = projects_of(user, EDITOR)
        # Only operators refuse a value in projects of others.
        self.fields["within"].required = not is_operator(user)
        self.fields["within"].empty_label = "All projects" if is_operator(user) else "Choose"


def _of_members(rows: QuerySet[Suspended], user: Visitor, kind: str) -> QuerySet[Suspended]:
    """Return what concerns the projects of the user, which is also what is suspended in all projects."""
    return rows.filter(ALL_PROJECTS | concerning(projects_of(user).values("pk")))


@admin.register(Suspension)
class EmergencyAdmin(PartsPage):
    """One page for all of it. Members see what concerns their projects, and only operators break the glass."""

    scope = RowScope(members=_of_members)
    ends_with_owner = True

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Suspension | None = None) -> bool:
        return is_member(request.user)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Suspension]:
        return super().get_queryset(request).select_related("token__project", "project", "within")

    def _ended(self, request: HttpRequest) -> QuerySet[EndedSuspension]:
        rows = EndedSuspension.objects.select_related("token__project", "project", "within")
        return self.scope.narrow(rows, request.user)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return self._page(request)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Lead to the page of all suspensions, because one has no page of its own."""
        if not self.get_queryset(request).filter(pk=self.key_of(object_id)).exists():
            raise Http404
        return HttpResponseRedirect(list_url(Suspension))

    def _page(
        self, request: HttpRequest, glass_form: GlassForm | None = None, value_form: ValueForm | None = None
    ) -> HttpResponse:
        user, now = request.user, timezone.now()
        broken = BreakGlass.in_force(now)
        rows = list(self.get_queryset(request).in_force(now)[:500])
        # With those whose end is over, which the task takes back within seconds.
        over = self.get_queryset(request).filter(ends_at__lte=now)
        ended = [*over[:ENDED_SHOWN], *self._ended(request)[:ENDED_SHOWN]]
        context = {
            "title": "Emergency",
            "glass": broken,
            "fleet": _fleet_sentence(heartbeats.fleet_now(), broken) if is_operator(user) else "",
            "may_break": is_operator(user),
            "may_suspend": is_member(user, EDITOR),
            "rows": [(*_shown(row), may(user, EDITOR, row.owner_id) and EndForm(row=row)) for row in rows],
            "ended": list(map(_shown, ended)),
            "glass_form": glass_form or GlassForm(prefix="glass"),
            "value_form": value_form or ValueForm(user=user, prefix="value"),
            "now": now,
        }
        return self.page(request, "emergency.html", **context)

    def break_view(self, request: HttpRequest) -> HttpResponse:
        self._check(request, None)
        form = GlassForm(request.POST, prefix="glass")
        if not form.is_valid():
            return self._page(request, glass_form=form)
        with self.changing(request, form.cleaned_data["reason"]) as tx:
            before = BreakGlass.in_force(timezone.now())
            glass = break_glass(tx, end_after(timedelta(seconds=int(form.cleaned_data["length"]))))
            self.message_user(request, f"Every limit is a shadow{until(glass.ends_at)}.")
            if before:  # the user may not have seen it, because somebody else has broken it a moment ago
                text = f"{before.by} had broken the glass already, until {exact(before.ends_at)}: {before.reason}"
                self.message_user(request, f"{text}. Your end has replaced that one.", messages.WARNING)
        return HttpResponseRedirect(list_url(Suspension))

    def mend_view(self, request: HttpRequest) -> HttpResponse:
        self._check(request, None)
        with self.changing(request, request.POST.get("reason", "")) as tx:
            if mend_glass(tx):
                self.message_user(request, "Every limit is enforced again.")
        return HttpResponseRedirect(list_url(Suspension))

    def value_view(self, request: HttpRequest) -> HttpResponse:
        form = ValueForm(request.POST, user=request.user, prefix="value")
        if not is_member(request.user, EDITOR):
            raise PermissionDenied
        if not form.is_valid():
            return self._page(request, value_form=form)
        given = form.cleaned_data
        try:
            with self.changing(request, given["reason"]) as tx:
                row = suspend_value(tx, given["name"], given["value"], given["within"], given["ends_at"])
                self.message_user(request, f"{row} is suspended{until(row.ends_at)}.")
        except ValidationError as exc:
            _add(form, exc)
            return self._page(request, value_form=form)
        return HttpResponseRedirect(list_url(Suspension))

    def end_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        """Give a suspension another end, or none."""
        row = self._row(request, pk)
        if row is None:
            return HttpResponseRedirect(list_url(Suspension))
        form = EndForm(request.POST, row=row)
        if not form.is_valid():
            messages.error(request, f"{row} keeps its end. {' '.join(form.errors['ends_at'])}")
            return HttpResponseRedirect(list_url(Suspension))
        ends_at = form.cleaned_data["ends_at"]
        try:
            with self.changing(request, request.POST.get("reason", "")) as tx:
                if set_end(tx, row, ends_at):
                    self.message_user(request, f"{row} is suspended{until(ends_at) or ' until somebody resumes it'}.")
                else:
                    _say_ended(request, row)
        except ValidationError as exc:
            messages.error(request, f"{row} keeps its end. {' '.join(exc.messages)}")
        return HttpResponseRedirect(list_url(Suspension))

    def _row(self, request: HttpRequest, pk: str) -> Suspension | None:
        """Return the suspension, or None with a message if it ended after the user opened the page."""
        row = self.get_queryset(request).filter(pk=pk).first()
        ended = None if row else self._ended(request).filter(pk=pk).first()
        if row is None and ended is None:
            raise Http404
        self._check(request, (row or ended).owner_id)
        if ended:
            _say_ended(request, ended)
        return row

    def resume_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        row = self._row(request, pk)
        if row is None:
            return HttpResponseRedirect(list_url(Suspension))
        with self.changing(request, request.POST.get("reason", "")) as tx:
            resume(tx, row)
            self.message_user(request, f"{row} is resumed.")
        return HttpResponseRedirect(list_url(Suspension))

    views = (
        View(path="value/", name="value", answer=value_view, method="POST"),
        View(path="glass/break/", name="break", answer=break_view, method="POST"),
        View(path="glass/mend/", name="mend", answer=mend_view, method="POST"),
        View(path="<str:pk>/resume/", name="resume", answer=resume_view, method="POST"),
        View(path="<str:pk>/end/", name="end", answer=end_view, method="POST"),
    )

    def _check(self, request: HttpRequest, project: str | None) -> None:
        if not may(request.user, EDITOR, project):
            raise PermissionDenied


def _add(form: forms.Form, exc: ValidationError) -> None:
    """Add the errors of the model to the fields of the form that have their names, and all others to the form."""
    for name, errors in exc.message_dict.items():
        form.add_error(name if name in form.fields else None, errors)


def _say_ended(request: HttpRequest, row: Suspended) -> None:
    text = f"{row} is not suspended any more. It was resumed, or reached its end, after you opened the page."
    messages.warning(request, text)


def _shown(row: Suspended) -> tuple[Suspended, str, str]:
    return row, _kind(row), _link(row)


def _kind(row: Suspended) -> str:
    if row.token:
        return f"token of {row.token.project}"
    return "project" if row.project else f"value in {row.within or 'all projects'}"


def _link(row: Suspended) -> str:
    subject = row.token or row.project
    return link_to(subject) if subject else str(row)


def _fleet_sentence(fleet: Fleet, glass: BreakGlass | None) -> str:
    """Return a sentence that says which instances run without limits, or "" if the glass is whole."""
    if glass is None:
        return ""
    if fleet.unknown:
        return sentence(Reached(True, unknown=fleet.unknown), "")
    enforcing = [instance.id for instance in fleet if instance.glass_until is None]
    following = [instance.id for instance in fleet if instance.glass_until is not None]
    return sentence(Reached(True, following, enforcing), "enforces its limits")
