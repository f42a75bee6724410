"""The base classes and helpers of every page in the admin."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import NON_FIELD_ERRORS, BadRequest
from django.db import IntegrityError, OperationalError, models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil
from unfold.admin import ModelAdmin as ThemeModelAdmin
from unfold.admin import StackedInline as ThemeStackedInline

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core.requests import request_id
from controlplane.core.tables.paging import PagedList
from controlplane.core.text import unprintable
from controlplane.core.transactions import is_deadlock, snapshot
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.web.kit.deletion import CountedDeletion
from controlplane.web.kit.forms import InstantInput, RecordedForm, SentOnce
from controlplane.web.kit.selection import everything, has_changed, selection
from controlplane.web.kit.state import reposted, state_of
from controlplane.web.kit.times import exact, zone_name
from controlplane.web.scope.views import ScopedAdmin

admin.site.index_title = "Overview"

# The theme's widget for an instant has two inputs, one of them without a label.
FIELDS = {models.DateTimeField: {"form_class": forms.DateTimeField, "widget": InstantInput}}


def badge(text: str, kind: str = "") -> SafeString:
    """Return HTML that shows *text* as a badge, coloured by *kind*, which is "good", "bad", "warn" or empty."""
    return format_html('<span class="sg-badge {}">{}</span>', f"sg-{kind}" if kind else "", text)


def long_name(name: str) -> SafeString:
    """Return a name that clients choose, so that a very long one does not push the other columns out of sight."""
    return format_html('<span class="sg-name">{}</span>', name)


def instant(at: datetime | None, now: datetime | None = None) -> SafeString | str:
    """
    Return HTML with an instant relative to now, such as "2 hours ago", or "never" for None.

    The time left has two units, because "in 1 day" is misleading for almost two days.
    """
    if at is None:
        return "never"
    now = now or timezone.now()
    if abs(at - now) < timedelta(minutes=1):
        relative = "just now" if at <= now else "in less than a minute"
    else:
        left = timeuntil(at, now, depth=2).replace(",", "")
        relative = f"in {left}" if at > now else f"{timesince(at, now, depth=1)} ago"
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at, seconds=True), relative)


def link_to(row: models.Model | None, text: str = "") -> SafeString | str:
    """Return an HTML link to the page of a row, or a dash for None. The default text is the row's name."""
    if row is None:
        return "—"
    return format_html('<a class="text-link" href="{}">{}</a>', change_url(row), text or str(row))


def change_url(row: models.Model) -> str:
    """Return the address of a row's page in the admin."""
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[quote(row.pk)])


def list_url(model: type[models.Model], query: str = "") -> str:
    """Return the address of the list of a model, with *query* (which begins with "?") behind it."""
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") + query


def list_url_of_audit(row: models.Model) -> str:
    """Return the address of the audit entries of a row."""
    return reverse("admin:policies_auditentry_changelist") + f"?object_type={row._meta.model_name}&object_id={row.pk}"


def links(pairs: list[tuple[str, str]]) -> SafeString:
    """Return HTML links with dots between them, from pairs of text and address."""
    return format_html_join(" · ", '<a class="text-link" href="{}">{}</a>', [(url, text) for text, url in pairs])


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return an HTML table, which scrolls sideways on a narrow page."""
    cells = [(format_html_join("", "<td>{}</td>", ((cell,) for cell in row)),) for row in rows]
    frame = '<div class="sg-scroll" tabindex="0"><table class="sg-table"><thead><tr>{}</tr></thead>{}</table></div>'
    return format_html(
        frame,
        format_html_join("", "<th scope=col>{}</th>", ((name,) for name in head)),
        format_html("<tbody>{}</tbody>", format_html_join("", "<tr>{}</tr>", cells)),
    )


def actor_of(request: HttpRequest) -> Actor:
    """Return the user of a request as the actor of a change."""
    return Actor(request.user.get_username(), "admin", request_id(request))


class ModelAdmin(PagedList, ScopedAdmin, ThemeModelAdmin):
    """The base class of every page in the admin, which only operators see unless it names the project of its rows."""

    formfield_overrides = FIELDS
    list_filter_submit = True
    list_per_page = 50
    # Shown in place of an empty list: an explanation, and the text of the button that adds the first row.
    empty: ClassVar[tuple[str, str]] = ("", "")

    def formfield_for_dbfield(self, db_field: models.Field, request: HttpRequest, **options: Any) -> Any:
        """
        Return the form field without icons that open forms of other models, and with a help text if it is for a time.
        """
        field = super().formfield_for_dbfield(db_field, request, **options)
        if isinstance(db_field, models.DateTimeField):
            field.help_text = field.help_text or f"In {zone_name()}. If empty, never."
        for right in ("add", "change", "delete", "view"):
            if field is not None and hasattr(field.widget, f"can_{right}_related"):
                setattr(field.widget, f"can_{right}_related", False)
        return field

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Return the page, which points to errors below only if there are some."""
        form, inlines = context["adminform"].form, context["inline_admin_formsets"]
        if not form.errors.keys() - {NON_FIELD_ERRORS} and all(inline.formset.is_valid() for inline in inlines):
            context |= {"errors": None}
        return super().render_change_form(request, context, **options)

    @staticmethod
    def key_of(object_id: str | None) -> str:
        """Return the primary key from the address of an action, in which the admin quotes it."""
        return unquote(object_id or "")

    def page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        """Return a response with a template of this project in the frame of the admin."""
        shared = {**self.admin_site.each_context(request), "opts": self.opts, "model_admin": self}
        return TemplateResponse(request, f"admin/sluicegate/{template}", {**shared, **context})


