"""The reviews of a changed policy, of a shadow limit that is enforced, and of the choice of the global policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from controlplane.changes.words.change import ObjectChange
from controlplane.core.optional import USAGE, optional
from controlplane.objects.policies.actions import lock_global_policy, replace_limits, set_global_policy
from controlplane.objects.policies.models import Policy
from controlplane.releases.preview import words
from controlplane.releases.review.charts import by_hour
from controlplane.releases.review.reviews import SHADOW, Review, review_of, review_of_reach, start_in_shadow
from controlplane.releases.review.verdicts import ShadowVerdict, enforced, verdicts_of
from controlplane.traffic.callers.kinds import TOKEN
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.forms import version_of
from controlplane.web.kit.parts import Panel, View
from controlplane.web.kit.site import change_url
from controlplane.web.kit.state import state_of
from controlplane.web.pages.review.views import (
    NO_REASON,
    NO_START,
    START,
    ask_again,
    missing,
    names_of,
    page_of_review,
    settle,
    visible,
)


def enforce_view(page: EditPage, request: HttpRequest, object_id: str) -> HttpResponse:
    """Show the review of enforcing a shadow limit, with what it saw, and enforce it once that is confirmed."""
    policy = page.get_object(request, page.key_of(object_id))
    if policy is None:
        raise Http404
    if not page.has_change_permission(request, policy):
        raise PermissionDenied
    ask_again(request)
    limit = request.GET.get("limit", "")
    values = enforced(policy, limit)
    if values is None:
        raise Http404
    error = ""
    if request.method == "POST" and START in request.POST:
        reason = request.POST.get("change_reason", "")
        error = NO_REASON if not reason.strip() else ""
        if not error:
            return _enforce(page, request, policy, limit, reason)
    found = optional(USAGE, lambda *_: [])(verdicts_of)(policy, timezone.now(), visible(request))
    verdict = next((verdict_context(one) for one in found if one.limit.name == limit), None)
    one = ObjectChange.of(policy, policy.as_record())
    one = replace(one, after={**(one.before or {}), "limits": [value.to_json() for value in values]})
    review = review_of(policy, one, visible(request))
    return page_of_review(page, request, review, error, offer_shadow=False, verdict=verdict)


def _enforce(page: EditPage, request: HttpRequest, policy: Policy, limit: str, reason: str) -> HttpResponse:
    with page.changing(request, reason) as tx:
        present = Policy.objects.select_for_update().get(pk=policy.pk)
        values = enforced(present, limit)
        if values is None or version_of(present) != request.POST.get("seen_version"):
            messages.error(request, f"{policy} was changed after you opened the review. Nothing was changed.")
            return HttpResponseRedirect(change_url(policy))
        before = present.as_record()
        replace_limits(tx, present, values)
        tx.updated(present, before)
        page.message_user(request, f"{limit} of {policy} is enforced.", messages.SUCCESS)
    return HttpResponseRedirect(change_url(policy))


def reach_view(page: EditPage, request: HttpRequest, object_id: str, *, everywhere: bool) -> HttpResponse:
    """Show the review of the choice of the global policy, and choose it once that is confirmed."""
    policy = page.get_object(request, page.key_of(object_id))
    if policy is None:
        raise Http404
    if everywhere and policy.project_id:
        text = f"{policy} belongs to the project {policy.project} and cannot apply to other projects."
        messages.error(request, text)
        return HttpResponseRedirect(change_url(policy))
    if policy.is_global == everywhere:
        messages.info(request, f"Nothing was changed. {policy} applies {_where(policy)} already.")
        return HttpResponseRedirect(change_url(policy))
    ask_again(request)
    former = former_of(policy) if everywhere else None
    seen = _seen(policy, former)
    policy.is_global = everywhere
    review = review_of_reach(policy, former, visible(request))
    # Otherwise the shadow would take the place of what is enforced now.
    offer_shadow = everywhere and former is None and review.can_start_in_shadow and not any(policy.uses)
    start, error = request.POST.get(START, ""), ""
    if start:
        reason = request.POST.get("change_reason", "")
        error = NO_START if start == SHADOW and not offer_shadow else missing(review, start, reason)
        if not error:
            return _set_reach(page, request, policy, review, reason)
    more: dict[str, Any] = {"seen_version": "" if "seen_version" in request.POST else seen, "no_form": True}
    return page_of_review(page, request, review, error, offer_shadow=offer_shadow, others=False, **more)


def _set_reach(page: EditPage, request: HttpRequest, policy: Policy, review: Review, reason: str) -> HttpResponse:
    with page.changing(request, reason) as tx:
        lock_global_policy()
        present = Policy.objects.select_for_update().get(pk=policy.pk)
        if _seen(present, former_of(policy) if policy.is_global else None) != request.POST.get("seen_version"):
            text = "It, or the present global policy, was changed after you opened the review. Nothing was changed."
            messages.error(request, text)
            return HttpResponseRedirect(change_url(policy))
        if request.POST[START] == SHADOW:
            before = present.as_record()
            start_in_shadow(tx, present, review.changes)
            tx.updated(Policy.objects.get(pk=policy.pk), before)
        set_global_policy(tx, present if policy.is_global else None)
        page.message_user(request, f"{policy} applies {_where(policy)}.", messages.SUCCESS)
    return HttpResponseRedirect(change_url(policy))


def settle_policy(request: HttpRequest, policy: Policy) -> None:
    """
    Do nothing if the change, which is saved but not committed, needs no review, or start it as the review says.

    Raises:
        ReviewNeeded: Nobody has confirmed the change yet. It is undone.
    """
    state = state_of(request)
    if state.before is None:
        return
    saved = Policy.objects.get(pk=policy.pk)
    review = review_of(saved, ObjectChange.of(saved, state.before), visible(request))
    settle(request, review, state.tx.reason)
    if review.is_needed and request.POST.get(START) == SHADOW:
        start_in_shadow(state.tx, saved, review.changes)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What limits in shadow have seen. Several of which nothing is known yet would push the form out of sight."""

    loud: list[dict[str, Any]]
    silent: list[ShadowVerdict]


