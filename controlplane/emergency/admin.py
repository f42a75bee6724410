"""The page on which operators suspend and resume, and break the glass."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_POST
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.access.scope import EDITOR, is_member, is_operator, may, projects_of
from controlplane.adminkit.site import ChangingAdmin, ReadOnlyAdmin, link_to, list_url
from controlplane.core.text import PRINTABLE
from controlplane.emergency.actions import break_glass, mend_glass, resume, suspend_value
from controlplane.emergency.models import BreakGlass, Suspension
from controlplane.fleet import heartbeats
from controlplane.fleet.heartbeats import Fleet
from controlplane.projects.models import Project

LENGTHS = {"900": "15 minutes", "3600": "1 hour", "14400": "4 hours", "43200": "12 hours", "86400": "24 hours"}


class ReasonForm(forms.Form):
    reason = forms.CharField(max_length=500, validators=[PRINTABLE], widget=UnfoldAdminTextInputWidget)


class GlassForm(ReasonForm):
    length = forms.ChoiceField(
        choices=[("", "Choose"), *LENGTHS.items()],
        label="End it by itself after",
        widget=UnfoldAdminSelectWidget,
        error_messages={"required": "Choose an end. At most 24 hours."},
    )
    field_order = ["length", "reason"]


class ValueForm(ReasonForm):
    name = forms.CharField(max_length=64, label="Attribute", widget=UnfoldAdminTextInputWidget)
    value = forms.CharField(max_length=1024, label="Value", strip=False, widget=UnfoldAdminTextInputWidget)
    within = forms.ModelChoiceField(Project.objects.none(), label="Project", widget=UnfoldAdminSelectWidget)
    field_order = ["name", "value", "within", "reason"]

    def __init__(self, *args: Any, user: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["within"].queryset = projects_of(user, EDITOR)
        # Only operators refuse a value in projects of others.
        self.fields["within"].required = not is_operator(user)
        self.fields["within"].empty_label = "All projects" if is_operator(user) else "Choose"


@admin.register(Suspension)
class EmergencyAdmin(ChangingAdmin, ReadOnlyAdmin):
    """One page for all of it. Members see what concerns their projects, and only operators break the glass."""

    ends_with_owner = True

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Suspension | None = None) -> bool:
        return is_member(request.user)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Suspension]:
        return super().get_queryset(request).select_related("token__project", "project", "within")

    def narrowed(self, rows: QuerySet[Suspension], user: Any, kind: str = "view") -> QuerySet[Suspension]:
        """Return what concerns the projects of the user, which is also what is suspended in all projects."""
        if is_operator(user):
            return rows
        own = projects_of(user).values("pk")
        shared = Q(token=None, project=None, within=None)
        return rows.filter(shared | Q(project__in=own) | Q(token__project__in=own) | Q(within__in=own))

    def get_urls(self) -> list[URLPattern]:
        posts = {
            "value/": (self.value_view, "value"),
            "glass/break/": (self.break_view, "break"),
            "glass/mend/": (self.mend_view, "mend"),
            "<str:pk>/resume/": (self.resume_view, "resume"),
        }
        view = self.admin_site.admin_view
        own = [
            path(at, view(require_POST(one)), name=f"emergency_suspension_{name}") for at, (one, name) in posts.items()
        ]
        return [*own, *super().get_urls()]

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
        user, now, glass = request.user, timezone.now(), BreakGlass.present()
        broken = glass if glass and glass.is_broken(now) else None
        rows = list(self.get_queryset(request)[:500])
        context = {
            "title": "Emergency",
            "glass": broken,
            "fleet": _fleet_sentence(heartbeats.fleet_now(), broken) if is_operator(user) else "",
            "may_break": is_operator(user),
            "may_suspend": is_member(user, EDITOR),
            "rows": [(row, _kind(row), _link(row), may(user, EDITOR, row.owner_id)) for row in rows],
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
            ends_at = timezone.now() + timedelta(seconds=int(form.cleaned_data["length"]))
            break_glass(tx, ends_at)
            self.message_user(request, f"Every limit is a shadow until {ends_at:%Y-%m-%d %H:%M} UTC.")
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
                row = suspend_value(tx, given["name"], given["value"], given["within"])
                self.message_user(request, f"{row} is suspended.")
        except ValidationError as exc:
            _add(form, exc)
            return self._page(request, value_form=form)
        return HttpResponseRedirect(list_url(Suspension))

    def resume_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        row = self.get_queryset(request).filter(pk=pk).first()
        if row is None:
            raise Http404
        self._check(request, row.owner_id)
        with self.changing(request, request.POST.get("reason", "")) as tx:
            resume(tx, row)
            self.message_user(request, f"{row} is resumed.")
        return HttpResponseRedirect(list_url(Suspension))

    def _check(self, request: HttpRequest, project: str | None) -> None:
        if not may(request.user, EDITOR, project):
            raise PermissionDenied


def _add(form: forms.Form, exc: ValidationError) -> None:
    """Add the errors of the model to the fields of the form that have their names, and all others to the form."""
    for name, errors in exc.message_dict.items():
        form.add_error(name if name in form.fields else None, errors)


def _kind(row: Suspension) -> str:
    if row.token:
        return f"token of {row.token.project}"
    return "project" if row.project else f"value in {row.within or 'all projects'}"


def _link(row: Suspension) -> str:
    subject = row.token or row.project
    return link_to(subject) if subject else str(row)


def _fleet_sentence(fleet: Fleet, glass: BreakGlass | None) -> str:
    """Return a sentence that says how many instances say that they run without limits, or "" if the glass is whole."""
    if glass is None:
        return ""
    if fleet.unknown:
        return f"{fleet.unknown} Nobody knows which instances follow."
    if not fleet:
        return "No instance reports."
    following = sum(instance.glass_until is not None for instance in fleet)
    late = [instance.id for instance in fleet if instance.glass_until is None]
    if not late:
        return f"{following} of {len(fleet)} instances say that they run with every limit as a shadow."
    names = ", ".join(late[:5])
    return f"{following} of {len(fleet)} instances run with every limit as a shadow. These still enforce: {names}."
