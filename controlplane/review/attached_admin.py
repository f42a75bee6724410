"""The review of another policy of a token or project, between its form and its new state."""

from typing import Any

from django.forms import ModelForm
from django.http import HttpRequest

from controlplane.policies.models import Policy
from controlplane.review.admin import FILE, REPLAY, START, ReviewedForm, ReviewNeeded, missing
from controlplane.review.attaching import attachment_review, limits_of
from controlplane.review.reviews import Review


class AttachmentNeedsReview(ReviewNeeded):
    """Raised as ReviewNeeded is, because a token or project gets another policy, or loses its policy."""

    def __init__(self, review: Review, policy: Policy | None, error: str = "") -> None:
        super().__init__(review.policy, {}, {"limits": limits_of(policy)}, error)
        self.of_holder = review

    def review(self, projects: set[str] | None) -> Review:
        return self.of_holder


class ReviewedAttachment(ReviewedForm):
    """A mixin for the page of tokens or projects, which get another policy only after its review."""

    def save_related(self, request: HttpRequest, form: ModelForm, formsets: list[Any], change: bool) -> None:
        super().save_related(request, form, formsets, change)
        row, before = form.instance, request.before
        if before is None or before["policy"] == row.policy_id:
            return
        policies = Policy.objects.in_bulk([pk for pk in (before["policy"], row.policy_id) if pk])
        chosen = policies.get(row.policy_id)
        if not policies or (row.policy_id and chosen is None):
            return  # deleted since the form was checked: the commit fails, and the form says so at its field
        review, start = attachment_review(row, policies.get(before["policy"]), chosen), request.POST.get(START, "")
        error = missing(review, start, request.change.reason)
        if FILE in request.POST or REPLAY in request.POST or (review.is_needed and error):
            raise AttachmentNeedsReview(review, chosen, error if start else "")
