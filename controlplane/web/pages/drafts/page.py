"""The pages of drafts. Their form and their review are those of policies."""

from functools import partial

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from controlplane.changes.words.effects import effects, headline
from controlplane.changes.words.fields import NoNames
from controlplane.changes.words.words import lines_of
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import may
from controlplane.objects.policies.models import Policy
from controlplane.releases.drafts.actions import discard_draft, reopen_draft
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.web.kit.dialogs import Asking, Page, RowAction
from controlplane.web.kit.filters import RowFilter
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.page import PartsPage, page_of
from controlplane.web.kit.parts import Filter
from controlplane.web.kit.site import change_url, done, instant, link_to
from controlplane.web.kit.tags import tag
from controlplane.web.pages.drafts.views import draft_form, publish_view
from controlplane.web.scope.rows import RowScope

TAGS = {"open": ("edit_note", "warn"), "published": ("check_circle", "good"), "discarded": ("delete", "")}


DRAFT_STATE_FILTER = Filter(
    name="state",
    title="state",
    choices=[*PolicyDraft.STATES, ("all", "all")],
    usual=PolicyDraft.OPEN,
    narrow=lambda rows, state, request: rows if state == "all" else rows.filter(state=state),
)


def _may(page: Page, request: HttpRequest, object_id: str, *, is_open: bool) -> bool:
    draft = page.get_queryset(request).filter(pk=unquote(object_id)).first()
    return draft is not None and draft.is_open is is_open and may(request.user, EDITOR, draft.project_id)


def _edit(page: Page, request: HttpRequest, object_id: str) -> HttpResponse:
    draft = page.get_queryset(request).get(pk=unquote(object_id))
    return draft_form(page_of(Policy), request, draft)


def _publish(page: Page, request: HttpRequest, object_id: str) -> HttpResponse:
    draft = page.get_queryset(request).get(pk=unquote(object_id))
    return publish_view(page_of(Policy), request, draft)


def _discard(page: Page, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
    try:
        with page.changing(request, form.cleaned_data["reason"]) as tx:
            draft = page.present(request, object_id)
            discard_draft(tx, draft)
        messages.success(request, f"{draft} is discarded.")
    except ValidationError as exc:
        messages.error(request, " ".join(exc.messages))
    return done(change_url(PolicyDraft(pk=unquote(object_id))))


def _reopen(page: Page, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
    with page.changing(request, form.cleaned_data["reason"]) as tx:
        draft = page.present(request, object_id)
        if not draft.is_open:
            reopen_draft(tx, draft)
    messages.success(request, f"{draft} is open.")
    return done(change_url(draft))


_may_edit = partial(_may, is_open=True)
EDIT = RowAction(name="edit", title="Edit", icon="edit", may=_may_edit, answer=_edit)
PUBLISH = RowAction(name="publish", title="Review and publish", icon="publish", may=_may_edit, answer=_publish)
DISCARD = RowAction(
    name="discard",
    title="Discard",
    icon="delete",
    may=_may_edit,
    answer=_discard,
    dialog=Asking(
        title="Discard this draft",
        description="Nothing that is published changes. You can reopen the draft.",
        submit="Discard the draft",
    ),
)
REOPEN = RowAction(
    name="reopen",
    title="Reopen",
    icon="undo",
    may=partial(_may, is_open=False),
    answer=_reopen,
    dialog=Asking(
        title="Reopen this draft",
        description="It is as it was when it was last saved. Nothing is published.",
        submit="Reopen the draft",
    ),
)


@admin.register(PolicyDraft)
class PolicyDraftAdmin(PartsPage):
    # It is deleted with its policy, and only with it.
    ends_with_owner = True
    list_display = ["slug", "shown_state", "of", "headline", "owner", "saved_by", "saved"]
    list_filter = [DRAFT_STATE_FILTER, ("project", RowFilter)]
    search_fields = ["slug", "saved_by"]
    fields = readonly_fields = ["shown_state", "of", "owner", "what_changes", "saved_by", "saved"]
    row_actions = (EDIT, PUBLISH, DISCARD, REOPEN)
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
