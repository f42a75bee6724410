"""The step between the form of a policy and its new state, which shows what the change will do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html

from controlplane.access.scope import is_operator, projects_of
from controlplane.adminkit.forms import version_of
from controlplane.adminkit.site import actor_of, change_url, link_to
from controlplane.core.files import streamed
from controlplane.fleet.heartbeats import fleet_now
from controlplane.policies.actions import lock_global_policy, replace_limits, set_global_policy
from controlplane.policies.models import Policy
from controlplane.preview import words
from controlplane.preview.kinds import ANONYMOUS, DAY, PROJECT, TOKEN, WEEK, Caller
from controlplane.projects.models import Project, Token
from controlplane.review.affected import csv_lines
from controlplane.review.charts import by_hour, plot
from controlplane.review.replaying import start_replay
from controlplane.review.reviews import (
    ENFORCE,
    SHADOW,
    Review,
    in_question,
    review_of,
    review_of_reach,
    start_in_shadow,
    with_preview,
)
from controlplane.review.verdicts import Verdict, enforced, verdicts_of

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.preview.previews import Preview

# The fields that the review adds to those of the form.
START, USE, SPAN, RANGE, FILE, REPLAY = "_start", "_use", "_span", "_range", "_file", "_replay"
# Who presses one of these decides nothing yet.
ASKING = (USE, SPAN, FILE, REPLAY)
OWN_FIELDS = (START, RANGE, *ASKING, "_back", "change_reason", "csrfmiddlewaretoken")
SPANS = {"24h": (DAY, "24 hours"), "7d": (WEEK, "7 days")}
NO_REASON = "Say why, because requests may be denied that passed before. The audit keeps the reason."
NO_START = "Choose how to start."


class ReviewNeeded(Exception):
    """Raised inside the transaction of a change, which is undone, because nobody has confirmed its review."""

    def __init__(self, policy: Policy, before: dict[str, Any], after: dict[str, Any], error: str = "") -> None:
        super().__init__(policy.slug)
        self.policy, self.before, self.after, self.error = policy, before, after, error

    def review(self, projects: set[str] | None) -> Review:
        """Return the review without its preview, of the projects that the reader may see."""
        return review_of(self.policy, self.before, self.after, projects)


def visible(request: HttpRequest) -> set[str] | None:
    """Return the ids of the projects that the user may see, or None for all of them."""
    if is_operator(request.user):
        return None
    return set(projects_of(request.user).values_list("pk", flat=True))


class ReviewedForm:
    """A mixin for a page whose form is saved only after a review, if somebody feels the change."""

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        if request.method == "POST" and any(name in request.POST for name in ASKING):
            request.POST = _without_decision(request.POST)
        try:
            return super().changeform_view(request, *args, **options)
        except ReviewNeeded as needed:
            request.held_messages = request.change = None
            return self.review_page(request, needed)

    def review_page(self, request: HttpRequest, needed: ReviewNeeded, **more: Any) -> HttpResponse:
        """Return the page that shows what a change will do, and asks how to start it."""
        review = needed.review(visible(request))
        return self._page_of(request, review, needed.after, needed.error, **more)

    def _page_of(
        self,
        request: HttpRequest,
        review: Review,
        after: dict[str, Any],
        error: str,
        *,
        offer_shadow: bool = True,
        others: bool = True,
        **more: Any,
    ) -> HttpResponse:
        if FILE in request.POST:
            return self.affected_file(request, review, after)
        span, now, seen = _span(request), timezone.now(), visible(request)
        review = with_preview(review, after, now, SPANS[span][0], seen, others=others)
        if REPLAY in request.POST:
            return self.replay_job(request, review, after)
        context = _context(request, review, error, span, offer_shadow=offer_shadow)
        return self.page(request, "preview/review.html", title=f"Review: {review.subject}", **{**context, **more})

    def replay_job(self, request: HttpRequest, review: Review, after: dict[str, Any]) -> HttpResponse:
        """Start the job that replays what the preview only summarises, and return a redirect to its page."""
        by = actor_of(request)
        author = {"user": request.user, "created_by": by.name, "channel": by.channel, "request_id": by.request_id}
        job = start_replay(review, in_question(review, after), visible(request), **author)
        return HttpResponseRedirect(change_url(job))

    def affected_file(self, request: HttpRequest, review: Review, after: dict[str, Any]) -> HttpResponse:
        """Return a CSV file of all callers that the change would have limited, of the projects that the user sees."""
        from controlplane.preview.previews import Recorded  # numpy, which only a preview needs

        length = SPANS[_span(request)][0]
        recorded = Recorded(review.policy, timezone.now(), length, visible(request), review.holder)
        return streamed(csv_lines(recorded, in_question(review, after)), f"{review.policy.slug}-affected.csv")


class ReviewedPolicies(ReviewedForm):
    """A mixin for the page of policies, which saves a change of limits that somebody feels only after its review."""

    change_form_outer_before_template = "admin/sluicegate/preview/verdicts.html"

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.enforce_view)
        own = path("<path:object_id>/enforce/", view, name="policies_policy_enforce")
        return [own, *super().get_urls()]

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        policy = context.get("original")
        if policy is not None and request.method == "GET":
            context |= {
                "verdicts": [verdict_context(one) for one in verdicts_of(policy, timezone.now(), visible(request))]
            }
        return super().render_change_form(request, context, **options)

    def enforce_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the review of enforcing a shadow limit, with what it saw, and enforce it once that is confirmed."""
        policy = self.get_object(request, self.key_of(object_id))
        if policy is None:
            raise Http404
        if not self.has_change_permission(request, policy):
            raise PermissionDenied
        if any(name in request.POST for name in ASKING):
            request.POST = _without_decision(request.POST)
        limit = request.GET.get("limit", "")
        values = enforced(policy, limit)
        if values is None:
            raise Http404
        before = policy.as_record()
        after = {**before, "limits": [value.to_json() for value in values]}
        error = ""
        if request.method == "POST" and START in request.POST:
            reason = request.POST.get("change_reason", "")
            error = NO_REASON if not reason.strip() else ""
            if not error:
                return self._enforce(request, policy, limit, reason)
        verdict = next(one for one in verdicts_of(policy, timezone.now(), visible(request)) if one.limit.name == limit)
        needed = ReviewNeeded(policy, before, after, error)
        return self.review_page(request, needed, offer_shadow=False, verdict=verdict_context(verdict))

    def _enforce(self, request: HttpRequest, policy: Policy, limit: str, reason: str) -> HttpResponse:
        with self.changing(request, reason) as tx:
            present = Policy.objects.select_for_update().get(pk=policy.pk)
            values = enforced(present, limit)
            if values is None or version_of(present) != request.POST.get("seen_version"):
                messages.error(request, f"{policy} was changed after you opened the review. Nothing was changed.")
                return HttpResponseRedirect(change_url(policy))
            before = present.as_record()
            replace_limits(tx, present, values)
            tx.updated(present, before)
            self.message_user(request, f"{limit} of {policy} is enforced.", messages.SUCCESS)
        return HttpResponseRedirect(change_url(policy))

    def reach_view(self, request: HttpRequest, object_id: str, *, everywhere: bool) -> HttpResponse:
        """Show the review of the choice of the global policy, and choose it once that is confirmed."""
        policy = self.get_object(request, self.key_of(object_id))
        if policy is None:
            raise Http404
        if everywhere and policy.project_id:
            text = f"{policy} belongs to the project {policy.project} and cannot apply to other projects."
            messages.error(request, text)
            return HttpResponseRedirect(change_url(policy))
        if policy.is_global == everywhere:
            messages.info(request, f"Nothing was changed. {policy} applies {_where(policy)} already.")
            return HttpResponseRedirect(change_url(policy))
        if any(name in request.POST for name in ASKING):
            request.POST = _without_decision(request.POST)
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
                return self._set_reach(request, policy, review, reason)
        more: dict[str, Any] = {"seen_version": "" if "seen_version" in request.POST else seen, "no_form": True}
        after = policy.as_record() if everywhere else {"limits": []}
        return self._page_of(request, review, after, error, offer_shadow=offer_shadow, others=False, **more)

    def _set_reach(self, request: HttpRequest, policy: Policy, review: Review, reason: str) -> HttpResponse:
        with self.changing(request, reason) as tx:
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
            self.message_user(request, f"{policy} applies {_where(policy)}.", messages.SUCCESS)
        return HttpResponseRedirect(change_url(policy))

    def settle_review(self, request: HttpRequest, policy: Policy) -> None:
        """
        Do nothing if the change, which is saved but not committed, needs no review, or start it as the review says.

        Raises:
            ReviewNeeded: Nobody has confirmed the change yet. It is undone.
        """
        before = request.before
        if before is None:
            return
        saved = Policy.objects.get(pk=policy.pk)
        after = saved.as_record()
        if FILE in request.POST or REPLAY in request.POST:  # whoever asks for more saves nothing
            raise ReviewNeeded(saved, before, after)
        review = review_of(saved, before, after, visible(request))
        if not review.is_needed:
            return
        start = request.POST.get(START, "")
        if error := missing(review, start, request.change.reason):
            raise ReviewNeeded(saved, before, after, error if start else "")
        if start == SHADOW:
            start_in_shadow(request.change, saved, review.changes)


