"""The base class of the pages of the admin on which rows are edited."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, OperationalError
from django.db.models import Model, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.transactions import is_deadlock, snapshot
from controlplane.web.kit.deletion import Keeping, NamedDeletion, deleted_with, name_of
from controlplane.web.kit.forms import SECRET_MISSED, RecordedForm, sent_once
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.selection import everything, has_changed, selection
from controlplane.web.kit.site import list_url_of_audit
from controlplane.web.kit.state import reposted, state_of
from controlplane.web.scope.rows import KINDS

DELETION = "delete_selected"
# Takes the page, the request, the key of the row in the address if there is one, and the view.
Step = Callable[[Any, HttpRequest, str | None, Callable[[], HttpResponse]], HttpResponse]
Settle = Callable[[HttpRequest, Any], None]


class EditPage(PartsPage):
    """
    The base class of pages on which rows are edited. Each form, deletion or action is one change().

    A form is saved once, however often it is sent, and only if the row is still as it was when the form was opened.

    Attributes:
        asked_name: Returns what has to be typed to delete a row, or None if a confirmation is enough.
        has_secret: Whether the response to a form that adds a row is all that ever shows its secret.
        most_at_once: Rows that an action may change.
        counted_by: The column by which an action needs the number of its rows, if any.
        steps: What a form, a deletion or an action runs within, the outermost first.
        settle: What decides about a row that is saved but not recorded. An exception of it undoes the change.
    """

    kinds = frozenset(KINDS)
    form: ClassVar[type[ModelForm]] = RecordedForm
    change_form_before_template: ClassVar[str | None] = "admin/sluicegate/version.html"
    delete_confirmation_template = "admin/sluicegate/delete.html"
    delete_selected_confirmation_template = "admin/sluicegate/delete_selected.html"
    warn_unsaved_form = True
    asked_name: Callable[[Any], str] | None = None
    has_secret: ClassVar[bool] = False
    most_at_once: ClassVar[int] = 500
    counted_by: ClassVar[str] = ""
    steps: ClassVar[tuple[Step, ...]] = ()
    settle: ClassVar[tuple[Settle, ...]] = ()

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, *args: Any, **options: Any
    ) -> HttpResponse:
        view = partial(super().changeform_view, request, object_id, *args, **options)
        if request.method != "POST":
            with snapshot():  # the page must not mix what was before a change with what is after it
                response = view()
                return response.render() if isinstance(response, TemplateResponse) else response
        missed = SECRET_MISSED if self.has_secret and object_id is None else ""
        save = partial(self._saved, request, "", partial(sent_once, request, view, missed))
        return self.through_steps(request, object_id, save)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return self.through_steps(request, object_id, partial(self.deletion, request, object_id, extra_context or {}))

    def deletion(self, request: HttpRequest, object_id: str, context: dict[str, Any]) -> HttpResponse:
        """Return the page that asks whether a row is to be deleted, or delete it."""
        if self.asked_name is not None:
            row = self.get_object(request, unquote(object_id))
            # Django deletes for any field that is posted.
            name = "" if row is None else self.asked_name(row)
            asked = NamedDeletion(request, name, confirms=request.method == "POST")
            if asked.refuses:
                reposted(request, QueryDict())
            context = {**context, **asked.context}
        view = partial(super().delete_view, request, object_id, context)
        return self._saved(request, request.POST.get("change_reason", ""), view) if request.method == "POST" else view()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        view = partial(super().changelist_view, request, extra_context)
        if request.method != "POST":
            return view()
        save = partial(self._saved, request, request.POST.get("change_reason", ""), view)
        return self.through_steps(request, None, save)

    def through_steps(
        self, request: HttpRequest, object_id: str | None, view: Callable[[], HttpResponse]
    ) -> HttpResponse:
        """Return the response of *view*, which runs within the steps of the page."""
        for step in reversed(self.steps):
            view = partial(step, self, request, object_id, view)
        return view()

    def _saved(self, request: HttpRequest, reason: str, view: Callable[[], HttpResponse]) -> HttpResponse:
        """Return the response of *view*, which runs as one change."""
        try:
            with self.changing(request, reason):
                return view()
        except (IntegrityError, OperationalError) as exc:
            if isinstance(exc, OperationalError) and not is_deadlock(exc):
                raise
            # Since the form was checked, another user has deleted what it names, or has saved a row with the same
            # name. Checked again, the form says at which field. Who lost a deadlock begins again, too.
            with self.changing(request, reason):
                return view()

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        action, named = request.POST.get("action"), {}
        if action == DELETION and self.asked_name is not None:
            name = name_of(request, queryset, self.asked_name)
            named = NamedDeletion(request, name, confirms=bool(request.POST.get("post"))).context
        # Some of the rows that the user sees may be of projects in which the role is only to read.
        queryset = self.scope.narrow(queryset, request.user, "delete" if action == DELETION else "change")
        most = self.most_at_once
        summary = everything(request, queryset, most, self.counted_by)
        if summary is not None and summary.count > most:
            text = f"Choose at most {most:,} {self.opts.verbose_name_plural}. Filter the list first."
            messages.error(request, text)
            return None
        if has_changed(request, queryset):
            text = "The selected rows are not the same as when you opened this page. Check them and confirm again."
            messages.warning(request, text)
            reposted(request, request.POST, without=("change_reason", "post"))  # the action then asks again
        response = super().response_action(request, queryset)
        if isinstance(response, TemplateResponse):
            context = response.context_data or {}
            if "deletable_objects" in context:
                chosen = selection(request, context["queryset"])
                context |= {"selection": chosen, "title": f"Delete {chosen['count']:,} {context['objects_name']}"}
            response.context_data = {**context, **named}
        return response

    def response_change(self, request: HttpRequest, obj: Model) -> HttpResponse:
        response = super().response_change(request, obj)
        if state_of(request).tx.is_empty:
            state_of(request).notes = None
            messages.info(request, f"Nothing was changed. {obj} is as it was.")
        return response

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        result = super().get_object(request, object_id, from_field)
        if result is None or state_of(request).change is None:
            return result
        # If two users save at once, the second waits here, then sees that the row has changed.
        self.model._default_manager.select_for_update().filter(pk=result.pk).first()
        return super().get_object(request, object_id, from_field)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        fieldsets = list(super().get_fieldsets(request, obj))
        rights = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return [*fieldsets, (None, {"fields": ["change_reason"]})] if rights else fieldsets

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Return the form, with one button to create a row with a secret, because the next page must show that."""
        if self.has_secret and options.get("add"):
            context |= {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().render_change_form(request, context, **options)

    def save_model(self, request: HttpRequest, obj: Any, form: RecordedForm, change: bool) -> None:
        """
        Save the row. What a user may not have, with its new values, is undone with the transaction.

        Raises:
            PermissionDenied: The row belongs to a project in which the user may not change it.
        """
        state = state_of(request)
        state.tx.reason = form.cleaned_data.get("change_reason", "")
        present = self.recorded(self.model._default_manager.get(pk=obj.pk)) if change else None
        state.before = present.as_record() if present else None
        self.save_row(request, obj, form)
        if not self.allows(request, "change" if change else "add", obj):
            raise PermissionDenied

    def save_row(self, request: HttpRequest, obj: Any, form: RecordedForm) -> None:
        """
        Save the row, without an audit entry. A page whose action saves and records the row overrides this method and
        record().
        """
        obj.save()

    def save_related(self, request: HttpRequest, form: Any, formsets: list[Any], change: bool) -> None:
        super().save_related(request, form, formsets, change)
        for settle in self.settle:
            settle(request, form.instance)
        self.record(state_of(request).tx, form.instance, state_of(request).before)
        state_of(request).saved = form.instance

    def record(self, tx: OpenChange, obj: Any, before: dict[str, Any] | None) -> None:
        """
        Write the audit entry of a new row, or of a saved row that differs from *before*. *before* is its earlier
        record, None for a new row.
        """
        obj = self.recorded(self.model._default_manager.get(pk=obj.pk))
        if before is None:
            tx.created(obj)
        elif before != obj.as_record():
            tx.updated(obj, before)

    def get_deleted_objects(
        self, objs: QuerySet[Any] | Sequence[Model], request: HttpRequest
    ) -> tuple[list[str], dict[str, str], set[str], Keeping]:
        return deleted_with(self.model, objs, request)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        state_of(request).tx.delete(self.recorded(obj))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for obj in queryset:
            state_of(request).tx.delete(self.recorded(obj))

    def recorded(self, obj: Any) -> Any:
        """
        Return the row itself, of which a change keeps the record. A page of rows that have no record of their own
        overrides this.
        """
        return obj

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> None:
        """Do nothing, because the audit records the change."""

    log_change = log_deletion = log_addition

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Do nothing, because the audit records each deletion."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return HttpResponseRedirect(list_url_of_audit(self.model(pk=unquote(object_id))))
