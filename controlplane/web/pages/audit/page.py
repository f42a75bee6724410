"""The list of the audit, with its export, and the page of one entry."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import BadRequest, PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import ChoicesDropdownFilter, FieldTextFilter
from unfold.decorators import display

from controlplane.changes.audit.export import csv_lines, json_lines
from controlplane.changes.audit.models import AuditEntry, AuditSeal
from controlplane.changes.audit.searching import AUDIT_SEARCH
from controlplane.changes.words.entries import KINDS, details, lines_of, sentence, verb
from controlplane.changes.words.words import Line
from controlplane.core.files import streamed
from controlplane.core.instants import exact
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import keeps_access, may
from controlplane.objects.policies.names import Names
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.releases.revisions.links import object_urls
from controlplane.releases.revisions.restoring import HANDLERS
from controlplane.web.kit.filters import InstantRangeFilter
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import Column, ListPanel, View
from controlplane.web.kit.site import badge, instant, link_to, table
from controlplane.web.pages.audit.filters import DEED_FILTER, OBJECT_FILTER
from controlplane.web.scope.rows import RowScope

LINES_SHOWN = 3
Lines = Callable[[QuerySet[AuditEntry]], Iterator[str]]
EXPORTS: dict[str, tuple[Lines, str]] = {
    "csv": (csv_lines, "text/csv; charset=utf-8"),
    "jsonl": (json_lines, "application/jsonl; charset=utf-8"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a list tells of an entry: the address of its object, its revision, what it says, and if one may undo it."""

    url: str
    revision: int | None
    lines: Sequence[Line]
    may_undo: bool


def read_told(entries: Sequence[AuditEntry], request: HttpRequest) -> dict[str, Told]:
    """Return what to tell of entries by their ids, read with few statements."""
    urls = object_urls((entry.object_type, entry.object_id) for entry in entries)
    changes = PublishedChange.objects.filter(change__in={entry.change for entry in entries} - {""})
    revisions = dict(changes.exclude(revision=None).values_list("change", "revision"))
    names = Names.of(entries)
    found = {}
    for entry in entries:
        revision = revisions.get(entry.change)
        undone = entry.object_type in HANDLERS and may(request.user, EDITOR, entry.project or None)
        may_undo = bool(revision) and undone and not entry.action.startswith("counters.")
        url = urls.get((entry.object_type, entry.object_id), "")
        found[entry.pk] = Told(url, revision, lines_of(entry, names), may_undo)
    return found


def object_link(entry: AuditEntry, told: Told) -> str:
    label = f"{KINDS.get(entry.object_type, entry.object_type)} {entry.object_label}"
    return format_html('<a class="text-link" href="{}">{}</a>', told.url, label) if told.url else label


def changed(entry: AuditEntry, told: Told) -> str:
    shown = "; ".join(map(str, told.lines[:LINES_SHOWN]))
    more = len(told.lines) - LINES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def published(entry: AuditEntry, told: Told) -> str:
    if told.revision is None:
        return "—"
    revision = link_to(Revision(number=told.revision))
    if not told.may_undo:
        return revision
    url = f"{reverse('admin:publishing_revision_undo', args=[told.revision])}?change={entry.change}"
    return format_html('{} · <a class="text-link" href="{}">Undo this change</a>', revision, url)


def told(
    name: str, title: str, show: Callable[[AuditEntry, Told], str], order: str | None = None
) -> Column[AuditEntry, dict[str, Told]]:
    """Return a column that shows what is told of an entry."""
    return Column(name=name, title=title, read=read_told, show=lambda row, found: show(row, found[row.pk]), order=order)


def export(page: PartsPage, request: HttpRequest, form: str) -> HttpResponseBase:
    """Return the entries of the list as a file, with the same filters, written while they are read."""
    if not page.has_view_permission(request):
        raise PermissionDenied
    try:
        rows = page.listed(request)
    except IncorrectLookupParameters as exc:
        raise BadRequest from exc  # the list itself then shows all rows, which a file must not pass for
    lines, kind = EXPORTS[form]
    return streamed(lines(rows), f"audit.{form}", keeps_access(request.user, "policies.view_auditentry"), kind)


def export_urls(request: HttpRequest) -> dict[str, str]:
    """Return the address of each file with the entries of a list."""
    return {form: f"{request.path}export.{form}?{request.GET.urlencode()}" for form in EXPORTS}


EXPORT_LINKS = ListPanel(
    name="export_urls", template="admin/sluicegate/revisions/audit_export.html", answer=export_urls
)


@admin.register(AuditEntry)
class AuditEntryAdmin(PartsPage):
    list_display = ["when", "author", "deed", "object_link", "changed", "reason", "published"]
    list_display_links = ["when"]
    columns = (
        told("object_link", "Object", object_link, order="object_label"),
        told("changed", "Changed", changed),
        told("published", "Published as", published),
    )
    list_filter = [
        ("actor", FieldTextFilter),
        DEED_FILTER,
        OBJECT_FILTER,
        ("channel", ChoicesDropdownFilter),
        ("at", InstantRangeFilter),
    ]
    search = AUDIT_SEARCH
    scope = RowScope(paths=("project",))
    linked_filters = ("object_type", "object_id")
    fields = readonly_fields = [
        *("exactly", "author", "deed", "object_link", "object_id", "reason", "request_id"),
        *("published", "all_changes", "sealed"),
    ]
    list_panels = (EXPORT_LINKS,)
    views = tuple(View(path=f"export.{form}", name=form, answer=partial(export, form=form)) for form in EXPORTS)
    empty = ("Each change is recorded here, with its author, time, reason, and the values before and after.", "")

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Return the page of an entry, whose title says what happened, such as "Policy free changed"."""
        title = sentence(context["original"]).removesuffix(".")
        return super().render_change_form(
            request, context | {"title": title, "crumb": title, "subtitle": None}, **options
        )

    @display(description="When", ordering="at")
    def when(self, entry: AuditEntry) -> str:
        return instant(entry.at)

    @display(description="When")
    def exactly(self, entry: AuditEntry) -> str:
        return exact(entry.at, seconds=True)

    @display(description="By", ordering="actor")
    def author(self, entry: AuditEntry) -> str:
        return format_html('{}<span class="sg-small">{}</span>', entry.actor, entry.get_channel_display())

    @display(description="What happened", ordering="action")
    def deed(self, entry: AuditEntry) -> str:
        set_globally = entry.action.endswith(".set")
        return "set or unset as the global policy" if set_globally else verb(entry)

    @display(description="Changes")
    def all_changes(self, entry: AuditEntry) -> str:
        rows = [(_capital(line.what), line.old, line.new) for line in details(entry, Names.of([entry]))]
        return table(("Field", "Before", "After"), rows)

    @display(description="Seal")
    def sealed(self, entry: AuditEntry) -> str:
        seal = AuditSeal.objects.filter(entry_id=entry.pk).first()
        return f"number {seal.number}, {seal.digest}" if seal else badge("not sealed yet")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
