"""What every admin page of this project stands on: each ModelAdmin takes its base class from here and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil
from unfold.admin import ModelAdmin as ThemeModelAdmin
from unfold.admin import StackedInline as ThemeStackedInline

from controlplane.adminkit.forms import InstantInput, RecordedForm
from controlplane.publishing.changes import Actor, Change, change
from controlplane.publishing.models import OutboxEntry

admin.site.index_title = "Overview"

# The theme's own date and time are two inputs, of which one has no label.
FIELDS = {models.DateTimeField: {"form_class": forms.DateTimeField, "widget": InstantInput}}


def environment(request: HttpRequest) -> list[str] | None:
    """The badge in the header: several environments must not look alike."""
    name = settings.ENVIRONMENT_NAME
    if not name:
        return None
    kinds = {"prod": "danger", "stag": "warning", "test": "info", "dev": "success"}
    return [name, next((kind for start, kind in kinds.items() if name.lower().startswith(start)), "info")]


def badge(text: str, kind: str = "") -> SafeString:
    """A state as text on a colour: "good", "bad", "warn" or none. Never the colour alone."""
    return format_html('<span class="sg-badge {}">{}</span>', f"sg-{kind}" if kind else "", text)


def instant(at: datetime | None, now: datetime | None = None) -> SafeString | str:
    """A moment as people tell it, with the exact one on hover and for machines."""
    if at is None:
        return "never"
    now = now or timezone.now()
    if abs(at - now) < timedelta(minutes=1):
        told = "just now" if at <= now else "in less than a minute"
    else:
        told = f"in {timeuntil(at, now, depth=1)}" if at > now else f"{timesince(at, now, depth=1)} ago"
    exact = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact, told)


def link_to(row: models.Model | None, text: str = "") -> SafeString | str:
    """The page of a row, as a link."""
    if row is None:
        return "—"
    return format_html('<a class="text-link" href="{}">{}</a>', change_url(row), text or str(row))


def change_url(row: models.Model) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[quote(row.pk)])


def list_url(model: type[models.Model], query: str = "") -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") + query


def list_url_of_audit(row: models.Model) -> str:
    return reverse("admin:policies_auditentry_changelist") + f"?object_type={row._meta.model_name}&object_id={row.pk}"


def links(pairs: list[tuple[str, str]]) -> SafeString:
    return format_html_join(" · ", '<a class="text-link" href="{}">{}</a>', [(url, text) for text, url in pairs])


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A small table that scrolls by itself where the page is narrow."""
    cells = [(format_html_join("", "<td>{}</td>", ((cell,) for cell in row)),) for row in rows]
    frame = '<div class="sg-scroll" tabindex="0"><table class="sg-table"><thead><tr>{}</tr></thead>{}</table></div>'
    return format_html(
        frame,
        format_html_join("", "<th scope=col>{}</th>", ((name,) for name in head)),
        format_html("<tbody>{}</tbody>", format_html_join("", "<tr>{}</tr>", cells)),
    )


def actor_of(request: HttpRequest) -> Actor:
    return Actor(request.user.get_username(), "admin", request.headers.get("X-Request-ID", ""))


class ModelAdmin(ThemeModelAdmin):
    """The look and the habits that all pages share."""

    formfield_overrides = FIELDS
    list_filter_submit = True
    list_per_page = 50
    # Where there is nothing to list: what would stand there, and the words on the button that adds the first.
    empty: ClassVar[tuple[str, str]] = ("", "")

    def formfield_for_dbfield(self, db_field: models.Field, request: HttpRequest, **options: Any) -> Any:
        """Leave out the icons that open other models' forms in a frame: each has a page of its own in the menu."""
        field = super().formfield_for_dbfield(db_field, request, **options)
        if isinstance(db_field, models.DateTimeField):
            field.help_text = field.help_text or "UTC. Empty: never."
        for right in ("add", "change", "delete", "view"):
            if field is not None and hasattr(field.widget, f"can_{right}_related"):
                setattr(field.widget, f"can_{right}_related", False)
        return field

    @staticmethod
    def key_of(object_id: str | None) -> str:
        """Read the key that stands in an action's address, where the admin has it quoted."""
        return unquote(object_id or "")

    def page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        """Answer with a page of our own in the admin's frame."""
        request.current_app = self.admin_site.name
        shared = {**self.admin_site.each_context(request), "opts": self.opts, "model_admin": self}
        return TemplateResponse(request, f"admin/sluicegate/{template}", {**shared, **context})


class ReadOnlyAdmin(ModelAdmin):
    """What is written elsewhere, and only looked at here."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {}

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Leave out the history: what is only looked at has none."""
        return super().render_change_form(request, context | {"show_history": False}, **options)


