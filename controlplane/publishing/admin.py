import json
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RangeDateTimeFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant

from controlplane.adminkit.forms import ReasonDialog
from controlplane.adminkit.site import ChangingAdmin, ReadOnlyAdmin, badge, change_url, done, instant, link_to, table
from controlplane.fleet import heartbeats
from controlplane.fleet.models import Instance
from controlplane.policies.models import Policy
from controlplane.projects.models import Project
from controlplane.publishing import publisher
from controlplane.publishing.models import OutboxEntry, Revision
from controlplane.publishing.rollback import rollback

NAMES_SHOWN = 3


@admin.register(Revision)
class RevisionAdmin(ChangingAdmin, ReadOnlyAdmin):
    list_display = ["number", "published", "by", "channel", "changed", "runs_on"]
    list_filter = [("at", RangeDateTimeFilter)]
    search_fields = ["=number", "by"]
    fields = readonly_fields = [
        *("published", "epoch", "by", "channel", "changed"),
        *("runs_on", "who_runs_what", "documents"),
    ]
    actions_detail = ["roll_back"]
    empty = ("Each publication to the proxies gets the next number. Nothing is published yet.", "")

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist, fleet = super().get_changelist_instance(request), heartbeats.fleet_now(timezone.now())
        for revision in changelist.result_list:
            revision.fleet = fleet
        return changelist

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Revision | None:
        revision = super().get_object(request, object_id, from_field)
        if revision is not None:
            revision.fleet = heartbeats.fleet_now(timezone.now())
        return revision

    @display(description="Published", ordering="at")
    def published(self, revision: Revision) -> str:
        return instant(revision.published_at) if revision.published_at else badge("not published", "warn")

    @display(description="Changed")
    def changed(self, revision: Revision) -> str:
        changes = revision.changes
        if changes.get("full"):
            return f"everything ({len(changes['documents'])} documents, {changes.get('token_count', 0)} tokens)"
        names = [*map(name_of, changes.get("documents", {}).items())]
        names += [f"token {token['prefix']}…" for token in changes.get("tokens", [])]
        names += ["a reset of counters"] * bool(changes.get("resets"))
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return ", ".join(names[:NAMES_SHOWN]) + more or "—"

    @display(description="Acknowledged by")
    def runs_on(self, revision: Revision) -> str:
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
            "as a new revision. Newer policies and projects stay. Tokens and overrides do not change.",
            "form_class": ReasonDialog,
            "form_submit_text": "Roll back",
        },
    )
    def roll_back(self, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        try:
            with self.changing(request, form.cleaned_data["reason"]) as tx:
                rollback(tx, int(object_id))
                self.message_user(request, f"Rolled back to revision {object_id}.", messages.SUCCESS)
        except ValidationError as exc:
            messages.error(request, f"Nothing was changed. {' '.join(exc.messages)}")
        return done(change_url(Revision(number=tx.revision or int(object_id))))

    def get_actions_detail(self, request: HttpRequest, object_id: str) -> list[Any]:
        """Return the actions, without the roll-back on the page of the last revision."""
        return super().get_actions_detail(request, object_id) if int(object_id) < publisher.last_revision() else []

    def has_roll_back_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return request.user.has_perm("policies.change_policy") and request.user.has_perm("projects.change_project")


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
