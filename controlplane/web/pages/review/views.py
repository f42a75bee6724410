"""The page between a form and its new state, which shows what the change will do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.utils import timezone
from django.utils.html import format_html

from controlplane.core.files import streamed
from controlplane.core.optional import PREVIEW, read_by
from controlplane.objects.people.scope import is_operator, keeps_access, projects_of
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs.replay import start_replay
from controlplane.releases.preview import words
from controlplane.releases.review.affected import csv_lines
from controlplane.releases.review.charts import plot
from controlplane.releases.review.reviews import (
    ENFORCE,
    SHADOW,
    Review,
    in_question,
    with_denied,
    with_preview,
)
from controlplane.traffic.callers.kinds import ANONYMOUS, DAY, PROJECT, TOKEN, WEEK, Caller
from controlplane.traffic.fleet.heartbeats import fleet_now
from controlplane.web.kit.amounts import is_money
from controlplane.web.kit.forms import BACK, version_of
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import actor_of, change_url, link_to
from controlplane.web.kit.state import reposted, state_of
from enforcement.model.money import figure

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.previews import Preview

# The fields that the review adds to those of the form.
START, USE, SPAN, RANGE, FILE, REPLAY, SEEN = "_start", "_use", "_span", "_range", "_file", "_replay", "_seen"
# Who presses one of these decides nothing yet.
ASKING = (USE, SPAN, FILE, REPLAY)
OWN_FIELDS = (START, RANGE, SEEN, *ASKING, BACK, "change_reason", "csrfmiddlewaretoken")
SPANS = {"24h": (DAY, "24 hours"), "7d": (WEEK, "7 days")}
NO_REASON = "Say why, because requests may be denied that passed before. The audit keeps the reason."
NO_START = "Choose how to start."
OTHER_CHANGE = "The change would do something else than when you opened the review. Check it and confirm again."


class ReviewNeeded(Exception):
    """
    Raised inside the transaction of a change, which is undone, because nobody has confirmed its review.

    Args:
        error: What the decision lacks.
        more: What the page shows besides the review.
    """

    def __init__(self, review: Review, error: str = "", **more: Any) -> None:
        super().__init__(review.headline)
        self.review, self.error, self.more = review, error, more


def settle(request: HttpRequest, review: Review, reason: str, *, light: bool = True, **more: Any) -> None:
    """
    Do nothing if the change that a review tells of needs none, or if it is confirmed as it is.

    The change may be saved already, in a transaction that the exception undoes.

    Args:
        light: Whether a change that only lets more pass needs its review, too.
    Raises:
        ReviewNeeded: Nobody has confirmed the change yet, or it would do something else by now.
    """
    start, asked = request.POST.get(START, ""), FILE in request.POST or REPLAY in request.POST
    needed = review.is_needed and (light or not review.is_light)
    if not needed and not asked:
        return
    error = missing(review, start, reason)
    if start and not error and request.POST.get(SEEN) != review.digest:
        error = OTHER_CHANGE
    if error or asked:
        raise ReviewNeeded(review, error if start else "", **more)


def visible(request: HttpRequest) -> set[str] | None:
    """Return the ids of the projects that the user may see, or None for all of them."""
    if is_operator(request.user):
        return None
    return set(projects_of(request.user).values_list("pk", flat=True))


def reviewed(
    page: PartsPage, request: HttpRequest, object_id: str | None, view: Callable[[], HttpResponse]
) -> HttpResponse:
    """Return the response of *view*, or the review that it needs."""
    if request.method == "POST":
        ask_again(request)
    try:
        return view()
    except ReviewNeeded as needed:
        state_of(request).undone()
        return review_page(page, request, needed)


def review_page(page: PartsPage, request: HttpRequest, needed: ReviewNeeded, **more: Any) -> HttpResponse:
    """Return the page that shows what a change will do, and asks how to start it."""
    return page_of_review(page, request, needed.review, needed.error, **{**needed.more, **more})


def page_of_review(
    page: PartsPage,
    request: HttpRequest,
    review: Review,
    error: str,
    *,
    offer_shadow: bool = True,
    others: bool = True,
    **more: Any,
) -> HttpResponse:
    if FILE in request.POST:
        return _affected_file(request, review)
    span, now, seen = _span(request), timezone.now(), visible(request)
    if review.is_light:
        review = with_denied(review, now, seen)
    else:
        review = with_preview(review, now, SPANS[span][0], seen, others=others)
    if REPLAY in request.POST and review.preview is not None:
        return _replay_job(request, review)
    context = _context(request, review, error, span, offer_shadow=offer_shadow)
    return page.page(request, "preview/review.html", title=f"Review: {review.subject}", **{**context, **more})


def _replay_job(request: HttpRequest, review: Review) -> HttpResponse:
    """Start the job that replays what the preview only summarises, and return a redirect to its page."""
    by = actor_of(request)
    author = {"user": request.user, "created_by": by.name, "channel": by.channel, "request_id": by.request_id}
    job = start_replay(review, in_question(review), visible(request), **author)
    return HttpResponseRedirect(change_url(job))


def _affected_file(request: HttpRequest, review: Review) -> HttpResponse:
    """Return a CSV file of all callers that the change would have limited, of the projects that the user sees."""
    from controlplane.releases.preview.previews import Recorded  # numpy, which only a preview needs

    read_by(request).add(PREVIEW)
    length = SPANS[_span(request)][0]
    recorded = Recorded(review.policy, timezone.now(), length, visible(request), review.supposed)
    lines, may_go_on = (
        csv_lines(recorded, in_question(review)),
        keeps_access(request.user, "policies.view_policy"),
    )
    return streamed(lines, f"{review.policy.slug}-affected.csv", may_go_on)


def _span(request: HttpRequest) -> str:
    """Return the name of the range of time that the user has chosen for the preview."""
    span = request.POST.get(RANGE, "")
    return span if span in SPANS else "24h"


def missing(review: Review, start: str, reason: str) -> str:
    """Return what the decision on a review lacks, or nothing."""
    if start not in (SHADOW, ENFORCE) or (start == SHADOW and not review.can_start_in_shadow):
        return NO_START
    return NO_REASON if review.needs_reason and not reason.strip() else ""


def ask_again(request: HttpRequest) -> None:
    """Let a request that only asks for more decide nothing, with the quota or the range that it asks for."""
    if any(name in request.POST for name in ASKING):
        reposted(request, without_decision(request.POST))


def without_decision(posted: QueryDict) -> QueryDict:
    """Return the posted fields with the quota or the range that the user wants to see, so that it is reviewed again."""
    changed = posted.copy()
    changed.pop(START, None)
    if span := changed.pop(SPAN, None):
        changed[RANGE] = span[0]
    name, _, quota = changed.pop(USE, [""])[0].rpartition("=")
    name = name if quota.isascii() and quota.isdigit() and len(quota) <= 16 else ""
    for field in list(changed):
        if field.startswith("limits-") and field.endswith("-name") and changed[field] == name:
            row = field.removesuffix("name")
            changed[row + "quota"] = figure(int(quota)) if is_money(changed.get(row + "unit", "")) else quota
    return changed


def _context(request: HttpRequest, review: Review, error: str, span: str, *, offer_shadow: bool) -> dict[str, Any]:
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
        "fields": [*fields, (RANGE, span), (SEEN, review.digest)],
        "error": error,
        "reason": posted.get("change_reason", ""),
        "start": start,
        "verb": "Start in shadow" if start == SHADOW else _verb(review),
        "enforce_verb": _verb(review),
        "instances": instances,
        "environment_name": settings.ENVIRONMENT_NAME,
        "spans": [(name, text, name == span) for name, (_, text) in SPANS.items()],
        **preview_context(review),
    }


def _verb(review: Review) -> str:
    return "Enforce now" if review.needs_reason else "Apply now"


def preview_context(review: Review) -> dict[str, Any]:
    """Return what the template of a preview shows, which is nothing for a review without a preview."""
    found = review.preview
    if found is None:
        return {}
    return {
        "preview": found,
        "sentence": words.sentence(found, shadow=review.shadow_tells),
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
