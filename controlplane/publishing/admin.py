import json
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.enums import ActionVariant

from controlplane.access.scope import is_operator
from controlplane.adminkit.dialogs import action
from controlplane.adminkit.filters import InstantRangeFilter
from controlplane.adminkit.forms import ReasonDialog
from controlplane.adminkit.site import ChangingAdmin, ReadOnlyAdmin, badge, change_url, done, instant, link_to, table
from controlplane.fleet import heartbeats
from controlplane.fleet.models import Instance
from controlplane.policies.differences import differences
from controlplane.policies.models import Policy
from controlplane.projects.models import Project
from controlplane.publishing import publisher
from controlplane.publishing.models import OutboxEntry, Revision
from controlplane.publishing.rollback import rollback
from controlplane.publishing.summaries import entries_of, first_entries, in_words

NAMES_SHOWN = 3


@admin.register(Revision)
class RevisionAdmin(ChangingAdmin, ReadOnlyAdmin):
    list_display = ["number", "published", "by", "channel", "changed", "runs_on"]
    list_filter = [("at", InstantRangeFilter)]
    search_fields = ["=number", "by"]
    fields = readonly_fields = [
        *("published", "epoch", "by", "channel", "what_changed"),
        *("runs_on", "who_runs_what", "documents"),
    ]
    actions_detail = ["roll_back"]
    empty = ("Each publication to the proxies gets the next number. Nothing is published yet.", "")

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist, fleet = super().get_changelist_instance(request), heartbeats.fleet_now()
        entries = first_entries(changelist.result_list, NAMES_SHOWN)
        for revision in changelist.result_list:
            revision.fleet, revision.entries = fleet, entries[revision.number]
        return changelist

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Revision | None:
        revision = super().get_object(request, object_id, from_field)
        if revision is not None:
            revision.fleet = heartbeats.fleet_now()
            revision.entries = first_entries([revision], NAMES_SHOWN)[revision.number]
        return revision

    @display(description="Published", ordering="at")
    def published(self, revision: Revision) -> str:
        return instant(revision.published_at) if revision.published_at else badge("not published", "warn")

    @display(description="Changed")
    def changed(self, revision: Revision) -> str:
        changes = revision.changes
        if changes.get("full"):
            return f"everything ({len(changes['documents'])} documents, {changes.get('token_count', 0)} tokens)"
        if revision.entries:
            names = [in_words(entry) for entry in revision.entries]
            count = sum({entry.change: entry.of_change for entry in revision.entries}.values())
        else:  # a revision of 0.2.0 or of the reconciler
            names = [*map(name_of, changes.get("documents", {}).items())]
            names += [f"token {token['prefix']}…" for token in changes.get("tokens", [])]
            names += ["a reset of counters"] * bool(changes.get("resets"))
            count = len(names)
        more = f" and {count - NAMES_SHOWN:,} more" if count > NAMES_SHOWN else ""
        return ", ".join(names[:NAMES_SHOWN]) + more or "—"

    @display(description="Changed")
    def what_changed(self, revision: Revision) -> str:
        entries, count = entries_of(revision)
        if not entries:
            return self.changed(revision)
        rows = []
        for entry in entries:
            fields = differences(entry.before, entry.after) or [("—", "—", "—")]
            names = [link_to(entry, in_words(entry)), *[""] * (len(fields) - 1)]
            rows += [(name, *field) for name, field in zip(names, fields, strict=True)]
        if count > len(entries):
            rows.append((f"and {count - len(entries):,} more, which the audit has", "", "", ""))
        return table(("Change", "Field", "Before", "After"), rows)

    @display(description="Acknowledged by")
    def runs_on(self, revision: Revision) -> str:
        if revision.fleet.unknown:
            return badge("unknown, the store is not reachable", "warn")
        acknowledged, total = heartbeats.acknowledged(revision.number, revision.fleet)
        if not total:
            return badge("no live instance", "warn")
        return badge(f"{acknowledged} of {total} instances", "good" if acknowledged == total else "warn")

    @display(description="Instances")
    def who_runs_what(self, revision: Revision) -> str:
        rows = [
            (link_to(row), row.host, row.revision, _standing(row, revision), instant(row.seen_at))
            for row in revision.fleet
        ]
        head = ("Instance", "Host", "Revision", "Compared with this one", "Last seen")
        if revision.fleet.unknown:
            note = f"{revision.fleet.unknown} These instances ran when it last answered."
            return format_html("<p>{}</p>{}", note, table(head, rows))
        return table(head, rows) if rows else "No instance is live."

    @display(description="Published documents")
    def documents(self, revision: Revision) -> str:
        documents = revision.changes.get("documents", {}).items()
        return format_html_join(
            "",
            '<details class="sg-document"><summary>{}</summary><pre tabindex="0">{}</pre></details>',
            ((name_of((name, document)), json.dumps(document, indent=2)) for name, document in documents),
        )

    @action(
        description="Roll back to this revision",
        permissions=["roll_back"],
        variant=ActionVariant.DANGER,
        icon="history",
        dialog={
            "title": "Roll back to this revision",
            "description": "Policies with their limits, the policy of each project and the global policy are restored, "
            "as a new revision. Newer policies and projects stay. Tokens, overrides and prices do not change.",
            "form_class": ReasonDialog,
            "form_submit_text": "Roll back",
        },
    )
    def roll_back(self, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        number = number_of(object_id)
        try:
            with self.changing(request, form.cleaned_data["reason"]) as tx:
                rollback(tx, number)
                if not tx.is_empty:
                    self.message_user(request, f"Rolled back to revision {number}.", messages.SUCCESS)
            if tx.is_empty:
                same = f"Policies and projects are as they were at revision {number}."
                messages.warning(request, f"Nothing was changed. {same}")
        except ValidationError as exc:
            messages.error(request, f"Nothing was changed. {' '.join(exc.messages)}")
        return done(change_url(Revision(number=tx.revision or number)))

    def get_actions_detail(self, request: HttpRequest, object_id: str) -> list[Any]:
        """Return the actions, none on the page of the last revision, which cannot be rolled back to."""
        past = object_id.isdecimal() and int(object_id) < publisher.last_revision()
        return super().get_actions_detail(request, object_id) if past else []

    def has_roll_back_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return is_operator(request.user)


def number_of(object_id: str) -> int:
    """
    Return the number in the address of a revision.

    Raises:
        Revision.DoesNotExist: It is not a number.
    """
    if not object_id.isdecimal():
        raise Revision.DoesNotExist
    return int(object_id)


def _standing(instance: Instance, revision: Revision) -> str:
    if instance.revision >= revision.number:
        return badge("same or later", "good")
    return badge(f"{revision.number - instance.revision} behind", "warn")


def name_of(document: tuple[str, Any]) -> str:
    """Return the name of a published document for people, with the slug that it had."""
    name, content = document
    kind, _, object_id = name.partition(":")
    if kind == "global":
        return "the global policy"
    if content is None:
        return f"{kind} {object_id} deleted"
    return f"{kind} {content.get('slug', object_id)}"


@admin.register(OutboxEntry)
class OutboxAdmin(ReadOnlyAdmin):
    list_display = ["kind", "what", "by", "created", "published"]
    list_filter = [("kind", ChoicesDropdownFilter)]
    fields = readonly_fields = ["kind", "what", "by", "channel", "created", "published"]
    list_select_related = ["revision"]
    ordering = ["-id"]
    empty = ("Each change is listed here until it is published to the store.", "")

    @display(description="Object")
    def what(self, entry: OutboxEntry) -> str:
        model = {"policy": Policy, "project": Project}.get(entry.kind)
        row = model and model.objects.filter(pk=entry.object_id).first()
        return link_to(row) if row else entry.object_id[:16] or "—"

    @display(description="Created", ordering="created_at")
    def created(self, entry: OutboxEntry) -> str:
        return instant(entry.created_at)

    @display(description="Published")
    def published(self, entry: OutboxEntry) -> str:
        return link_to(entry.revision) if entry.revision else badge("pending", "warn")


def pending_badge(request: HttpRequest) -> str:
    """Return the number of unpublished changes as a string for the menu, or an empty string if there are none."""
    return str(OutboxEntry.objects.filter(revision=None).count() or "")