def _where(policy: Policy) -> str:
    return "to every request" if policy.is_global else "only to its tokens and projects"


def former_of(policy: Policy) -> Policy | None:
    """Return the global policy in whose place another one would come, or None."""
    return Policy.objects.filter(is_global=True).exclude(pk=policy.pk).first()


def _seen(policy: Policy, former: Policy | None) -> str:
    """Return what names the state that a review of the global policy has shown."""
    return " ".join(f"{one.pk} {version_of(one)}" for one in (policy, former) if one)


def _span(request: HttpRequest) -> str:
    """Return the name of the range of time that the user has chosen for the preview."""
    span = request.POST.get(RANGE, "")
    return span if span in SPANS else "24h"


def missing(review: Review, start: str, reason: str) -> str:
    """Return what the decision on a review lacks, or nothing."""
    if start not in (SHADOW, ENFORCE) or (start == SHADOW and not review.can_start_in_shadow):
        return NO_START
    return NO_REASON if review.needs_reason and not reason.strip() else ""


def _without_decision(posted: QueryDict) -> QueryDict:
    """Return the posted fields with the quota or the range that the user wants to see, so that it is reviewed again."""
    changed = posted.copy()
    changed.pop(START, None)
    if span := changed.pop(SPAN, None):
        changed[RANGE] = span[0]
    name, _, quota = changed.pop(USE, [""])[0].rpartition("=")
    for field in list(changed):
        if field.startswith("limits-") and field.endswith("-name") and changed[field] == name:
            changed[field.removesuffix("name") + "quota"] = quota
    return changed


