"""The base classes and helpers of every page in the admin."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil
from unfold.admin import StackedInline as ThemeStackedInline

from controlplane.changes.change.transaction import Actor
from controlplane.core.instants import exact
from controlplane.core.requests import request_id
from controlplane.web.kit.forms import InstantInput

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


def user_of(request: HttpRequest) -> User:
    """Return the user of a request for a page that only users who are logged in can open."""
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user


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


class StackedInline(ThemeStackedInline):
    formfield_overrides = {**ThemeStackedInline.formfield_overrides, **FIELDS}
