"""The review of another policy of a token or project, between its form and its new state."""

from typing import Any

from django.forms import ModelForm
from django.http import HttpRequest

from controlplane.policies.models import Policy
from controlplane.review.attaching import attachment_review, limits_of
from controlplane.review.pages import ReviewedForm, settle


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
        review = attachment_review(row, policies.get(before["policy"]), chosen)
        settle(request, review, request.change.reason, {"limits": limits_of(chosen)})