class ChangingAdmin(ModelAdmin):
    """What is done here is one change(): audited, published, and told to whoever did it."""

    @contextmanager
    def changing(self, request: HttpRequest, reason: str = "") -> Iterator[Change]:
        """Make the block one change, and tell afterwards whether it is live."""
        request.told = []
        with change(actor=actor_of(request), reason=reason) as tx:
            request.change = tx
            yield tx
        told, request.told = request.told, None
        if told:
            text = format_html_join(" ", "{}", ((message,) for message in filter(None, [*told, self._fate(tx)])))
            messages.success(request, text)

    def _fate(self, tx: Change) -> str:
        if tx.revision is not None:
            return f"Published as revision {tx.revision}."
        if OutboxEntry.objects.filter(revision=None, by=tx.actor.name).exists():
            return "Saved; will be published when the store answers."
        return ""

    def message_user(
        self, request: HttpRequest, message: Any, level: int = messages.INFO, *args: Any, **kw: Any
    ) -> None:
        """Hold back what is told during a change: one message says it, and what became of it."""
        if getattr(request, "told", None) is not None and level in (messages.INFO, messages.SUCCESS):
            request.told.append(message)
        else:
            super().message_user(request, message, level, *args, **kw)

    def present(self, request: HttpRequest, object_id: str) -> models.Model:
        """Return the row that an action names, locked as in get_object()."""
        return self.model._default_manager.select_for_update().get(pk=self.key_of(object_id))

    def confirm(self, request: HttpRequest, rows: models.QuerySet, name: str, title: str, effect: str) -> HttpResponse:
        """Ask for a reason before an action on selected rows is done; the answer comes back with ``change_reason``."""
        return self.page(request, "confirm.html", title=title, effect=effect, rows=rows, action=name)


class RecordedAdmin(ChangingAdmin):
    """
    Each form, deletion or action here is one change(): audited, published, and told to whoever made it.

    A form is saved only over the state that it was opened on.
    """

    form = RecordedForm
    change_form_before_template = "admin/sluicegate/version.html"
    warn_unsaved_form = True

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        if request.method != "POST":
            return super().changeform_view(request, *args, **options)
        with self.changing(request):
            return super().changeform_view(request, *args, **options)

    def delete_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        if request.method != "POST":
            return super().delete_view(request, *args, **options)
        with self.changing(request, request.POST.get("change_reason", "")):
            return super().delete_view(request, *args, **options)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method != "POST":
            return super().changelist_view(request, extra_context)
        with self.changing(request, request.POST.get("change_reason", "")):
            return super().changelist_view(request, extra_context)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> models.Model | None:
        if getattr(request, "change", None) is not None:
            # Two who save at once: the second reads what the first has written, and is told.
            self.model._default_manager.select_for_update().filter(pk=object_id).first()
        return super().get_object(request, object_id, from_field)

    def get_fieldsets(self, request: HttpRequest, obj: models.Model | None = None) -> list[Any]:
        fieldsets = list(super().get_fieldsets(request, obj))
        rights = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return [*fieldsets, (None, {"fields": ["change_reason"]})] if rights else fieldsets

    def save_model(self, request: HttpRequest, obj: models.Model, form: RecordedForm, change: bool) -> None:
        request.change.reason = form.cleaned_data.get("change_reason", "")
        request.before = self.model._default_manager.get(pk=obj.pk).as_record() if change else None
        self.save_row(request.change, obj, form)

    def save_row(self, tx: Change, obj: models.Model, form: RecordedForm) -> None:
        """Save the row itself; where a verb saves and records it, override this and record()."""
        obj.save()

    def save_related(self, request: HttpRequest, form: RecordedForm, formsets: list[Any], change: bool) -> None:
        super().save_related(request, form, formsets, change)
        self.record(request.change, form.instance, request.before)

    def record(self, tx: Change, obj: models.Model, before: dict[str, Any] | None) -> None:
        obj = self.model._default_manager.get(pk=obj.pk)
        if before is None:
            tx.created(obj)
        elif before != obj.as_record():
            tx.updated(obj, before)

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        request.change.delete(obj)

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        for obj in queryset:
            request.change.delete(obj)

    def log_addition(self, request: HttpRequest, obj: models.Model, message: Any) -> None:
        """Leave it to the audit: one history, the same for every door."""

    log_change = log_deletion = log_addition

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Leave it to the audit."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return HttpResponseRedirect(list_url_of_audit(self.model(pk=unquote(object_id))))


def done(url: str) -> HttpResponse:
    """Close a dialog by going to *url*."""
    return HttpResponse(headers={"HX-Redirect": url})


def confirmed() -> HttpResponse:
    """
    Answer a dialog that is filled in well by having the browser send it once more, as a whole page.

    What the action answers then is a page of its own: a secret in a dialog would be gone with a click beside it.
    """
    return HttpResponse(status=204, headers={"HX-Trigger": "sluicegate:confirmed"})


def in_dialog(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"


class SecretAdmin(RecordedAdmin):
    """Credentials: the page that answers their creation is the only one that ever shows the secret."""

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """One way to create: the next page shows the secret, whatever was pressed."""
        if options.get("add"):
            context |= {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().render_change_form(request, context, **options)

    def secret_page(self, request: HttpRequest, credential: models.Model, secret: str, **context: Any) -> HttpResponse:
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