def verdicts(request: HttpRequest, policy: Policy) -> Verdicts | None:
    """Return what the limits of a policy that are in shadow have seen, or None if there is nothing to tell."""
    if request.method != "GET":
        return None
    found = optional(USAGE, lambda *_: [])(verdicts_of)(policy, timezone.now(), visible(request))
    silent = [one for one in found if not one.requests]
    silent = silent if len(silent) > 1 else []
    return Verdicts([verdict_context(one) for one in found if one not in silent], silent) if found else None


VERDICTS = Panel(name="verdicts", template="admin/sluicegate/preview/verdicts.html", answer=verdicts)
ENFORCE_VIEW = View(path="<path:object_id>/enforce/", name="enforce", answer=enforce_view)


def _where(policy: Policy) -> str:
    return "to every request" if policy.is_global else "only to its tokens and projects"


def former_of(policy: Policy) -> Policy | None:
    """Return the global policy in whose place another one would come, or None."""
    return Policy.objects.filter(is_global=True).exclude(pk=policy.pk).first()


def _seen(policy: Policy, former: Policy | None) -> str:
    """Return what names the state that a review of the global policy has shown."""
    return " ".join(f"{one.pk} {version_of(one)}" for one in (policy, former) if one)


def verdict_context(verdict: ShadowVerdict) -> dict[str, Any]:
    """Return what the template of a verdict shows."""
    names = names_of([(TOKEN, one.token_id) for one in verdict.affected])
    rows = [
        {
            "link": names.get((TOKEN, one.token_id), one.token_id or "requests without a token"),
            "row": one,
            "share": words.percent(one.would_deny, one.requests),
            "is_large": one in verdict.large,
        }
        for one in verdict.affected
    ]
    url = reverse("admin:policies_policy_enforce", args=[quote(verdict.limit.policy_id)])
    return {
        "verdict": verdict,
        "url": f"{url}?{urlencode({'limit': verdict.limit.name})}",
        "rows": rows,
        "chart": by_hour(verdict.hours) if verdict.requests else None,
    }