class ReadOnlyAdmin(ModelAdmin):
    """The base class of pages that only show rows."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {}

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Return the page without the link to the history, because these rows have none."""
        return super().render_change_form(request, context | {"show_history": False}, **options)


class ChangingAdmin(ModelAdmin):
    """The base class of pages whose actions change rows inside one change(), with audit and publication."""

    @contextmanager
    def changing(self, request: HttpRequest, reason: str = "") -> Iterator[OpenChange]:
        """Run the block as one change, yield that change, and then show a message that says whether it is published."""
        state = state_of(request)
        state.notes = []
        if found := unprintable(reason):
            raise BadRequest(f"reason: Must have printable characters only, but contains {found}.")
        with change(actor=actor_of(request), reason=reason) as tx:
            state.change = tx
            yield tx
        notes, state.notes = state.notes, None
        if notes:
            sentences = filter(None, [*notes, self._publication(tx)])
            messages.success(request, format_html_join(" ", "{}", ((sentence,) for sentence in sentences)))

    def _publication(self, tx: OpenChange) -> str:
        if tx.is_empty:
            return ""
        if tx.revision is not None:
            return f"Published as revision {tx.revision}."
        if OutboxEntry.objects.filter(revision=None, by=tx.actor.name).exists():
            return "Saved. The change will be published when the store is available."
        return ""

    def message_user(
        self, request: HttpRequest, message: Any, level: int = messages.INFO, *args: Any, **kw: Any
    ) -> None:
        """Show a message to the user, or keep it during a change, so that one message also names the revision."""
        notes = state_of(request).notes
        if notes is not None and level in (messages.INFO, messages.SUCCESS):
            notes.append(message)
        else:
            super().message_user(request, message, level, *args, **kw)

    def present(self, request: HttpRequest, object_id: str) -> models.Model:
        """Return the row that an action names, locked until the end of the transaction."""
        return self.model._default_manager.select_for_update().get(pk=self.key_of(object_id))


