"""The pages of drafts. Their form and their review are those of policies."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import display

from controlplane.changes.words.effects import effects, headline
from controlplane.changes.words.fields import NoNames
from controlplane.changes.words.words import lines_of
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import may
from controlplane.objects.policies.models import Policy
from controlplane.releases.drafts.actions import discard_draft, reopen_draft
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.web.kit.dialogs import action
from controlplane.web.kit.filters import RowFilter
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import change_url, done, instant, link_to
from controlplane.web.kit.tags import tag
from controlplane.web.scope.rows import RowScope

TAGS = {"open": ("edit_note", "warn"), "published": ("check_circle", "good"), "discarded": ("delete", "")}


class DraftStateFilter(DropdownFilter):
    """A filter by state. It shows the open drafts unless another state is chosen."""

    title = "state"
    parameter_name = "state"
    all_option = None

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*PolicyDraft.STATES, ("all", "all")]

    def value(self) -> str:
        return super().value() or PolicyDraft.OPEN

    def queryset(self, request: HttpRequest, rows: QuerySet[PolicyDraft]) -> QuerySet[PolicyDraft]:
        return rows if self.value() == "all" else rows.filter(state=self.value())


@admin.register(PolicyDraft)
class PolicyDraftAdmin(PartsPage):
    # It is deleted with its policy, and only with it.
    ends_with_owner = True
    list_display = ["slug", "shown_state", "of", "headline", "owner", "saved_by", "saved"]
    list_filter = [DraftStateFilter, ("project", RowFilter)]
    search_fields = ["slug", "saved_by"]
    fields = readonly_fields = ["shown_state", "of", "owner", "what_changes", "saved_by", "saved"]
    actions_detail = ["edit", "publish", "discard", "reopen"]
    empty = (
        "A draft is a policy, or a change of one, that is not published. Save one from the form of a policy.",
        "",
    )
    scope = RowScope(paths=("project_id",))

    def get_queryset(self, request: HttpRequest) -> QuerySet[PolicyDraft]:
        rows = super().get_queryset(request).select_related("policy__project", "project")
        return rows.prefetch_related("policy__limits")

    @display(description="State")
    def shown_state(self, draft: PolicyDraft) -> SafeString:
        shown = tag(draft.state, *TAGS[draft.state])
        if not (draft.is_open and draft.is_behind):
            return shown
        behind = tag("policy changed since", "warning", "warn", "Publishing replaces that change. The review shows it.")
        return format_html("{} {}", shown, behind)

    @display(description="Draft of")
    def of(self, draft: PolicyDraft) -> str:
        text = format_html("a change of {}", link_to(draft.policy)) if draft.policy else "a new policy"
        if draft.is_orphan:
            text = "a new policy, because its own was deleted"
        return format_html('<span class="sg-nowrap">{}</span>', text)

    @display(description="Project")
    def owner(self, draft: PolicyDraft) -> str:
        return link_to(draft.project) if draft.project else "all projects"

    @display(description="What it changes")
    def headline(self, draft: PolicyDraft) -> str:
        return headline(draft.slug, effects(*draft.as_change().objects))

    @display(description="What it changes")
    def what_changes(self, draft: PolicyDraft) -> SafeString | str:
        """Return each limit and each field that is another than in the policy as it is now."""
        change = draft.as_change()
        if change.is_empty:
            return "nothing"
        (one,) = change.objects
        items = format_html_join("", "<li>{}</li>", ((str(line),) for line in lines_of(one, NoNames())))
        return format_html('<ul class="sg-limits">{}</ul>', items)

    @display(description="Saved", ordering="updated_at")
    def saved(self, draft: PolicyDraft) -> str:
        return instant(draft.updated_at)

    def _may(self, request: HttpRequest, object_id: Any, *, is_open: bool) -> bool:
        draft = self.get_queryset(request).filter(pk=self.key_of(object_id)).first()
        return draft is not None and draft.is_open is is_open and may(request.user, EDITOR, draft.project_id)

    def has_edit_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may(request, object_id, is_open=True)

    def has_reopen_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may(request, object_id, is_open=False)

    @action(description="Edit", permissions=["edit"], icon="edit")
    def edit(self, request: HttpRequest, object_id: str) -> HttpResponse:
        draft = self.get_queryset(request).get(pk=self.key_of(object_id))
        return self.admin_site.get_model_admin(Policy).draft_form(request, draft)

    @action(description="Review and publish", permissions=["edit"], icon="publish")
    def publish(self, request: HttpRequest, object_id: str) -> HttpResponse:
        draft = self.get_queryset(request).get(pk=self.key_of(object_id))
        return self.admin_site.get_model_admin(Policy).publish_view(request, draft)

    @action(
        description="Discard",
        permissions=["edit"],
        icon="delete",
        dialog={
            "title": "Discard this draft",
            "description": "Nothing that is published changes. You can reopen the draft.",
            "form_class": ReasonDialog,
            "form_submit_text": "Discard the draft",
        },
    )
    def discard(self, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        try:
            with self.changing(request, form.cleaned_data["reason"]) as tx:
                draft = self.present(request, object_id)
                discard_draft(tx, draft)
            messages.success(request, f"{draft} is discarded.")
        except ValidationError as exc:
            messages.error(request, " ".join(exc.messages))
        return done(change_url(PolicyDraft(pk=self.key_of(object_id))))

    @action(
        description="Reopen",
        permissions=["reopen"],
        icon="undo",
        dialog={
            "title": "Reopen this draft",
            "description": "It is as it was when it was last saved. Nothing is published.",
            "form_class": ReasonDialog,
            "form_submit_text": "Reopen the draft",
        },
    )
    def reopen(self, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        with self.changing(request, form.cleaned_data["reason"]) as tx:
            draft = self.present(request, object_id)
            if not draft.is_open:
                reopen_draft(tx, draft)
        messages.success(request, f"{draft} is open.")
        return done(change_url(draft))
