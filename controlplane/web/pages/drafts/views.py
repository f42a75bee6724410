"""Drafts on the pages of policies: the form that saves one, the form of one, and the review that publishes one."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from controlplane.changes.change.transaction import OpenChange
from controlplane.changes.words.change import ObjectChange
from controlplane.core.requests import PerRequest
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Limit, Policy
from controlplane.releases.drafts.actions import (
    GONE,
    content_of,
    lay_out,
    lock_project,
    publish_draft,
    save_draft,
    with_free_slug,
)
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.releases.review.reviews import SHADOW, review_of, start_in_shadow
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.forms import SentForms, say_once
from controlplane.web.kit.parts import BELOW, ListPanel, Panel
from controlplane.web.kit.site import actor_of, change_url, list_url
from controlplane.web.kit.state import state_of
from controlplane.web.pages.review.views import (
    OTHER_CHANGE,
    SEEN,
    START,
    ReviewNeeded,
    ask_again,
    missing,
    review_page,
    visible,
)

DRAFT = "_draft"
SAME = "Nothing differs from the policy as it is, so no draft was saved."
SAVED = "Saved as a draft. Nothing is published."
IN_FILES = "Say why, because the policy is managed from files. The audit keeps the reason."


class DraftWanted(Exception):
    """Raised inside the transaction of a form that is saved as a draft. What the form has changed is undone."""

    def __init__(self, policy: Policy, content: dict[str, Any]) -> None:
        super().__init__(policy.slug)
        self.policy, self.content = policy, content


@dataclass(slots=True)
class OpenDraft:
    """
    What a page of policies keeps of a draft while it answers one request.

    Attributes:
        draft: The draft whose form is shown or saved, or None for that of the policy.
        limits: The ids of the limits that the policy has without the form.
    """

    draft: PolicyDraft | None = None
    limits: set[str] = field(default_factory=set)


open_draft: PerRequest[OpenDraft] = PerRequest(lambda request: OpenDraft())


def seen_drafts(user: Any) -> Any:
    """Return a query of the open drafts that the user may see."""
    rows = PolicyDraft.objects.filter(state=PolicyDraft.OPEN)
    return rows if is_operator(user) else rows.filter(project__in=projects_of(user).values("pk"))


@dataclass(frozen=True, slots=True)
class OpenDrafts:
    """The number of the open drafts that a user sees, with the address of their list."""

    count: int
    url: str


OPEN_DRAFTS = ListPanel(
    name="drafts",
    template="admin/sluicegate/draft_note.html",
    answer=lambda request: OpenDrafts(seen_drafts(request.user).count(), list_url(PolicyDraft)),
)
SAVE_DRAFT = Panel[Policy](name="save_draft", template="admin/sluicegate/save_draft.html", place=BELOW)


def settle_draft(request: HttpRequest, policy: Policy) -> None:
    """
    Do nothing unless the form of a policy is that of a draft, or saved as one.

    Raises:
        DraftWanted: The form is to be saved as a draft.
    """
    opened = open_draft(request)
    if DRAFT in request.POST or opened.draft is not None:
        saved = Policy.objects.select_related("project").get(pk=policy.pk)
        raise DraftWanted(saved, content_of(saved, opened.limits))


def drafted(
    page: EditPage, request: HttpRequest, object_id: str | None, view: Callable[[], HttpResponse]
) -> HttpResponse:
    """Return the response of *view*, or save the form that it reads as a draft, if that is asked for."""
    opened = open_draft(request)
    if opened.draft is not None or request.method != "POST" or DRAFT not in request.POST:
        return view()
    # Before the form is saved, of which all is undone.
    kept = Limit.objects.filter(policy=unquote(object_id or "")).values_list("pk", flat=True)
    opened.limits = set(kept)
    try:
        return view()
    except DraftWanted as wanted:
        policy = Policy.objects.filter(pk=wanted.policy.pk).first()
        draft = PolicyDraft(policy=policy, policy_key=wanted.policy.pk, project=wanted.policy.project)
        return _keep(page, request, draft, wanted.content)


def _keep(page: EditPage, request: HttpRequest, draft: PolicyDraft, content: dict[str, Any]) -> HttpResponse:
    state_of(request).undone()
    if draft._state.adding and draft.policy and draft.as_change(content).is_empty:
        messages.info(request, SAME)
        return HttpResponseRedirect(change_url(draft.policy))
    try:
        with page.changing(request, request.POST.get("change_reason", "")[:500]) as tx:
            sent = SentForms(request)
            if url := sent.saved_before():
                say_once(request, messages.SUCCESS, SAVED)
                return HttpResponseRedirect(url)
            save_draft(tx, draft, content)
            sent.keep(change_url(draft))
    except ValidationError as exc:
        messages.error(request, " ".join(exc.messages))
        return HttpResponseRedirect(list_url(PolicyDraft))
    say_once(request, messages.SUCCESS, SAVED)
    return HttpResponseRedirect(change_url(draft))


def stays(policy_key: str) -> str:
    """Return what stays of a deleted policy in words, or an empty string."""
    count = PolicyDraft.objects.filter(policy=policy_key, state=PolicyDraft.OPEN).count()
    return f"{count:,} open draft{'s stay' if count > 1 else ' stays'}, of a new policy then." if count else ""


def shown_as_draft(request: HttpRequest) -> dict[str, object]:
    """Return what the form of a policy shows if it is that of a draft."""
    draft = open_draft(request).draft
    if draft is None:
        return {}
    hidden = ("show_save_and_add_another", "show_save_and_continue", "show_delete", "show_history")
    named = {"draft": draft, "crumb": str(draft), "draft_url": change_url(draft), "title": str(draft)}
    return {**dict.fromkeys(hidden, False), **named}


def draft_form(page: EditPage, request: HttpRequest, draft: PolicyDraft) -> HttpResponse:
    """
    Return the form of the policy as the draft has it, or save that form as the draft.

    The draft is laid out in a transaction that is always undone, so that the form is that of a policy.
    """
    opened = open_draft(request)
    opened.draft = draft
    opened.limits = set(Limit.objects.filter(policy=draft.policy_key).values_list("pk", flat=True))
    slug = with_free_slug(draft)
    if slug != draft.content["slug"] and request.method == "GET":
        text = f"Another policy has the slug {draft.slug} by now, so this form proposes {slug}. Save it or choose one."
        messages.warning(request, text)
    # The form works on a copy, because what it saves is compared with the draft as it is.
    shown = copy(draft)
    shown.content = {**draft.content, "slug": slug}
    try:
        with transaction.atomic():
            lay_out(OpenChange(actor_of(request), ""), shown)
            response = page.changeform_view(request, quote(draft.policy_key))
            if isinstance(response, TemplateResponse):
                response.render()
            transaction.set_rollback(True)
        state_of(request).notes = None
        return response
    except DraftWanted as wanted:
        return _keep(page, request, draft, wanted.content)
    except ValidationError as exc:
        messages.error(request, f"The draft cannot be opened as a form: {' '.join(exc.messages)}")
        return HttpResponseRedirect(change_url(draft))


def publish_view(page: EditPage, request: HttpRequest, draft: PolicyDraft) -> HttpResponse:
    """Show the review of what the draft changes, and publish it once that is confirmed."""
    ask_again(request)
    try:
        with page.changing(request, request.POST.get("change_reason", "")[:500]) as tx:
            policy = _publish(request, tx, draft)
            page.message_user(request, f"{policy} is as its draft was.", messages.SUCCESS)
    except ReviewNeeded as needed:
        state_of(request).undone()
        url = change_url(draft)
        more = {
            "policy_url": url,
            "back_url": url,
            "back_text": "Back to the draft",
            "no_form": True,
            "others": False,
        }
        return review_page(page, request, needed, **more)
    except ValidationError as exc:
        state_of(request).undone()
        messages.error(request, f"The draft cannot be published: {' '.join(exc.messages)}")
        return HttpResponseRedirect(change_url(draft))
    return HttpResponseRedirect(change_url(policy))


def _publish(request: HttpRequest, tx: OpenChange, draft: PolicyDraft) -> Policy:
    """
    Publish an open draft as its review was confirmed, and return its policy.

    Raises:
        ReviewNeeded: Nobody has confirmed the review as it is now.
        ValidationError: It is not open any more, or the policy would break a rule of the model.
    """
    lock_project(draft)
    # The policy next, as its deletion locks it before its drafts. In another order, each could wait for the other.
    Policy.objects.select_for_update(of=("self",)).filter(pk=draft.policy_id).first()
    present = PolicyDraft.objects.select_for_update(of=("self",)).filter(pk=draft.pk).first()
    if present is None or not present.is_open:
        raise ValidationError(GONE)
    policy, before = lay_out(tx, present)
    review = review_of(policy, ObjectChange.of(policy, before), visible(request))
    start = request.POST.get(START, "")
    error = missing(review, start, tx.reason) if start else ""
    if start and not error:
        if policy.managed_by and not tx.reason.strip():
            error = IN_FILES
        elif request.POST.get(SEEN) != review.digest:
            error = OTHER_CHANGE
    if error or not start:
        raise ReviewNeeded(review, error)
    if start == SHADOW:
        start_in_shadow(tx, policy, review.changes)
    publish_draft(tx, present, policy, before)
    return policy