class RecordedAdmin(SentOnce, CountedDeletion, ChangingAdmin):
    """
    The base class of pages on which rows are edited. Each form, deletion or action is one change().

    A form is saved only if the row is still as it was when the form was opened.
    """

    form = RecordedForm
    change_form_before_template = "admin/sluicegate/version.html"
    delete_confirmation_template = "admin/sluicegate/delete.html"
    delete_selected_confirmation_template = "admin/sluicegate/delete_selected.html"
    warn_unsaved_form = True
    # Rows that an action may change, and the column by which it needs their number, if any.
    most_at_once: ClassVar[int] = 500
    counted_by: ClassVar[str] = ""

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        view = partial(super().changeform_view, request, *args, **options)
        if request.method != "POST":
            with snapshot():  # the page must not mix what was before a change with what is after it
                response = view()
                return response.render() if isinstance(response, TemplateResponse) else response
        return self._saved(request, "", view)

    def delete_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        view = partial(super().delete_view, request, *args, **options)
        return self._saved(request, request.POST.get("change_reason", ""), view) if request.method == "POST" else view()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        view = partial(super().changelist_view, request, extra_context)
        return self._saved(request, request.POST.get("change_reason", ""), view) if request.method == "POST" else view()

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

    def response_action(self, request: HttpRequest, queryset: models.QuerySet) -> HttpResponse | None:
        # Some of the rows that the user sees may be of projects in which the role is only to read.
        kind = "delete" if request.POST.get("action") == "delete_selected" else "change"
        queryset = self.narrowed(queryset, request.user, kind)
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
        if isinstance(response, TemplateResponse) and "deletable_objects" in response.context_data:
            chosen = selection(request, response.context_data["queryset"])
            title = f"Delete {chosen['count']:,} {response.context_data['objects_name']}"
            response.context_data |= {"selection": chosen, "title": title}
        return response

    def response_change(self, request: HttpRequest, obj: models.Model) -> HttpResponse:
        response = super().response_change(request, obj)
        if state_of(request).tx.is_empty:
            state_of(request).notes = None
            messages.info(request, f"Nothing was changed. {obj} is as it was.")
        return response

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> models.Model | None:
        result = super().get_object(request, object_id, from_field)
        if result is None or state_of(request).change is None:
            return result
        # If two users save at once, the second waits here, then sees that the row has changed.
        self.model._default_manager.select_for_update().filter(pk=result.pk).first()
        return super().get_object(request, object_id, from_field)

    def get_fieldsets(self, request: HttpRequest, obj: models.Model | None = None) -> list[Any]:
        fieldsets = list(super().get_fieldsets(request, obj))
        rights = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return [*fieldsets, (None, {"fields": ["change_reason"]})] if rights else fieldsets

    def save_model(self, request: HttpRequest, obj: models.Model, form: RecordedForm, change: bool) -> None:
        state = state_of(request)
        state.tx.reason = form.cleaned_data.get("change_reason", "")
        present = self.recorded(self.model._default_manager.get(pk=obj.pk)) if change else None
        state.before = present.as_record() if present else None
        self.save_row(state.tx, obj, form)
        self.check_saved(request, obj, change)

    def save_row(self, tx: OpenChange, obj: models.Model, form: RecordedForm) -> None:
        """
        Save the row, without an audit entry. A page whose action saves and records the row overrides this method and
        record().
        """
        obj.save()

    def save_related(self, request: HttpRequest, form: RecordedForm, formsets: list[Any], change: bool) -> None:
        super().save_related(request, form, formsets, change)
        self.record(state_of(request).tx, form.instance, state_of(request).before)

    def record(self, tx: OpenChange, obj: models.Model, before: dict[str, Any] | None) -> None:
        """
        Write the audit entry of a new row, or of a saved row that differs from *before*. *before* is its earlier
        record, None for a new row.
        """
        obj = self.recorded(self.model._default_manager.get(pk=obj.pk))
        if before is None:
            tx.created(obj)
        elif before != obj.as_record():
            tx.updated(obj, before)

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        state_of(request).tx.delete(self.recorded(obj))

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        for obj in queryset:
            state_of(request).tx.delete(self.recorded(obj))

    def recorded(self, obj: models.Model) -> Any:
        """
        Return the row itself, of which a change keeps the record. A page of rows that have no record of their own
        overrides this.
        """
        return obj

    def log_addition(self, request: HttpRequest, obj: models.Model, message: Any) -> None:
        """Do nothing, because the audit records the change."""

    log_change = log_deletion = log_addition

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Do nothing, because the audit records each deletion."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return HttpResponseRedirect(list_url_of_audit(self.model(pk=unquote(object_id))))


def done(url: str) -> HttpResponse:
    """Return a response that closes the dialog and opens *url*."""
    return HttpResponse(headers={"HX-Redirect": url})


def confirmed() -> HttpResponse:
    """
    Return a response that makes the browser submit a valid dialog again, as a request for a whole page.

    The action then answers with a page. In a dialog, one click beside it would lose the secret.
    """
    return HttpResponse(status=204, headers={"HX-Trigger": "sluicegate:confirmed"})


def in_dialog(request: HttpRequest) -> bool:
    """Return whether the request was sent from a dialog."""
    return request.headers.get("HX-Request") == "true"


class SecretAdmin(RecordedAdmin):
    """The base class of pages for credentials. Only the response to the creation shows the secret."""

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Return the form with one button to create, because the next page must show the secret."""
        if options.get("add"):
            context |= {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().render_change_form(request, context, **options)

    def secret_page(self, request: HttpRequest, credential: models.Model, secret: str, **context: Any) -> HttpResponse:
        """Return the page that shows the secret of a new credential, and how to use it."""
        response = self.page(
            request,
            "secret.html",
            title=f"{self.opts.verbose_name.capitalize()} created",
            credential=credential,
            secret=secret,
            url=change_url(credential),
            snippets=self.snippets(request, secret),
            **context,
        )
        response["Cache-Control"] = "no-store"
        return response


class StackedInline(ThemeStackedInline):
    formfield_overrides = {**ThemeStackedInline.formfield_overrides, **FIELDS}