def _context(request: HttpRequest, review: Review, error: str, span: str, *, offer_shadow: bool) -> dict[str, Any]:
    found = review.preview
    assert found is not None
    posted = request.POST
    fields = [(name, value) for name, values in posted.lists() for value in values if name not in OWN_FIELDS]
    instances = len(fleet_now()) if request.user.has_perm("fleet.view_instance") else None
    offer_shadow = offer_shadow and review.can_start_in_shadow
    start = posted.get(START, "") or (SHADOW if offer_shadow else ENFORCE)
    return {
        "offer_shadow": offer_shadow,
        "seen_version": "" if "seen_version" in posted else version_of(review.policy),
        "review": review,
        "policy": review.policy,
        "policy_url": change_url(review.policy),
        "fields": [*fields, (RANGE, span)],
        "error": error,
        "reason": posted.get("change_reason", ""),
        "start": start,
        "verb": "Start in shadow" if start == SHADOW else _verb(review),
        "enforce_verb": _verb(review),
        "instances": instances,
        "environment_name": settings.ENVIRONMENT_NAME,
        "spans": [(name, text, name == span) for name, (_, text) in SPANS.items()],
        **preview_context(found),
    }


def _verb(review: Review) -> str:
    return "Enforce now" if review.needs_reason else "Apply now"


def preview_context(found: Preview) -> dict[str, Any]:
    """Return what the template of a preview shows."""
    return {
        "preview": found,
        "sentence": words.sentence(found),
        "resolution": words.resolution(found),
        "gaps": words.gaps(found),
        "plot": plot(found.histogram) if found.histogram else None,
        "affected": list(_rows(found)),
        "span_text": words.span_of(found),
    }


def _rows(found: Preview) -> Iterable[dict[str, Any]]:
    names = names_of([one.caller for one in found.affected])
    for one in found.affected:
        share = words.percent(one.denied.likely, one.requests)
        yield {"link": names.get(one.caller, one.caller[1] or "everything together"), "share": share, "row": one}


def names_of(callers: Iterable[Caller]) -> dict[Caller, str]:
    """Return links to callers. One that is deleted by now is left out."""
    ids: dict[str, list[str]] = {TOKEN: [], PROJECT: [], ANONYMOUS: []}
    for kind, pk in callers:
        ids.setdefault(kind, []).append(pk)
    tokens, projects = Token.objects.in_bulk(ids[TOKEN]), Project.objects.in_bulk(ids[PROJECT] + ids[ANONYMOUS])
    linked = {(TOKEN, pk): link_to(token, token.name) for pk, token in tokens.items()}
    for pk, project in projects.items():
        linked[PROJECT, pk] = format_html("project {}", link_to(project))
        linked[ANONYMOUS, pk] = format_html("requests without a token of {}", link_to(project))
    return linked


def verdict_context(verdict: Verdict) -> dict[str, Any]:
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
